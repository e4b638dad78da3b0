"""Merging: a folder with adapters in, the same answers without adapters out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stapes.assembly import file_bytes, load_model, save_model
from stapes.compress import merge_lora
from stapes.errors import ModelFolderError
from stapes.files import read_json, write_json
from stapes.model import StapesForConditionalGeneration


def save_adapted(tiny_model_and_processor: Callable, folder: Path, target_modules: list[str]) -> Path:
    """Write a complete folder whose adapters are trained, that is: not zero."""
    model, processor = tiny_model_and_processor()
    model.add_lora(r=2, lora_alpha=4, target_modules=target_modules)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.config.trained_parts = ["connector", "lora"]
    model.generation_config.max_length = 77
    save_model(model, processor, folder)
    return folder


@pytest.fixture
def adapted(tiny_model_and_processor: Callable, tmp_path: Path) -> Path:
    return save_adapted(tiny_model_and_processor, tmp_path / "adapted", ["q_proj", "v_proj", "down_proj"])


@torch.no_grad()
def logits(model: StapesForConditionalGeneration) -> Tensor:
    return model(input_ids=torch.arange(1, 20)[None]).logits


def test_merging_keeps_what_the_model_says(adapted: Path, tmp_path: Path) -> None:
    work = tmp_path / "merge_lora.partial"
    work.mkdir()
    write_json(work / "step.json", {"complete": False})
    cost = merge_lora(adapted, work)

    before, processor = load_model(adapted)
    after, merged_processor = load_model(work)
    torch.testing.assert_close(logits(after), logits(before), atol=1e-5, rtol=1e-5)
    plain = StapesForConditionalGeneration.from_pretrained(work)
    assert torch.equal(logits(plain.eval()), logits(after))
    assert not [name for name in after.state_dict() if "lora" in name or "base_layer" in name]
    assert after.lora_layers() == []
    assert after.config.lora is None
    assert after.config.trained_parts == ["connector", "language_model"]
    assert after.num_parameters_by_part() == {
        **before.num_parameters_by_part(),
        "lora": 0,
        "total": before.num_parameters_by_part()["total"] - before.num_parameters_by_part()["lora"],
    }
    assert after.generation_config.to_dict() == before.generation_config.to_dict()
    assert merged_processor.to_dict() == processor.to_dict()
    assert read_json(work / "step.json") == {"complete": False}  # the step's own, not its work
    assert {**cost, "seconds": 0} == {
        "merged_layers": 6,
        "bytes_before": file_bytes(adapted),
        "bytes_after": file_bytes(work),
        "seconds": 0,
    }
    assert 0 < cost["bytes_after"] < cost["bytes_before"]


def test_without_the_adapters_the_model_says_something_else(adapted: Path, tiny_model_folder: Path) -> None:
    # Else the test above would pass of a merge that drops the adapters.
    assert not torch.allclose(logits(load_model(tiny_model_folder)[0]), logits(load_model(adapted)[0]), atol=1e-2)


def test_there_must_be_adapters_to_merge(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError) as error:
        merge_lora(tiny_model_folder, tmp_path / "merged")
    assert str(error.value) == f"{tiny_model_folder}: holds no LoRA adapters to merge; use the folder as it is"
    assert not (tmp_path / "merged").exists()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_adapters_of_tied_embeddings_are_refused(tiny_model_and_processor: Callable, tmp_path: Path) -> None:
    """Merged into the table they would change the head, which is the same tensor."""
    adapted = save_adapted(tiny_model_and_processor, tmp_path / "adapted", ["embed_tokens"])
    with pytest.raises(ModelFolderError, match="the adapter of the embeddings cannot be merged"):
        merge_lora(adapted, tmp_path / "merged")


def test_adapters_that_are_no_numbers_are_refused(tiny_model_and_processor: Callable, tmp_path: Path) -> None:
    model, processor = tiny_model_and_processor()
    model.add_lora(r=2, target_modules=["q_proj"])
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.constant_(parameter, torch.nan)
    save_model(model, processor, tmp_path / "adapted")
    with pytest.raises(ModelFolderError, match="adapted: NaNs detected"):
        merge_lora(tmp_path / "adapted", tmp_path / "merged")
