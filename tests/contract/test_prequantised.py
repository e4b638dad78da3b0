"""LLMs that were quantised by bitsandbytes and saved so, like `unsloth/…-bnb-4bit`: they are taken as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from stapes import assembly
from stapes.assembly import build, load_model, save_model
from stapes.compress import merge_lora
from stapes.data.collator import Example, collate
from stapes.errors import ModelFolderError, StapesError
from stapes.model import ConnectorConfig, nf4
from stapes.recipe import LoRA, Quantization
from stapes.train.adapters import give_4bit_weights, give_adapters

KEPT = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def quantised(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLM in 4 bits but for one MLP, as dynamic quantisation leaves some layers."""
    folder = tmp_path_factory.mktemp("llm") / "tiny-bnb-4bit"
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", KEPT],
    )
    model: Any = AutoModelForCausalLM.from_pretrained(parts / "llm", quantization_config=settings, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(parts / "llm" / name, folder / name)
    return folder


def build_from(parts: Path, llm: Path) -> Any:
    return build(
        str(parts / "encoder"), str(llm), ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=64)
    )


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.arange(1, 20)[None]).logits


def test_it_is_taken_as_it_is(parts: Path, quantised: Path) -> None:
    model, _ = build_from(parts, quantised)
    file = load_file(quantised / "model.safetensors")
    layers = dict(nf4.layers_of(model.language_model))
    assert len(layers) == 11
    assert not [name for name in layers if name.startswith(KEPT)]
    for name, layer in layers.items():
        assert torch.equal(layer.weight, file[f"{name}.weight"])
        assert torch.equal(layer.weight.quant_state.absmax, file[f"{name}.weight.absmax"])
    # What it computes in follows the model, here float32, not the file.
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.uint8}
    own: Any = AutoModelForCausalLM.from_pretrained(quantised)
    for parameter in own.parameters():
        parameter.data = parameter.data.float() if parameter.is_floating_point() else parameter.data
    nf4.stay_plain(own)
    nf4.compute_in(own, torch.float32)
    assert torch.equal(logits(model), logits(own))


def test_it_trains_and_comes_back(
    parts: Path, quantised: Path, tmp_path: Path, speech_like: Callable[[float, int], Any]
) -> None:
    model, processor = build_from(parts, quantised)
    # It is in 4 bits already, and as the stage asks.
    give_4bit_weights(model, Quantization.model_validate({}), "tune")
    with pytest.raises(StapesError, match=r"'double_quant': False.*, but the LLM has some with .*'double_quant': True"):
        give_4bit_weights(model, Quantization.model_validate({"double_quant": False}), "tune")
    lora = LoRA.model_validate({"r": 4, "lora_dropout": 0, "target_modules": ["q_proj", "v_proj", "down_proj"]})
    give_adapters(model, processor, lora, "tune", seed=0)
    model.set_trainable({"connector", "lora"})
    model.config.trained_parts = ["connector", "lora"]
    features = processor.feature_extractor([speech_like(1.0, 0)])["input_features"][0]
    batch = collate([Example("Hi?", "yes", input_features=features)], processor)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(10):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    model.eval()
    for trained_only in (True, False):
        folder = tmp_path / f"trained-{trained_only}"
        save_model(model, processor, folder, trained_only=trained_only)
        back, _ = load_model(folder)
        assert torch.equal(logits(back), logits(model))
        assert len(list(nf4.layers_of(back))) == 11
        save_model(back, processor, tmp_path / f"again-{trained_only}")
        assert torch.equal(logits(load_model(tmp_path / f"again-{trained_only}")[0]), logits(model))
        merge_lora(folder, tmp_path / f"merged-{trained_only}")
        merged, _ = load_model(tmp_path / f"merged-{trained_only}")
        torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)
        assert list(nf4.layers_of(merged)) == []


@pytest.mark.parametrize("stored", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}])
def test_other_forms_are_refused(stored: dict[str, Any], parts: Path, quantised: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantised, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_8bit": True, **stored}}))
    with pytest.raises(
        ModelFolderError, match=rf"other: its weights are stored quantised by {stored['quant_method']}, "
    ):
        build_from(parts, folder)


def test_the_package_is_asked_for(parts: Path, quantised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there() -> None:
        raise ValueError("4-bit weights need the package bitsandbytes")

    monkeypatch.setattr(assembly.nf4, "check_installed", not_there)
    with pytest.raises(ModelFolderError, match=r"tiny-bnb-4bit: 4-bit weights need the package bitsandbytes$"):
        build_from(parts, quantised)
