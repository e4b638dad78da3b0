"""Compression steps: a model folder in, another one out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stapes.assembly import file_bytes, load_model, save_model
from stapes.compress import merge_lora, quantize
from stapes.errors import ModelFolderError
from stapes.inference import AudioLM
from stapes.model.int8 import Int8Linear


@pytest.fixture
def adapted(tiny_model_and_processor: Callable, tmp_path: Path) -> Path:
    """A complete folder whose adapters are trained, that is: not zero."""
    model, processor = tiny_model_and_processor()
    model.add_lora(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(model, processor, tmp_path / "adapted")
    return tmp_path / "adapted"


def logits(folder: Path) -> torch.Tensor:
    model, _ = load_model(folder)
    return model(input_ids=torch.arange(1, 20)[None]).logits.detach()


def test_merging_keeps_what_the_model_says(adapted: Path, tmp_path: Path) -> None:
    cost = merge_lora(adapted, tmp_path / "merged")
    assert torch.allclose(logits(tmp_path / "merged"), logits(adapted), atol=1e-4)
    model, _ = load_model(tmp_path / "merged")
    assert model.config.lora is None
    assert not [name for name in model.state_dict() if "lora" in name]
    assert cost["merged_layers"] == 4
    assert cost["bytes_after"] == file_bytes(tmp_path / "merged") < cost["bytes_before"]


def test_without_the_adapters_the_model_says_something_else(adapted: Path, tiny_model_folder: Path) -> None:
    # Else the test above would pass of a merge that drops the adapters.
    assert not torch.allclose(logits(tiny_model_folder), logits(adapted), atol=1e-2)


def test_there_must_be_adapters_to_merge(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="holds no LoRA adapters to merge"):
        merge_lora(tiny_model_folder, tmp_path / "merged")


def test_int8_is_smaller_and_keeps_weights_to_half_a_level(tiny_model_folder: Path, tmp_path: Path) -> None:
    cost = quantize(tiny_model_folder, tmp_path / "int8")
    assert cost["bytes_after"] < cost["bytes_before"]
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["int8"] == {"skip": ["connector"]}
    # No weight moves by more than half a level of its channel.
    int8, _ = load_model(tmp_path / "int8")
    exact, _ = load_model(tiny_model_folder)
    layers = {name: module for name, module in int8.named_modules() if isinstance(module, Int8Linear)}
    assert len(layers) == cost["int8_layers"] > 0
    for name, layer in layers.items():
        moved = (exact.get_submodule(name).get_parameter("weight") - layer.dequantize()).abs()
        assert (moved <= 0.5001 * layer.scale[:, None]).all()


def test_adapters_must_be_merged_and_int8_is_made_once(adapted: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"merge them first \(`merge_lora`\)"):
        quantize(adapted, tmp_path / "a")
    quantize(tiny_model_folder, tmp_path / "int8")
    with pytest.raises(ModelFolderError, match="are int8 already"):
        quantize(tmp_path / "int8", tmp_path / "b")


def test_int8_says_the_same_whatever_the_batch(
    tiny_model_folder: Path, speech_like: Callable[[float, int], np.ndarray], tmp_path: Path
) -> None:
    quantize(tiny_model_folder, tmp_path / "int8")
    audio_lm = AudioLM(*load_model(tmp_path / "int8"))
    clips = [
        speech_like(duration_s, number) for number, duration_s in enumerate((2.0, 0.3, 5.0, 0.1, 1.0, 7.3, 0.5, 3.0))
    ]
    questions = ["Transcribe the speech." * (1 + number % 3) for number in range(8)]
    together = audio_lm.answer(clips, questions, max_new_tokens=16)
    alone = [audio_lm.answer([c], [q], max_new_tokens=16)[0] for c, q in zip(clips, questions, strict=True)]
    assert together == alone
    assert len({answer.text for answer in alone}) >= 4
