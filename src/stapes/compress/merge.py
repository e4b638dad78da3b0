"""Fold LoRA adapters into the weights they adapt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ..assembly import file_bytes, load_model, save_model
from ..errors import ModelFolderError
from ..model import StapesForConditionalGeneration


def merge_lora(source: Path, work: Path) -> dict[str, Any]:
    """Write the model of `source`, its adapters merged, to `work` as a complete folder of float32 weights.

    The answers stay the same but for rounding; the LLM runs without the adapters' operations, and plain
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
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
    model.config.lora = None
    model.config.trained_parts = sorted({*(model.config.trained_parts or ()), "language_model"} - {"lora"})
    return len(layers)
