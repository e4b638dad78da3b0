"""What the planner takes for int8 is what `quantize` makes int8, in a real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stapes.assembly import load_model, save_model
from stapes.compress import quantize
from stapes.model.beats import BeatsConfig, BeatsEncoder
from stapes.model.eat import EatConfig, EatEncoder
from stapes.plan.connector import QFormerShape
from stapes.plan.encoders import WhisperShape, read_sound_shape
from stapes.plan.llm import LLMShape
from stapes.plan.model_plan import ModelPlan
from stapes.plan.shapes import count_parameters


@pytest.mark.parametrize("sound", [None, "beats", "eat"])
def test_int8_weights_are_those_of_the_real_model(
    tiny_model_and_processor: Callable, tmp_path: Path, sound: str | None
) -> None:
    save_model(*tiny_model_and_processor(sound=sound), tmp_path / "tiny")
    quantize(tmp_path / "tiny", tmp_path / "quantize")
    model, _ = load_model(tmp_path / "quantize")
    made: dict[str, Any] = model.state_dict()
    int8 = sorted(tensor.numel() for name, tensor in made.items() if str(tensor.dtype) == "torch.int8")
    config = model.config
    plan = ModelPlan(
        "tiny",
        "quantize",
        WhisperShape.from_config(config.speech_config.to_dict()),
        read_sound_shape(config.sound_config.to_dict()) if sound else None,
        QFormerShape(32 + (24 if sound else 0), 64, 17, 1, "pad", 32, 1, 2, 64),
        LLMShape.from_config(config.text_config.to_dict(), "tiny"),
        int8_skip=("connector",),
    )
    planned = [w.size for part, weights in plan.weights().items() for w in weights if plan.is_int8(part, w)]
    assert sorted(planned) == int8
    assert plan.parameters()["total"] == model.num_parameters_by_part()["total"]


@pytest.mark.parametrize(("config", "build"), [(BeatsConfig, BeatsEncoder), (EatConfig, EatEncoder)])
def test_sound_encoders_have_the_parameters_that_we_build(config: Any, build: Any) -> None:
    small = config(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    shape = read_sound_shape(small.to_dict())
    assert shape is not None
    assert count_parameters(shape.weights()) == sum(parameter.numel() for parameter in build(small).parameters())
