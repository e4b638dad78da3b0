"""The circumstances of a number: device, threads, versions, commit, date."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("stapes", "torch", "transformers", "peft", "accelerate", "tokenizers", "jiwer", "soundfile", "numpy")


def environment(device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Describe where and with what a result came about, as a JSON-ready dict.

    Args:
        device: torch device the result was made on, `cpu` or `cuda:0`.
        dtype: the dtype the model computed in.
    """
    return {
        "device": device,
        "device_name": _device_name(device),
        "dtype": dtype,
        "num_threads": _num_threads(),
        "num_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": _versions(),
        "git_sha": git_sha(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _num_threads() -> int | None:
    # Asked of torch only where it is loaded already: the circumstances of a data check do not cost two seconds.
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else None


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_sha() -> str | None:
    """Return the commit of the source checkout, `+` at its end where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here.parent), *arguments]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie in the .venv of somebody else's checkout, whose commit says nothing about stapes.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    sha = git("rev-parse", "--short=12", "HEAD")
    if sha is None:
        return None
    return sha + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
