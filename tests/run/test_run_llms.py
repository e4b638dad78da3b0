"""Runs whose LLM is in 4 bits, or brings its own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stapes.assembly import load_model
from stapes.errors import WeightsError
from stapes.files import read_json
from stapes.model import nf4
from stapes.recipe import load_recipe
from stapes.run import check_recipe, run_recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path / "cache"))


def test_qlora_from_audio_to_a_report(small_parts: Path, tmp_path: Path) -> None:
    changes = {"bench": None, "train.tune.quantization": {"double_quant": True}}
    recipe = load_recipe(small_parts / "small.yaml", changes)
    check_recipe(recipe, "small.yaml")
    folder = tmp_path / "run"
    summary = run_recipe(recipe, folder)
    assert summary.report is not None
    layers = {
        name: len(list(nf4.layers_of(load_model(folder / name)[0])))
        for name in ("align", "tune", "merge_lora", "quantize")
    }
    assert layers == {"align": 0, "tune": 14, "merge_lora": 0, "quantize": 0}
    assert read_json(folder / "quantize" / "step.json")["result"]["int8_layers"] > 14
    again = run_recipe(recipe, folder)
    assert (again.made, again.skipped) == ([], summary.made)


def test_code_beside_the_llm_is_allowed_by_the_recipe(small_parts: Path, tmp_path: Path) -> None:
    parts = Path(shutil.copytree(small_parts, tmp_path / "parts"))
    config = json.loads((parts / "llm" / "config.json").read_text())
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (parts / "llm" / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of", "auto_map": auto_map}))
    (parts / "llm" / "code.py").write_text("raise ValueError('it ran')\n")
    recipe = load_recipe(parts / "small.yaml")
    with pytest.raises(WeightsError, match=r"whose code lies with its weights \(code\.py\) and would run"):
        check_recipe(recipe, "small.yaml")
    # That it is allowed shows in its running.
    recipe = load_recipe(parts / "small.yaml", {"model.trust_remote_code": True})
    with pytest.raises(WeightsError, match="the code that lies with its weights cannot be used: it ran"):
        check_recipe(recipe, "small.yaml")
