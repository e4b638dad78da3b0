from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stapes.assembly import save_model
from stapes.bench import NOTA, BenchSettings
from stapes.bench.runner import measure
from stapes.cli.bench import _outputs, _print_table, _settings
from stapes.cli.main import app
from stapes.errors import StapesError, UsageError

NOTHING = {"seed": 0, "audio": None, "num_threads": None, "device": None}


def test_json_goes_to_stdout_and_into_the_folder(tiny_model_folder, tmp_path):
    options = ["--protocol", "nota", "--warmup", "0", "--repeats", "1", "--threads", "1", "--seed", "3"]
    done = CliRunner().invoke(app, ["bench", str(tiny_model_folder), *options, "--json", "--out", str(tmp_path)])

    assert done.exit_code == 0, done.output
    (result,) = json.loads(done.stdout)
    assert (result["protocol"], result["warmup"], result["repeats"], result["seed"]) == ("nota", 0, 1, 3)
    assert result["environment"]["num_threads"] == 1
    assert json.loads((tmp_path / "tiny" / "bench.json").read_text()) == result
    assert "tiny" in done.stderr


def test_table_has_parts_as_rows_and_models_as_columns(tiny_model_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    settings = replace(NOTA, warmup=0, repeats=1)
    results = [measure(tiny_model_folder, settings, lambda done, of: None) for _ in range(2)]
    results[1]["variant"] = "other"
    _print_table(results, [Path("a/tiny"), Path("b/other")])

    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    rows = {line[0]: line[1:] for line in lines}
    assert ["", "tiny", "other"] in [[cell.strip() for cell in line.split("┃")[1:-1]] for line in printed.splitlines()]
    for part in ("features", "encoder", "connector", "prefill", "per_token", "ttft", "total", "prompt"):
        cells = [result["latency_ms"][part] for result in results]
        assert rows[f"{part}, ms"] == [f"{cell['p50']:.1f} / {cell['p95']:.1f}" for cell in cells]
    assert rows["total parameters, M"] == ["0.18", "0.18"]
    assert rows["nota memory, GiB"] == [f"{result['nota']['memory_gib']:.4f}" for result in results]
    assert "p50 / p95 of 1 runs after 0" in printed
    assert "memory is rss" in printed
    assert "reduced: fewer runs than the nota protocol prescribes" in printed


def test_defaults_are_those_of_the_recipe_and_of_nota():
    assert _settings("stapes", {"new_tokens": 8, "warmup": None}, NOTHING) == BenchSettings(10.0, 8, 3, 20)
    assert _settings("nota", {"audio_s": None, "repeats": 5}, NOTHING) == replace(NOTA, repeats=5)


@pytest.mark.parametrize(
    ("given", "audio", "named"),
    [({"audio_s": 5.0, "new_tokens": 4}, None, "--audio-s, --new-tokens"), ({}, Path("clip.wav"), "--audio")],
)
def test_what_nota_prescribes_cannot_be_given(given, audio, named):
    with pytest.raises(UsageError, match=f"leave out {named}$"):
        _settings("nota", given, {**NOTHING, "audio": audio})


def test_each_model_has_its_own_file(tmp_path):
    models = [Path("runs/a/tune"), Path("runs/a/int8")]
    assert _outputs(models, None) == [None, None]
    assert _outputs(models[:1], tmp_path / "x.json") == [tmp_path / "x.json"]
    assert _outputs(models, tmp_path) == [tmp_path / "tune" / "bench.json", tmp_path / "int8" / "bench.json"]
    with pytest.raises(UsageError, match=r"x\.json: one file cannot take 2 models"):
        _outputs(models, tmp_path / "x.json")
    with pytest.raises(UsageError, match="several models are called `tune`"):
        _outputs([Path("runs/a/tune"), Path("runs/b/tune")], tmp_path)


def test_mistakes_are_found_before_any_model_is_loaded(tmp_path):
    done = CliRunner().invoke(app, ["bench", str(tmp_path), "--audio-s", "0.01"])
    assert isinstance(done.exception, StapesError)
    assert str(done.exception) == "bench: audio_s is 0.01; give at least 0.025"


def test_that_transcripts_are_not_searched_for_is_said(tiny_model_and_processor, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    results = []
    for name, weight in (("hears", 0.5), ("plain", 0.0)):
        model, processor = tiny_model_and_processor("ctc_compressor")
        model.config.connector_config.ctc_weight = weight
        save_model(model, processor, tmp_path / name)
        results.append(measure(tmp_path / name, replace(NOTA, warmup=0, repeats=1), lambda done, of: None))
    assert [result.get("leaves_out_transcript_search") for result in results] == [True, None]
    line = "latencies leave out the search for a transcript before the first token: hears\n"
    _print_table(results, [tmp_path / "hears", tmp_path / "plain"])
    assert line in capsys.readouterr().out
    _print_table(results[1:], [tmp_path / "plain"])
    assert "search" not in capsys.readouterr().out
    told = " ".join(CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "200"}).stdout.split())
    assert "search for a transcript before the first token (models with ctc_weight) is not timed" in told
