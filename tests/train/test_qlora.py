"""QLoRA: adapters learn beside weights in 4 bits, which stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stapes.assembly import build, load_model, part_of, save_model
from stapes.compress import merge_lora, quantize
from stapes.errors import RecipeError, StapesError
from stapes.model import ConnectorConfig, nf4
from stapes.recipe import Stage
from stapes.train import arguments
from stapes.train.stage import check_stage, train_stage

QLORA: dict[str, Any] = {
    "trainable": ["connector", "lora"],
    "lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.1},
    "quantization": {"bits": 4, "kind": "nf4", "double_quant": True},
}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.arange(1, 20)[None]).logits


def build_from(parts: Path) -> Any:
    connector = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=64)
    return build(str(parts / "encoder"), str(parts / "llm"), connector)


@pytest.fixture
def tuned(parts: Path, make_stage: Callable[..., Stage], tmp_path: Path) -> tuple[Any, Path]:
    """A model after a stage of QLoRA, and its folder."""
    model, processor = build_from(parts)
    stage = make_stage(**QLORA, learning_rate=1e-2)
    folder = tmp_path / "tune"
    folder.mkdir()
    train_stage(model, processor, stage, name="tune", seed=1, folder=folder, cache=tmp_path / "cache")
    return model, folder


def test_adapters_learn_and_4_bits_stay(tuned: tuple[Any, Path], parts: Path) -> None:
    model, folder = tuned
    saved = load_file(folder / "trained.safetensors")
    assert {part_of(name) for name in saved} == {"connector", "lora"}
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    fresh, _ = build_from(parts)
    nf4.swap_linears(fresh.language_model, double_quant=True)
    for (_, layer), (_, expected) in zip(nf4.layers_of(model), nf4.layers_of(fresh), strict=True):
        assert torch.equal(layer.weight, expected.weight)
    assert torch.equal(model.get_output_embeddings().weight, fresh.get_output_embeddings().weight)
    assert model.get_output_embeddings().weight.dtype == torch.float32


def test_the_loss_falls(train: Callable[..., Any]) -> None:
    losses = [line["loss"] for line in train(**QLORA, max_steps=12, learning_rate=1e-2).losses if "loss" in line]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_trained_part_comes_back(tuned: tuple[Any, Path]) -> None:
    model, folder = tuned
    back, _ = load_model(folder)
    assert torch.equal(logits(back), logits(model))
    assert nf4.settings_of(back.config) == {"kind": "nf4", "double_quant": True}
    assert {layer.compute_dtype for _, layer in nf4.layers_of(back)} == {torch.float32}
    half, _ = load_model(folder, dtype=torch.bfloat16)
    assert {layer.compute_dtype for _, layer in nf4.layers_of(half)} == {torch.bfloat16}
    for (_, layer), (_, expected) in zip(nf4.layers_of(half), nf4.layers_of(model), strict=True):
        assert torch.equal(layer.weight, expected.weight)
    assert float((logits(half).float() - logits(model)).abs().max()) < 0.2


@pytest.mark.parametrize("batches", [3, 9])
def test_an_interrupted_stage_ends_as_one_that_was_not(
    batches: int, train: Callable[..., Any], interrupt: Callable[[int], None], clips: Path
) -> None:
    settings = {**QLORA, "gradient_accumulation_steps": 2, "valid": [str(clips / "valid.jsonl")]}
    whole = train("whole", **settings)
    interrupt(batches)
    with pytest.raises(KeyboardInterrupt):
        train("parts", **settings)
    resumed = train("parts", **settings)
    assert resumed.result.resumed_from == {3: 0, 9: 4}[batches]
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in resumed.tensors.items())
    assert whole.losses == resumed.losses


def test_validating_leaves_training_as_it_is(train: Callable[..., Any], clips: Path) -> None:
    validated = train("validated", **QLORA, valid=[str(clips / "valid.jsonl")])
    plain = train("plain", **QLORA)
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in validated.tensors.items())


def test_training_in_bf16(train: Callable[..., Any]) -> None:
    trained = train(**QLORA, precision="bf16")
    assert {tensor.dtype for tensor in trained.tensors.values()} == {torch.float32}
    assert {layer.weight.dtype for _, layer in nf4.layers_of(trained.model)} == {torch.uint8}
    assert {layer.compute_dtype for _, layer in nf4.layers_of(trained.model)} == {torch.bfloat16}


def test_later_stages_go_on_in_4_bits(
    tuned: tuple[Any, Path], make_stage: Callable[..., Stage], tmp_path: Path
) -> None:
    model, folder = tuned
    back, processor = load_model(folder)
    for number, changes in enumerate(({"quantization": None}, {})):
        later = tmp_path / f"later{number}"
        later.mkdir()
        stage = make_stage(**{**QLORA, **changes})
        train_stage(back, processor, stage, name="later", seed=1, folder=later, cache=tmp_path / "cache")
        assert len(list(nf4.layers_of(back))) == 14
    other = make_stage(**{**QLORA, "quantization": {"double_quant": False}})
    with pytest.raises(
        StapesError, match=r"^stage `third` asks for 4-bit weights with .*False.*, but the LLM has some"
    ):
        train_stage(model, processor, other, name="third", seed=1, folder=tmp_path / "third", cache=tmp_path / "cache")


def test_adapters_of_an_earlier_stage_stay(parts: Path, make_stage: Callable[..., Stage], tmp_path: Path) -> None:
    """Full precision first, 4 bits later: the adapters go on."""
    model, processor = build_from(parts)
    for name, changes in (("first", {"quantization": None}), ("second", {"learning_rate": 1e-9})):
        (tmp_path / name).mkdir()
        stage = make_stage(**{**QLORA, **changes})
        train_stage(model, processor, stage, name=name, seed=1, folder=tmp_path / name, cache=tmp_path / "cache")
    first, second = (load_file(tmp_path / name / "trained.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(float((first[name] - second[name]).abs().max()) < 1e-6 for name in first)
    assert torch.equal(logits(load_model(tmp_path / "second")[0]), logits(model))


def test_merging_gives_float32(tuned: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = tuned
    assert merge_lora(folder, tmp_path / "merged")["merged_layers"] == 4
    merged, _ = load_model(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)
    assert list(nf4.layers_of(merged)) == []
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert not hasattr(merged.config, "quantization_config")
    assert not hasattr(merged.config.text_config, "quantization_config")
    assert merged.config.trained_parts == ["connector", "language_model"]
    cost = quantize(tmp_path / "merged", tmp_path / "int8")
    assert "nf4_layers" not in cost
    difference = logits(load_model(tmp_path / "int8")[0]) - logits(model)
    assert float(difference.abs().mean()) < 0.1 * float(logits(model).std())


def test_an_adapter_that_is_not_finite_is_not_merged(tuned: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = tuned
    model, processor = load_model(folder)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(float("inf"))
    save_model(model, processor, tmp_path / "broken", trained_only=True)
    with pytest.raises(
        StapesError, match=r"broken: the adapter of language_model\.\S+ holds values that are not finite"
    ):
        merge_lora(tmp_path / "broken", tmp_path / "merged")


def test_int8_from_4_bits(parts: Path, make_stage: Callable[..., Stage], tmp_path: Path) -> None:
    """Without adapters there is nothing to merge: what the 4 bits stand for is stored in 8."""
    model, processor = build_from(parts)
    (tmp_path / "align").mkdir()
    stage = make_stage(quantization=QLORA["quantization"])
    train_stage(model, processor, stage, name="align", seed=1, folder=tmp_path / "align", cache=tmp_path / "cache")
    cost = quantize(tmp_path / "align", tmp_path / "int8")
    assert cost["nf4_layers"] == 14
    back, _ = load_model(tmp_path / "int8")
    assert list(nf4.layers_of(back)) == []
    difference = logits(back) - logits(model)
    assert float(difference.abs().mean()) < 0.1 * float(logits(model).std())


def test_what_cannot_be(make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="weights in 4 bits cannot learn; take `language_model` out of `trainable`"):
        make_stage(quantization=QLORA["quantization"], trainable=["language_model"])
    stage = make_stage(**QLORA)
    check_stage("r.yaml", "tune", stage)

    def not_there() -> None:
        raise ValueError("4-bit weights need the package bitsandbytes")

    monkeypatch.setattr(arguments, "check_installed", not_there)
    with pytest.raises(RecipeError, match=r"^r\.yaml: train\.tune\.quantization: 4-bit weights need the package"):
        check_stage("r.yaml", "tune", stage)
