"""Which dtype to compute in, and with which attention."""

from __future__ import annotations

from typing import Literal

import torch
from transformers.utils import is_flash_attn_2_available

from ..errors import RecipeError

Precision = Literal["fp32", "bf16", "fp16"]
Attention = Literal["flash_attention_2", "sdpa"]


def choose_precision(wanted: Literal["auto", "fp32", "bf16", "fp16"], device: str) -> Precision:
    """Fit the precision to the device.

    Args:
        wanted: `auto` takes bf16 on a GPU that computes in it, fp16 on an older one, fp32 on a CPU: a recipe then
            trains the same way on each. On one with instructions for it (avx512_bf16, AMX) bf16 is several times
            faster, on one without several times slower.
        device: torch device.

    Raises:
        RecipeError: if the device cannot do what is wanted.
    """
    on_gpu = device.startswith("cuda")
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return ("bf16" if has_bf16 else "fp16") if on_gpu else "fp32"
    if wanted == "fp16" and not on_gpu:
        raise RecipeError("precision fp16 needs a GPU: its gradients are scaled on CUDA only; use `auto`")
    if wanted == "bf16" and on_gpu and not has_bf16:
        raise RecipeError("precision bf16 is not supported by this GPU; use `auto` or fp16")
    return wanted


def choose_attention(precision: Precision, device: str) -> Attention:
    """Take flash attention where it is installed and can work (half precision on a GPU), else torch's SDPA."""
    can_flash = device.startswith("cuda") and precision != "fp32" and is_flash_attn_2_available()
    return "flash_attention_2" if can_flash else "sdpa"


def torch_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype that frozen weights are held in; what learns stays in float32."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
