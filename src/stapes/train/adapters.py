"""What a stage does to the LLM before it trains: weights in 4 bits; adapters, fresh ones or those that are there."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..errors import StapesError
from ..model import StapesForConditionalGeneration, StapesProcessor
from ..model.families import find_family, lora_targets
from ..model.nf4 import describe, settings_of, swap_linears
from ..recipe import LoRA, Quantization


def give_4bit_weights(model: StapesForConditionalGeneration, quantization: Quantization, name: str) -> None:
    """Quantise the LLM's Linear layers as stage `name` asks, if they are not so already; its head stays as it is.

    Raises:
        StapesError: if they are in 4 bits of another kind, or the package that does it is not there.
    """
    wanted = {"kind": quantization.kind, "double_quant": quantization.double_quant}
    there = settings_of(model.config)
    if there is not None and there != wanted:
        raise StapesError(
            f"stage `{name}` asks for 4-bit weights with {wanted}, but the LLM has some with {there}; drop "
            "`quantization` from the stage: they stay as they are"
        )
    if there is not None:
        return
    try:
        swap_linears(model.language_model, quantization.double_quant)
    except ValueError as error:
        raise StapesError(f"stage `{name}`: quantization: {error}") from error
    describe(model)
    if fused := [p for p in model.language_model.parameters() if p.ndim > 2]:
        warnings.warn(
            f"stage `{name}`: the experts of this mixture are no Linear layers and stay as they are: "
            f"{sum(p.numel() for p in fused):,} numbers that quantization does not make smaller",
            stacklevel=2,
        )


def give_adapters(
    model: StapesForConditionalGeneration, processor: StapesProcessor, lora: LoRA, name: str, seed: int
) -> None:
    """Let the LLM have the adapters that stage `name` asks for; they are drawn with `seed` if it has none yet.

    Raises:
        StapesError: if the LLM has adapters of another shape, or not the layers that are to be adapted.
    """
    family = find_family(model.config.text_config.model_type, processor.tokenizer)
    settings: dict[str, Any] = lora.model_dump()
    for key in ("target_modules", "target_parameters"):
        if isinstance(settings.get(key), tuple):
            settings[key] = sorted(settings[key])
    settings["target_modules"] = lora_targets(settings["target_modules"], family)
    if model.config.lora is None:
        torch.manual_seed(seed)
        try:
            model.add_lora(**settings)
        except ValueError as error:
            raise StapesError(f"stage `{name}`: lora: {error}{_what_there_is(family)}") from error
    elif model.config.lora != settings:
        raise StapesError(
            f"stage `{name}` asks for adapters with {settings}, but the model has some with {model.config.lora}; "
            "adapters stay for the stages that follow: drop `lora` from the later stage"
        )


def _what_there_is(family: Any) -> str:
    if family is None:
        return ""
    experts = (
        f", and {', '.join(family.experts)} for `target_parameters` with `lora_dropout: 0`" if family.experts else ""
    )
    return f"; {family.name} has {', '.join(family.linears)} for `target_modules`{experts}"
