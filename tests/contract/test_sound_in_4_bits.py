"""A sound encoder beside an LLM in 4 bits: the one keeps its precision, the other its bits, in every kind of folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from stapes.assembly import build, load_model, save_model
from stapes.compress import merge_lora, quantize
from stapes.model import (
    BeatsConfig,
    BeatsEncoder,
    BeatsFeatureExtractor,
    ConnectorConfig,
    StapesForConditionalGeneration,
    StapesProcessor,
    nf4,
)
from stapes.model.int8 import Int8Linear
from stapes.recipe import LoRA, Quantization
from stapes.train.adapters import give_4bit_weights, give_adapters

Waveforms = Callable[[float, int], np.ndarray]


def save_sound_encoder(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    if kind == "beats":
        config = BeatsConfig(**sizes, patch_embedding_size=8, conv_kernel=8, conv_groups=2, num_buckets=16)
        BeatsEncoder(config).save_pretrained(folder)
        BeatsFeatureExtractor().save_pretrained(folder)
    else:
        ASTModel(ASTConfig(**sizes, max_length=128, num_mel_bins=32)).save_pretrained(folder)
        ASTFeatureExtractor(num_mel_bins=32, max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture(params=["beats", "ast"])
def trained(
    request: pytest.FixtureRequest, parts: Path, tmp_path: Path
) -> tuple[StapesForConditionalGeneration, StapesProcessor]:
    """Two encoders, an LLM in 4 bits and adapters that say something."""
    sound = save_sound_encoder(request.param, tmp_path / "sound")
    connector = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=64)
    model, processor = build(str(parts / "encoder"), str(parts / "llm"), connector, sound_encoder=str(sound))
    give_4bit_weights(model, Quantization.model_validate({}), "tune")
    give_adapters(model, processor, LoRA.model_validate({"r": 4}), "tune", seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.config.trained_parts = ["connector", "lora"]
    return model.eval(), processor


@torch.no_grad()
def logits(model: Any, processor: StapesProcessor, speech_like: Waveforms) -> Tensor:
    return model(**processor.prepare([speech_like(1.0, 0), speech_like(2.2, 1)], ["Hi?", "And you?"])).logits


def kinds_of_linears(module: nn.Module | None) -> set[type]:
    assert module is not None
    return {type(layer) for layer in module.modules() if isinstance(layer, nn.Linear)}


@pytest.mark.parametrize("trained_only", [True, False])
def test_it_comes_back(
    trained_only: bool,
    trained: tuple[StapesForConditionalGeneration, StapesProcessor],
    speech_like: Waveforms,
    tmp_path: Path,
) -> None:
    model, processor = trained
    save_model(model, processor, tmp_path / "model", trained_only=trained_only)
    back, back_processor = load_model(tmp_path / "model")
    assert torch.equal(logits(back, back_processor, speech_like), logits(model, processor, speech_like))
    assert kinds_of_linears(back.sound_encoder) == {nn.Linear}
    assert kinds_of_linears(back.speech_encoder) == {nn.Linear}
    layers = dict(nf4.layers_of(back))
    assert len(layers) == 14
    assert all(torch.equal(layer.weight, model.get_submodule(name).weight) for name, layer in layers.items())
    assert back.num_parameters_by_part() == model.num_parameters_by_part()
    half, _ = load_model(tmp_path / "model", dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16, torch.uint8}
    assert all(torch.equal(layer.weight, layers[name].weight) for name, layer in nf4.layers_of(half))


def test_it_is_merged_and_stored_as_int8(
    trained: tuple[StapesForConditionalGeneration, StapesProcessor], speech_like: Waveforms, tmp_path: Path
) -> None:
    model, processor = trained
    expected = logits(model, processor, speech_like)
    save_model(model, processor, tmp_path / "tune", trained_only=True)
    merge_lora(tmp_path / "tune", tmp_path / "merged")
    merged, _ = load_model(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, processor, speech_like), expected, atol=1e-3, rtol=0)
    assert {weight.dtype for weight in merged.parameters()} == {torch.float32}
    quantize(tmp_path / "merged", tmp_path / "int8")
    small, _ = load_model(tmp_path / "int8")
    assert small.sound_encoder is not None
    assert any(isinstance(layer, Int8Linear) for layer in small.sound_encoder.modules())
    difference = logits(small, processor, speech_like) - expected
    assert float(difference.abs().mean()) < 0.1 * float(expected.std())
