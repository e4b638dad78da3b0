"""`stapes convert`: a folder and what was left out, or one line and no folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModel
from typer.testing import CliRunner, Result

from stapes.cli.main import app
from stapes.convert.beats import theirs_of_beats
from stapes.convert.eat import theirs_of_eat
from stapes.errors import WeightsError
from stapes.model.beats import BeatsConfig, BeatsEncoder
from stapes.model.eat import EatConfig, EatEncoder, sincos_positions


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["convert", *arguments])


def beats_file(folder: Path) -> tuple[Path, BeatsEncoder]:
    torch.manual_seed(0)
    model = BeatsEncoder(
        BeatsConfig(
            patch_embedding_size=8,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=48,
            conv_kernel=8,
            conv_groups=2,
            num_buckets=16,
            max_distance=40,
        )
    )
    cfg = {
        "embed_dim": 8,
        "encoder_embed_dim": 24,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_embed_dim": 48,
        "conv_pos": 8,
        "conv_pos_groups": 2,
        "num_buckets": 16,
        "max_distance": 40,
        "deep_norm": True,
        "gru_rel_pos": True,
        "relative_position_embedding": True,
        "input_patch_size": 16,
        "encoder_layerdrop": 0.05,
    }
    torch.save({"cfg": cfg, "model": renamed(model, theirs_of_beats)}, folder / "beats.pt")
    return folder / "beats.pt", model


def eat_file(folder: Path) -> tuple[Path, EatEncoder]:
    torch.manual_seed(0)
    model = EatEncoder(EatConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=48))
    tensors = renamed(model, theirs_of_eat)
    tensors["fixed_positional_encoder.positions"] = sincos_positions(4, 8, 64)[None]
    torch.save({f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "eat.pt")
    return folder / "eat.pt", model


def renamed(model: Any, theirs: Any) -> dict[str, Any]:
    return {theirs(name): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "make", "left_out"),
    [
        ("beats", beats_file, "left out: cfg.encoder_layerdrop: steers training or the classifier"),
        ("eat", eat_file, "left out: model.fixed_positional_encoder.positions: fixed sines and cosines"),
    ],
)
def test_a_sound_encoder_becomes_a_folder(kind: str, make: Any, left_out: str, tmp_path: Path) -> None:
    path, original = make(tmp_path)
    done = run(kind, str(path), "--out", str(tmp_path / "made"))
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'made'}\n"
    assert left_out in done.stderr
    made = AutoModel.from_pretrained(tmp_path / "made")
    weights = original.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made.state_dict().items())
    front_end: Any = AutoFeatureExtractor.from_pretrained(tmp_path / "made")
    assert front_end.model_input_names == ["sound_features", "sound_features_mask"]
    again = run(kind, str(path), "--out", str(tmp_path / "json"), "--json")
    told = json.loads(again.stdout)
    assert told["folder"] == str(tmp_path / "json")
    assert json.loads((tmp_path / "json" / "conversion.json").read_text())["ignored"] == told["ignored"]


@pytest.mark.parametrize(("kind", "make"), [("eat", beats_file), ("beats", eat_file)])
def test_the_other_kind_is_refused_and_leaves_nothing(kind: str, make: Any, tmp_path: Path) -> None:
    path, _ = make(tmp_path)
    done = run(kind, str(path), "--out", str(tmp_path / "made"))
    assert isinstance(done.exception, WeightsError)
    assert str(path) in str(done.exception)
    assert list(tmp_path.iterdir()) == [path]


def test_salmonn_says_what_it_wants(tmp_path: Path) -> None:
    path, _ = beats_file(tmp_path)
    names = ["--speech-encoder", "a/b", "--llm", "c/d", "--out", str(tmp_path / "made")]
    done = run("salmonn", str(path), *names)
    assert str(done.exception).startswith(f"{path}: is not a checkpoint of the SALMONN family")
    assert run("salmonn", str(path), *names[2:]).exit_code == 2
    done = run("salmonn", str(tmp_path / "none.pth"), *names)
    assert str(done.exception) == f"{tmp_path / 'none.pth'}: no such file"
    assert list(tmp_path.iterdir()) == [path]
