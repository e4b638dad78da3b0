"""int8 folders: smaller, loadable anywhere, and the same answers whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stapes.assembly import file_bytes, load_model, save_model
from stapes.compress import quantize
from stapes.errors import ModelFolderError
from stapes.files import read_json, write_json
from stapes.inference import AudioLM
from stapes.model import StapesForConditionalGeneration, nf4
from stapes.model.int8 import Int8Linear, swap_linears


@pytest.fixture(scope="module")
def int8_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "int8"
    quantize(tiny_model_folder, folder)
    return folder


def int8_layers(model: StapesForConditionalGeneration) -> dict[str, Int8Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


@torch.no_grad()
def logits(model: StapesForConditionalGeneration) -> Tensor:
    return model.eval()(input_ids=torch.arange(1, 20)[None]).logits


def test_int8_is_smaller_and_keeps_weights_to_half_a_level(tiny_model_folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "quantize.partial"
    work.mkdir()
    write_json(work / "step.json", {"complete": False})
    step_bytes = file_bytes(work)
    cost = quantize(tiny_model_folder, work)

    int8, processor = load_model(work)
    exact, exact_processor = load_model(tiny_model_folder)
    layers = int8_layers(int8)
    # No weight moves by more than half a level of its channel.
    for name, layer in layers.items():
        moved = (exact.get_submodule(name).get_parameter("weight") - layer.dequantize()).abs()
        assert (moved <= 0.5001 * layer.scale[:, None]).all()
    num_weights = sum(layer.weight.numel() for layer in layers.values())
    assert {**cost, "seconds": 0} == {
        "int8_layers": len(layers),
        "int8_weights": num_weights,
        "skip": ["connector"],
        "bytes_before": file_bytes(tiny_model_folder),
        "bytes_after": file_bytes(work),
        "seconds": 0,
    }
    # Three bytes of four go; the scales, four bytes a channel, and the names come on top.
    saved = cost["bytes_before"] - (cost["bytes_after"] - step_bytes)
    assert 0.9 * 3 * num_weights < saved < 3 * num_weights
    assert int8.num_parameters_by_part() == exact.num_parameters_by_part()
    assert int8.config.int8 == {"skip": ["connector"]}
    assert int8.generation_config.to_dict() == exact.generation_config.to_dict()
    assert processor.to_dict() == exact_processor.to_dict()
    assert read_json(work / "step.json") == {"complete": False}


def test_it_loads_in_every_way(tiny_model_folder: Path, int8_folder: Path) -> None:
    model, _ = load_model(tiny_model_folder)
    swap_linears(model, ["connector"])
    expected = logits(model)
    assert torch.equal(logits(load_model(int8_folder)[0]), expected)
    assert torch.equal(logits(StapesForConditionalGeneration.from_pretrained(int8_folder)), expected)
    placed = StapesForConditionalGeneration.from_pretrained(int8_folder, device_map="cpu")
    assert torch.equal(logits(placed), expected)
    assert not torch.equal(logits(load_model(tiny_model_folder)[0]), expected)


def test_loading_in_half_precision_leaves_weights_and_scales(int8_folder: Path) -> None:
    whole, _ = load_model(int8_folder)
    half = StapesForConditionalGeneration.from_pretrained(int8_folder, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    layers = int8_layers(half)
    for name, layer in int8_layers(whole).items():
        assert torch.equal(layers[name].int_weight(), layer.int_weight())
        assert torch.equal(layers[name].scale, layer.scale)
    assert logits(half).dtype == torch.bfloat16
    assert (logits(half).float() - logits(whole)).abs().max() < 0.05 * logits(whole).abs().max()


def test_saved_after_use_it_is_the_same(int8_folder: Path, tmp_path: Path) -> None:
    model, processor = load_model(int8_folder)
    expected = logits(model)
    save_model(model, processor, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (int8_folder / "model.safetensors").read_bytes()
    assert torch.equal(logits(load_model(tmp_path / "again")[0]), expected)


def test_skipped_layers_stay_float_here_and_when_loaded(tiny_model_folder: Path, tmp_path: Path) -> None:
    cost = quantize(tiny_model_folder, tmp_path / "int8", skip=("connector", "layers.0.", "lm_head"))
    model, _ = load_model(tmp_path / "int8")
    names = int8_layers(model)
    assert len(names) == cost["int8_layers"] == 13
    assert not [name for name in names if "layers.0." in name or "lm_head" in name]
    assert model.config.int8 == {"skip": ["connector", "layers.0.", "lm_head"]}
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight


def test_skipped_layers_in_4_bits_stay_so_here_and_when_loaded(
    tiny_model_and_processor: Callable, tmp_path: Path
) -> None:
    model, processor = tiny_model_and_processor()
    nf4.swap_linears(model.language_model, double_quant=True)
    nf4.describe(model)
    save_model(model, processor, tmp_path / "nf4")
    cost = quantize(tmp_path / "nf4", tmp_path / "int8", skip=("connector", "layers.0."))
    back, _ = load_model(tmp_path / "int8")
    left, before = dict(nf4.layers_of(back)), dict(nf4.layers_of(model))
    assert (len(before), cost["nf4_layers"]) == (14, 7)
    assert set(left) == {name for name in before if "layers.0." in name}
    assert all(torch.equal(layer.weight, before[name].weight) for name, layer in left.items())
    int8 = int8_layers(back)
    assert len(int8) == cost["int8_layers"]
    assert {name for name in before if name not in left} <= set(int8)
    assert nf4.settings_of(back.config) == {"kind": "nf4", "double_quant": True}
    # What is int8 is so from the values of its 4 bits.
    again, _ = load_model(tmp_path / "nf4")
    for name in set(before) - set(left):
        again.set_submodule(name, nf4.dequantize(dict(nf4.layers_of(again))[name]))
    swap_linears(again, ("connector", "layers.0."))
    assert torch.equal(logits(back), logits(again))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip": ["lm_hed"]}, "{}: skip: no module's name contains `lm_hed`; did you mean `lm_head`?"),
        (
            {"skip": ["speech_encoder", "language_model"]},
            "{}: skip: speech_encoder, language_model leaves no Linear layer to store as int8",
        ),
        ({"bits": 4}, "bits is 4; there is a kernel for 8 only"),
    ],
)
def test_what_is_refused(tiny_model_folder: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        quantize(tiny_model_folder, tmp_path / "int8", **settings)
    assert str(error.value) == message.format(tiny_model_folder)
    assert not (tmp_path / "int8").exists()


def test_adapters_must_be_merged_and_int8_is_made_once(
    int8_folder: Path, tiny_model_and_processor: Callable, tmp_path: Path
) -> None:
    model, processor = tiny_model_and_processor()
    model.add_lora(r=2, target_modules=["q_proj"])
    save_model(model, processor, tmp_path / "adapted")
    with pytest.raises(ModelFolderError, match=r"merge them first \(`merge_lora`\)"):
        quantize(tmp_path / "adapted", tmp_path / "a")
    with pytest.raises(ModelFolderError, match="are int8 already; quantize the folder it was made from"):
        quantize(int8_folder, tmp_path / "b")


def test_int8_says_the_same_whatever_the_batch(
    int8_folder: Path, speech_like: Callable[[float, int], np.ndarray]
) -> None:
    model, processor = load_model(int8_folder)
    clips = [speech_like(duration_s, seed) for seed, duration_s in enumerate((2.0, 0.3, 5.0, 0.1, 1.0, 7.3, 0.5, 3.0))]
    questions = ["Transcribe the speech." * (1 + number % 3) for number in range(8)]
    audio_lm = AudioLM(model, processor)
    together = audio_lm.answer(clips, questions, max_new_tokens=16)
    alone = [audio_lm.answer([c], [q], max_new_tokens=16)[0] for c, q in zip(clips, questions, strict=True)]
    assert together == alone
    assert len({answer.text for answer in alone}) >= 4


@torch.no_grad()
def test_a_batch_moves_logits_by_little(int8_folder: Path, speech_like: Callable[[float, int], np.ndarray]) -> None:
    """With one range a batch, as torch's dynamic layers have it, they would move by a quarter of their spread."""
    model, processor = load_model(int8_folder)
    clips = [speech_like(duration_s, seed) for seed, duration_s in enumerate((2.0, 0.3, 5.0, 0.1, 1.0, 7.3, 0.5, 3.0))]
    together = model(**processor.prepare(clips, ["Describe."] * 8)).logits
    for row, clip in enumerate(clips):
        alone = model(**processor.prepare([clip], ["Describe."])).logits[0]
        among = together[row, -alone.shape[0] :]
        assert (among - alone).abs().max() < 5e-3 * alone.std()
