"""`stapes plan` from the shell: tables, JSON, budgets, and mistakes that are told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from stapes.cli.main import app
from stapes.errors import UsageError
from stapes.plan import calibration_path

RECIPE = {
    "name": "salmonn-3b",
    "model": {
        "speech_encoder": "openai/whisper-large-v2",
        "sound_encoder": "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2",
        "llm": "meta-llama/Llama-3.2-3B-Instruct",
        "connector": {"kind": "windowed_qformer", "window_s": 0.34, "tail": "drop"},
        "prompt": "plain",
        "pad_audio_to_s": 30,
    },
    "train": {
        "tune": {
            "data": {"none.jsonl": 1},
            "max_steps": 1,
            "trainable": ["connector", "lora"],
            "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
        }
    },
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "salmonn.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_the_published_column_is_one_command(recipe: str) -> None:
    (one,) = run_json(recipe, "--protocol", "nota")
    assert one["memory_bytes"]["peak_gib"] == pytest.approx(9.1761, rel=0.001)
    assert one["device"] == "v100-32gb"
    assert one["num_audio_tokens"] == 88
    assert one["sources"]["llm"] == "published table" or one["sources"]["llm"].endswith("config.json")


def test_keys_can_be_changed_and_int8_is_not_published(recipe: str) -> None:
    changes = ["--set", "model.sound_encoder=null", "--set", "compress=[{kind: merge_lora}, {kind: quantize}]"]
    plans = run_json(recipe, "--protocol", "nota", *changes)
    assert [plan["variant"] for plan in plans] == ["tune", "merge_lora"]
    assert plans[0]["parts"]["sound_encoder"] is None


def test_the_table_names_load_and_run_and_what_it_rests_on(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = run(recipe, "--device", "v100-32gb", "--dtype", "float16", "--audio-s", "30")
    for text in ("loading", "running", "ttft, ms", "llama.cpp", "stated rates", "shape of llm: "):
        assert text in shown
    uncalibrated = run(recipe)
    assert "no times: this machine's rates are not known" in uncalibrated
    assert "memory leaves out the process itself" in uncalibrated


def test_a_budget_ranks_and_suggests(recipe: str, tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    values: dict[str, Any] = json.loads(json.dumps(RECIPE))
    values["name"] = "small"
    values["model"] |= {"speech_encoder": "openai/whisper-base", "llm": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    small.write_text(yaml.safe_dump(values))
    arguments = (recipe, str(small), "--device", "v100-32gb", "--budget", "memory=12GiB,ttft=1s")
    first, second = run_json(*arguments)
    assert (first["recipe"], first["fits"]) == ("small", True)
    assert (second["recipe"], second["fits"]) == ("salmonn-3b", False)
    assert second["shares"]["memory"] > 1 > second["shares"]["ttft"]
    assert second["change"] == ["train.tune.quantization={bits: 4, kind: nf4}"]
    shown = run(*arguments)
    assert "would fit with --set 'train.tune.quantization={bits: 4, kind: nf4}'" in shown


def test_a_measured_machine_has_times(recipe: str) -> None:
    from test_plan_rates import VALUES

    calibration_path(2).parent.mkdir(parents=True)
    calibration_path(2).write_text(json.dumps({**VALUES, "linear_sizes": [100, 400]}))
    (one,) = run_json(recipe, "--threads", "2")
    assert one["latency_ms"]["ttft"] > 0
    assert "2 threads" in one["latency_ms"]["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recipe"),
        (["--search"], "--search wants a --budget"),
        (["RECIPE", "--search", "--budget", "memory=1GiB"], "no recipe"),
        (["RECIPE", "--protocol", "nota", "--device", "cpu"], "measured on a GPU"),
        (["RECIPE", "--device", "h1000"], "did you mean `h100-80gb`"),
        (["RECIPE", "--budget", "memory=lots"], "wanted memory=4GiB"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, recipe: str) -> None:
    given = [recipe if argument == "RECIPE" else argument for argument in arguments]
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(app, ["plan", *given], catch_exceptions=False)


@pytest.mark.parametrize(
    "words",
    [["plan"], ["plan", "--budget", "memory=1GiB"], ["plan", "SALMONN"], ["ablate"], ["ablate", "--csv", "rows.csv"]],
)
def test_a_recipe_of_which_nothing_is_published_is_named(words: list[str], recipe: str, tmp_path: Path) -> None:
    from test_plan_models import write_model

    model = write_model(tmp_path / "model", lora=None, int8={"skip": ["connector"]})
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "start_from": str(model)}))
    verb, *options = [recipe if word == "SALMONN" else word for word in words]
    with pytest.raises(UsageError, match="small: --protocol nota has no int8 linears"):
        CliRunner().invoke(app, [verb, str(path), "--protocol", "nota", *options], catch_exceptions=False)


def test_planning_loads_no_torch(recipe: str) -> None:
    code = (
        "import sys; from stapes.cli.main import app\n"
        f"try: app(['plan', {recipe!r}, '--protocol', 'nota', '--json'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
