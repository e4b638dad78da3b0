"""Store Linear layers as int8."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..assembly import file_bytes, load_model, save_model
from ..errors import ModelFolderError
from ..model import StapesForConditionalGeneration
from ..model.int8 import swap_linears
from ..model.nf4 import dequantize, dequantize_all, describe, layers_of


def quantize(source: Path, work: Path, bits: Literal[8] = 8, skip: Sequence[str] = ("connector",)) -> dict[str, Any]:
    """Write the model of `source` with int8 Linear layers in encoder and LLM to `work`, as a complete folder.

    See `model.int8` for the arithmetic, and for what happens to an LLM's head. Layers in 4 bits are stored as the int8
    that comes nearest to what they stand for: larger, and faster on a CPU.

    Args:
        source: a model folder without adapters, complete or trained-part-only.
        work: a folder, which may hold other files already.
        bits: of a weight; 8 is what there is.
        skip: layers whose name contains one of these texts stay as they are, in 4 bits if they are. Those of the
            connector always do.

    Returns:
        what it cost: `int8_layers`, `nf4_layers` (how many of them were in 4 bits, if any), `int8_weights` (how many
        numbers), `skip`, `bytes_before` (base weights included) and `bytes_after`, `seconds`.

    Raises:
        ModelFolderError: if the model has adapters or int8 layers already, `skip` fits no layer or all of them, or the
            folder cannot be read.
        ValueError: if `bits` is not 8.
    """
    if bits != 8:
        raise ValueError(f"bits is {bits}; there is a kernel for 8 only")
    started = time.monotonic()
    model, processor = load_model(source)
    if model.config.int8 is not None:
        raise ModelFolderError(f"{source}: its Linear layers are int8 already; quantize the folder it was made from")
    try:
        dequantized = _dequantize(model, skip)
        names = swap_linears(model, skip)
    except ValueError as error:
        raise ModelFolderError(f"{source}: {error}") from error
    model.config.int8 = {"skip": list(skip)}
    save_model(model, processor, work)
    return {
        "int8_layers": len(names),
        **({"nf4_layers": dequantized} if dequantized else {}),
        "int8_weights": sum(model.get_buffer(f"{name}.weight").numel() for name in names),
        "skip": list(skip),
        "bytes_before": file_bytes(source),
        "bytes_after": file_bytes(work),
        "seconds": round(time.monotonic() - started, 2),
    }


def _dequantize(model: StapesForConditionalGeneration, skip: Sequence[str]) -> int:
    """Replace those 4-bit layers that are to be int8 by the Linear layers they stand for, and return how many."""
    layers = list(layers_of(model))
    wanted = [(name, layer) for name, layer in layers if not any(text in name for text in skip)]
    if len(wanted) == len(layers):
        return dequantize_all(model)  # which also takes away what marks a model in 4 bits
    for name, layer in wanted:
        model.set_submodule(name, dequantize(layer))
    describe(model)
    return len(wanted)
