"""Fold LoRA adapters into the weights they adapt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..assembly import file_bytes, load_model, save_model
from ..errors import ModelFolderError
from ..model import StapesForConditionalGeneration
from ..model.nf4 import dequantize, dequantize_all, is_4bit


def merge_lora(source: Path, work: Path) -> dict[str, Any]:
    """Write the model of `source`, its adapters merged, to `work` as a complete folder of float32 weights.

    An LLM that was trained in 4 bits has float32 weights from then on, those its 4 bits stand for. The answers stay
    the same but for rounding; the LLM runs without the adapters' operations, and plain
    `from_pretrained` reads the folder without the base weights at hand.

    Args:
        source: a model folder with adapters, complete or trained-part-only.
        work: a folder, which may hold other files already.

    Returns:
        what it cost: `merged_layers`, `bytes_before` (base weights included) and `bytes_after`, `seconds`.

    Raises:
        ModelFolderError: if the model has no adapters or such as cannot be merged, or its folder cannot be read.
    """
    started = time.monotonic()
    model, processor = load_model(source)
    if model.config.lora is None:
        raise ModelFolderError(f"{source}: holds no LoRA adapters to merge; use the folder as it is")
    try:
        merged_layers = merge_adapters(model)
    except ValueError as error:
        raise ModelFolderError(f"{source}: {error}") from error
    save_model(model, processor, work)
    return {
        "merged_layers": merged_layers,
        "bytes_before": file_bytes(source),
        "bytes_after": file_bytes(work),
        "seconds": round(time.monotonic() - started, 2),
    }


@torch.no_grad()
def merge_adapters(model: StapesForConditionalGeneration) -> int:
    """Add each adapter to the weight it adapts, take it out, and return how many there were.

    An LLM in 4 bits becomes one in float32: rounding the sums to 4 bits again would lose most of what was learnt.

    Raises:
        ValueError: if an adapter's values are not finite, or it adapts a table of embeddings that is tied to the head.
    """
    layers = model.lora_layers()
    table = model.get_input_embeddings()
    if isinstance(table, BaseTunerLayer) and model.language_model.config.tie_word_embeddings:
        raise ValueError(
            "the adapter of the embeddings cannot be merged, for the LLM's head is tied to them and would change too; "
            "use the folder unmerged, or train without embeddings among `target_modules`"
        )
    for name, layer in layers:
        base = cast(Any, layer.get_base_layer())
        if is_4bit(base):
            base = _merge_into_4bit(name, cast(Any, layer), base)
        else:
            cast(Any, layer).merge(safe_merge=True)
        model.set_submodule(name, base)
    dequantize_all(model)
    model.config.note_merged()
    return len(layers)


def _merge_into_4bit(name: str, layer: Any, base: Any) -> nn.Linear:
    (adapter,) = layer.active_adapters
    merged = dequantize(base, layer.get_delta_weight(adapter))
    if not bool(merged.weight.isfinite().all()):
        raise ValueError(f"the adapter of {name} holds values that are not finite")
    return merged
