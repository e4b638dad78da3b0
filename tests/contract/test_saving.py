"""What is saved is what is loaded: through the Auto classes too, in shards, with adapters, in half precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from stapes.model import StapesConfig, StapesForConditionalGeneration, StapesProcessor

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]
Kind = Literal["windowed_qformer", "stacked_mlp"]

KINDS = pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp"])


@torch.no_grad()
def logits_of(model: StapesForConditionalGeneration, processor: StapesProcessor, speech_like: Waveforms) -> Tensor:
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"])
    return model.eval()(**inputs).logits


def load(folder: Path, loader: Any = StapesForConditionalGeneration, **settings: Any) -> StapesForConditionalGeneration:
    """Load strictly: nothing missing, nothing left over."""
    model, info = loader.from_pretrained(folder, output_loading_info=True, **settings)
    assert {name: sorted(keys) for name, keys in info.items() if keys} == {}
    assert type(model) is StapesForConditionalGeneration
    return model


@KINDS
@pytest.mark.parametrize("loader", [StapesForConditionalGeneration, AutoModelForCausalLM, AutoModelForMultimodalLM])
def test_round_trip(
    kind: Kind, loader: Any, tiny_model_and_processor: ModelFactory, speech_like: Waveforms, tmp_path: Path
) -> None:
    model, processor = tiny_model_and_processor(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is StapesConfig
    back, back_processor = load(tmp_path, loader), AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(logits_of(back, back_processor, speech_like), logits_of(model, processor, speech_like))
    assert back.generation_config.to_dict() == model.generation_config.to_dict()
    llm: Any = back.language_model
    assert llm.lm_head.weight is llm.model.embed_tokens.weight


def test_tied_weights_are_stored_once(tiny_model_and_processor: ModelFactory, tmp_path: Path) -> None:
    model, _ = tiny_model_and_processor()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    both = {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    assert len(names & both) == 1
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


@KINDS
def test_shards(kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms, tmp_path: Path) -> None:
    model, processor = tiny_model_and_processor(kind)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits_of(load(tmp_path), processor, speech_like), logits_of(model, processor, speech_like))


@KINDS
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", r".*\.layers\.1\..*_proj"])
def test_adapters(
    kind: Kind,
    targets: Any,
    tiny_model_and_processor: ModelFactory,
    speech_like: Waveforms,
    tmp_path: Path,
) -> None:
    model, processor = tiny_model_and_processor(kind)
    plain = logits_of(model, processor, speech_like)
    model.add_lora(r=2, lora_alpha=4, lora_dropout=0.1, target_modules=targets)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    expected = logits_of(model, processor, speech_like)
    assert not torch.allclose(expected, plain, atol=0.1)
    model.save_pretrained(tmp_path)
    back = load(tmp_path)
    assert torch.equal(logits_of(back, processor, speech_like), expected)
    assert [name for name, _ in back.lora_layers()] == [name for name, _ in model.lora_layers()]
    assert back.config.lora == model.config.lora


@KINDS
def test_half_precision(
    kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms, tmp_path: Path
) -> None:
    model, processor = tiny_model_and_processor(kind)
    expected = logits_of(model, processor, speech_like)
    model.save_pretrained(tmp_path / "fp32")
    half = load(tmp_path / "fp32", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    logits = logits_of(half, processor, speech_like)
    assert logits.dtype == torch.bfloat16
    # bfloat16 has 8 bits of mantissa; these logits reach 40.
    assert float((logits.float() - expected)[:, -1].abs().mean()) < 0.5
    half.save_pretrained(tmp_path / "bf16")
    size = (tmp_path / "bf16" / "model.safetensors").stat().st_size
    assert size < 0.55 * (tmp_path / "fp32" / "model.safetensors").stat().st_size
    back = load(tmp_path / "bf16")  # a folder is loaded in the precision it says
    assert back.dtype == torch.bfloat16
    assert torch.equal(logits_of(back, processor, speech_like), logits)
    assert load(tmp_path / "bf16", dtype=torch.float32).dtype == torch.float32


@KINDS
def test_generate_in_half_precision(kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    model, processor = tiny_model_and_processor(kind)
    half: Any = model.bfloat16()
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"])
    with torch.no_grad():
        output = half.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert output.shape[1] <= inputs["input_ids"].shape[1] + 8
