"""Checkpoint files are data: nothing in them runs, and nothing of them is lost unnoticed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stapes.convert.checkpoints import fill, read_checkpoint
from stapes.errors import WeightsError
from stapes.model import EatConfig, EatEncoder

ORIGINAL = {"model": {"weight": torch.arange(4.0)}, "cfg": {"layers": 2, "norm_first": False}}


class Intruder:
    """What it is pickled as runs a command when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch intruded",)


def test_tensors_and_plain_values_are_read(tmp_path: Path) -> None:
    torch.save(ORIGINAL, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert found["cfg"] == ORIGINAL["cfg"]
    assert torch.equal(found["model"]["weight"], torch.arange(4.0))
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert read_checkpoint(tmp_path / "a.safetensors")["weight"].tolist() == [1, 1]


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**ORIGINAL, "args": Intruder()}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt: holds more than tensors and plain values, and stapes runs no code"):
        read_checkpoint(tmp_path / "a.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    torch.save({**ORIGINAL, "args": argparse.Namespace(layers=2)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"\(argparse\.Namespace\); .*save only its tensors: torch\.save\("):
        read_checkpoint(tmp_path / "a.pt")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pt: no such file$"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save(ORIGINAL, tmp_path / "whole.pt")
    blob = (tmp_path / "whole.pt").read_bytes()
    for name, content in {"half.pt": blob[: len(blob) // 2], "empty.pt": b"", "text.pt": b"hello, world" * 100}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
            read_checkpoint(tmp_path / name)
    # Cut off elsewhere torch says nothing but "Invalid argument", and of other bytes that they are code.
    torch.save({"model": {"a": torch.zeros(20_000)}}, tmp_path / "large.pt")
    large = (tmp_path / "large.pt").read_bytes()
    for name, content in {"cut.pt": large[:30_000], "noise.pt": b"\xd8\x4d\x00\x00" * 50}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name[:-3]}\.pt: torch cannot read it, it may be cut short"):
            read_checkpoint(tmp_path / name)
    (tmp_path / "a.safetensors").write_bytes(blob)
    with pytest.raises(WeightsError, match=r"a\.safetensors: not a safetensors file, or cut short"):
        read_checkpoint(tmp_path / "a.safetensors")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match=r"list\.pt: holds a list, not a dict of tensors$"):
        read_checkpoint(tmp_path / "list.pt")


@pytest.fixture
def model() -> EatEncoder:
    return EatEncoder(EatConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))


def renamed(model: EatEncoder) -> dict[str, Tensor]:
    return {f"their.{name}": torch.full_like(weight, 0.5) for name, weight in model.state_dict().items()}


def test_a_model_is_filled(model: EatEncoder) -> None:
    tensors = renamed(model)
    tensors["their.cls_token"] = tensors["their.cls_token"].half()
    fill(model, tensors, Path("a.pt"), lambda name: f"their.{name}")
    assert all(torch.equal(weight, torch.full_like(weight, 0.5)) for weight in model.state_dict().values())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_whatever_does_not_fit_is_named(model: EatEncoder) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tensors: dict[str, Any] = renamed(model)
    del tensors["their.pre_norm.bias"]
    tensors["stranger"] = torch.zeros(1)
    tensors["their.pre_norm.weight"] = torch.zeros(9)
    tensors["their.cls_token"] = torch.zeros(1, 1, 8, dtype=torch.int8)
    tensors["their.layers.0.fc1.bias"] = {"a": 1}
    with pytest.raises(WeightsError) as caught:
        fill(model, tensors, Path("a.pt"), lambda name: f"their.{name}")
    assert str(caught.value) == (
        "a.pt: does not fit EatEncoder, of which 17 weights have to be there and nothing else: "
        "`their.pre_norm.bias` is missing; `stranger` is unexpected; `their.cls_token` is no tensor of real numbers; "
        "`their.layers.0.fc1.bias` is no tensor of real numbers; `their.pre_norm.weight` has shape [9], not [8]"
    )
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
