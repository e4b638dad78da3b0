"""The model that is meant when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapes import defaults
from stapes.data.sample import load_manifest
from stapes.defaults import example_clips, find_model
from stapes.errors import ModelFolderError

SHIPPED = Path(__file__).parents[1] / "models" / "stapes-tiny"


def test_a_named_folder_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model("runs/tiny/tune") == Path("runs/tiny/tune")
    monkeypatch.chdir(tmp_path)
    assert find_model("stapes-tiny") == find_model() == SHIPPED
    (tmp_path / "stapes-tiny").mkdir()
    assert find_model("stapes-tiny") == Path("stapes-tiny")
    assert find_model() == SHIPPED


def test_an_installation_without_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "__file__", str(tmp_path / "lib" / "stapes" / "defaults.py"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / name))
    with pytest.raises(ModelFolderError, match=r"stapes-tiny: not in .*; install stapes with its models, or name a"):
        find_model()
    assert example_clips() is None
    installed = tmp_path / "data" / "share" / "stapes" / "models" / "stapes-tiny"
    installed.mkdir(parents=True)
    (installed / "config.json").write_text("{}")
    assert find_model() == installed


def test_the_example_clips_are_there_and_were_not_trained_on() -> None:
    manifest = example_clips()
    assert manifest is not None
    clips = load_manifest(manifest)
    assert len(clips) == 8
    assert all(clip.audio.exists() for clip in clips)
    data = Path(__file__).parents[1] / "data"
    tested = {s.id for name in ("speech", "sounds") for s in load_manifest(data / f"{name}_test.jsonl")}
    assert {clip.id for clip in clips} <= tested


def test_the_shipped_model_is_small_and_pinned() -> None:
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size < 60e6
    base = defaults.Path(SHIPPED / "base_weights.json").read_text()
    assert base.count('"sha256"') >= 4
