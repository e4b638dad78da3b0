"""The devices that can be planned for: GPUs by what their makers state, this machine's CPU by what was measured."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from typing import Literal

from ..errors import UsageError
from .allocator import GIB, MIB
from .shapes import DType
from .work import LayerKind, Stage

_CUBLAS_WORKSPACE = (2 * 4096 + 8 * 16) * 1024
_CUBLAS_WORKSPACE_HOPPER = 32 * MIB
"""What PyTorch gives cuBLAS at its first product (aten/src/ATen/cuda/CublasHandlePool.cpp)."""

_BEFORE_AMPERE = ("v100", "t4")
"""GPUs of compute capability 7, which emulate bf16 by float32 (CUDA C++ Programming Guide, compute capabilities)."""

LAUNCH_S = 10e-6
"""Assumed time for the host to launch one kernel in eager mode; not measured on any of these devices."""

_LAUNCHES: dict[LayerKind, int] = {"encoder": 16, "decoder": 36, "step": 36, "qformer": 32, "adapter": 6}
"""Kernels that one layer launches, counted in the eager code of transformers 5 and peft."""

_CALL_LAUNCHES = 20


@dataclass(frozen=True)
class GPU:
    """A GPU as its maker states it.

    Attributes:
        name: as `--device` takes it.
        memory_bytes: of the device.
        float_flops, half_flops: operations a second in float32 (no TF32) and in fp16 with tensor cores, dense.
        bytes_per_s: of its memory.
        workspace_bytes: of cuBLAS.
        source: where the figures stand.
        has_bfloat16: its tensor cores take bf16 as they take fp16; those before Ampere do not.
    """

    name: str
    memory_bytes: int
    float_flops: float
    half_flops: float
    bytes_per_s: float
    workspace_bytes: int
    source: str
    has_bfloat16: bool = True
    kind: Literal["cuda"] = "cuda"

    def stage_seconds(self, stage: Stage, dtype: DType, moved_bytes: int) -> float:
        """Estimate the time of one part of an answer: arithmetic, memory, or launching kernels, whichever is slowest.

        Real kernels reach a part of the stated rates, so a real answer takes longer.
        """
        is_half = dtype == "float16" or (dtype == "bfloat16" and self.has_bfloat16)
        flops_per_s = self.half_flops if is_half else self.float_flops
        launches = _CALL_LAUNCHES + sum(_LAUNCHES[kind] * count for kind, count in stage.layers)
        return max(stage.flops() / flops_per_s, moved_bytes / self.bytes_per_s, launches * LAUNCH_S)


@dataclass(frozen=True)
class CPU:
    """This machine's CPU; its rates are measured by `stapes plan --calibrate`.

    Attributes:
        num_threads: of torch.
        memory_bytes: of the machine.
    """

    num_threads: int
    memory_bytes: int
    name: Literal["cpu"] = "cpu"
    kind: Literal["cpu"] = "cpu"


Device = GPU | CPU


def _gpu(name: str, memory_gib: int, tflops: tuple[float, float], gb_per_s: float, source: str) -> GPU:
    workspace = _CUBLAS_WORKSPACE_HOPPER if name.startswith("h100") else _CUBLAS_WORKSPACE
    float_flops, half_flops = tflops[0] * 1e12, tflops[1] * 1e12
    has_bfloat16 = not name.startswith(_BEFORE_AMPERE)
    return GPU(name, memory_gib * GIB, float_flops, half_flops, gb_per_s * 1e9, workspace, source, has_bfloat16)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("v100-32gb", 32, (15.7, 125), 900, "NVIDIA V100 data sheet (SXM2)"),
        _gpu("t4-16gb", 16, (8.1, 65), 320, "NVIDIA T4 data sheet"),
        _gpu("l4-24gb", 24, (30.3, 121), 300, "NVIDIA L4 data sheet"),
        _gpu("a10-24gb", 24, (31.2, 125), 600, "NVIDIA A10 data sheet"),
        _gpu("a100-40gb", 40, (19.5, 312), 1555, "NVIDIA A100 data sheet (SXM4)"),
        _gpu("a100-80gb", 80, (19.5, 312), 2039, "NVIDIA A100 data sheet (SXM4)"),
        _gpu("h100-80gb", 80, (67, 989), 3350, "NVIDIA H100 data sheet (SXM5)"),
    )
}


def find_device(name: str, num_threads: int | None = None) -> Device:
    """Return the device that `--device` names.

    Args:
        name: `cpu`, or a key of `GPUS`.
        num_threads: of a CPU; all it has unless given.

    Raises:
        UsageError: if there is none of that name; it names the nearest.
    """
    if name == "cpu":
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return CPU(num_threads or len(os.sched_getaffinity(0)), memory_bytes)
    if name in GPUS:
        return GPUS[name]
    known = ["cpu", *GPUS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
    raise UsageError(f"--device {name}: no such device; {hint}")
