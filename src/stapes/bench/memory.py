"""How much memory a model takes: the peak of loading it and the peak of running it, apart.

On a CPU it is the resident set of the process (RSS), weights mapped from a file included; on a GPU what PyTorch's CUDA
allocator has handed out. The CUDA half follows the documented calls and is unit-tested, but was never run on a GPU.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Literal

import psutil
import torch

from ..errors import UsageError

MemoryKind = Literal["rss", "cuda"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def memory_kind(device: torch.device) -> MemoryKind:
    """Name the memory that is measured on `device`.

    Raises:
        UsageError: if the device is neither a CPU nor a CUDA GPU.
    """
    match device.type:
        case "cpu":
            return "rss"
        case "cuda":
            return "cuda"
        case _:
            raise UsageError(f"device `{device}` cannot be measured; use cpu or cuda")


def used_bytes(device: torch.device) -> int:
    """Return the bytes in use now."""
    if memory_kind(device) == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_bytes(device: torch.device) -> int:
    """Return the most bytes in use at any moment since the last `reset_peak` that worked, or the process's start."""
    if memory_kind(device) == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024  # "VmHWM:   208904 kB", where kB are 1024 bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: torch.device) -> bool:
    """Start a new peak from the memory in use now.

    Returns:
        False where the system refuses: then `peak_bytes` goes on counting from the start of the process.
    """
    if memory_kind(device) == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")  # proc(5): "reset the peak resident set size"
    except OSError:
        return False
    return True
