"""Compositions of public models, as recipes, for a budget without a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..recipe import Recipe
from .budget import LLM_FAMILIES, WHISPERS, SmallWeights

_CONNECTORS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "stacked_mlp", "stack": 8},
    "qformer": {"kind": "windowed_qformer"},
}


def compose_recipes(small_weights: SmallWeights) -> Iterator[Recipe]:
    """List each Whisper with each LLM we know and each connector, as they are and with small weights.

    With nf4, which is there in training, these are two recipes; int8 is made from the float model by a step of one and
    the same recipe, so that a budget shows that variant which suits it best.

    Args:
        small_weights: how the device can store weights in fewer bits.
    """
    ways = ("float", "nf4") if small_weights == "nf4" else ("int8",)
    for encoder in WHISPERS:
        for llm in (name for family in LLM_FAMILIES for name in family):
            for short, connector in _CONNECTORS.items():
                for stored in ways:
                    yield _compose(encoder, llm, short, connector, stored)


def _compose(encoder: str, llm: str, short: str, connector: dict[str, Any], stored: str) -> Recipe:
    words = [encoder.rpartition("/")[2], llm.rpartition("/")[2], short]
    stage: dict[str, Any] = {"data": {"none.jsonl": 1}, "max_steps": 1}
    if stored == "nf4":
        stage["quantization"] = {"bits": 4, "kind": "nf4"}
    return Recipe.model_validate(
        {
            "name": "_".join(words if stored == "int8" else [*words, stored]),
            "model": {"speech_encoder": encoder, "llm": llm, "connector": connector},
            "train": {"align": stage},
            "compress": [{"kind": "quantize"}] if stored == "int8" else [],
        }
    )
