"""LoRA adapters of the LLM: put into it by peft, or added to its weights while a model is loaded, without peft.

A model that only answers needs no adapters of its own, and peft, with all that it imports, takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

_PLAIN = {"r", "lora_alpha", "lora_dropout", "target_modules"}
"""What the settings say of adapters that do no more than add alpha / r · B A to a weight."""


def inject(language_model: PreTrainedModel, **settings: Any) -> dict[str, Any]:
    """Put fresh adapters into an LLM, which stay without effect until they are trained.

    Args:
        language_model: changed in place.
        settings: keyword arguments of peft's `LoraConfig`.

    Returns:
        the settings, and what peft resolved (`all-linear`, experts of a mixture) or set beside them.
    """
    from peft import LoraConfig, inject_adapter_in_model

    lora_config = LoraConfig(**settings)
    inject_adapter_in_model(lora_config, language_model)
    defaults = LoraConfig().to_dict()
    return {
        key: sorted(value) if isinstance(value, set | frozenset) else value
        for key, value in lora_config.to_dict().items()
        if key in settings or (value and value != defaults[key])
    }


def adapted_layers(model: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """List the layers that carry adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def foldable(language_model: PreTrainedModel, settings: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Name the tensors of the adapters that an LLM is to have; none if not all of them can be folded.

    They can if all have one rank and one scale, sit in plain linear layers, and no other layer has the same weight, as
    a head may have that of the embeddings.

    Args:
        language_model: without adapters.
        settings: of the adapters, as `inject` returns them.
    """
    targets = settings.get("target_modules")
    if not ({"r", "lora_alpha"} <= settings.keys() <= _PLAIN and isinstance(targets, list)):
        return {}
    table = language_model.get_input_embeddings().weight
    shapes: dict[str, torch.Size] = {}
    for name, layer in language_model.named_modules():
        # As peft finds them: by their whole name or by its end.
        if not any(f".{name}".endswith(f".{target}") for target in targets):
            continue
        if type(layer) is not nn.Linear or layer.weight is table:
            return {}
        shapes[f"{name}.lora_A.default.weight"] = torch.Size((settings["r"], layer.in_features))
        shapes[f"{name}.lora_B.default.weight"] = torch.Size((layer.out_features, settings["r"]))
    return shapes


@torch.no_grad()
def fold(language_model: PreTrainedModel, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Add each adapter to its layer's weight: W + alpha / r · B A.

    Args:
        language_model: its weights are changed in place.
        settings: of the adapters.
        tensors: A (r, in) and B (out, r) of each layer, those that `foldable` names.
    """
    scale = settings["lora_alpha"] / settings["r"]
    for name in (name for name in tensors if ".lora_A." in name):
        layer = name.partition(".lora_A.")[0]
        weight = language_model.get_submodule(layer).get_parameter("weight")
        matrix_a, matrix_b = tensors[name], tensors[f"{layer}.lora_B.default.weight"]
        weight.addmm_(matrix_b.to(weight), matrix_a.to(weight), alpha=scale)
