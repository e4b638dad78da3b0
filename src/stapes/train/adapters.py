"""LoRA adapters of a stage: fresh ones, or those that are there."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import StapesError
from ..model import StapesForConditionalGeneration, StapesProcessor
from ..model.families import find_family, lora_targets
from ..recipe import LoRA


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
