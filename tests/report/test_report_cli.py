from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from stapes.cli.main import app
from stapes.errors import StapesError
from stapes.report import collect, print_table, summarize


def run(*arguments: object):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_verb_prints_the_table_and_the_path_of_the_page(run_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    done = run(run_folder, "--samples", 1)
    assert done.exit_code == 0, done.output
    page = run_folder / "report/report.html"
    assert done.stdout.splitlines()[-1] == str(page)
    assert page.read_text().count("<audio") == 1
    assert (run_folder / "report/report.md").exists()


def test_json_is_one_document(run_folder, tmp_path):
    done = run(run_folder, "--out", tmp_path / "out", "--samples", 0, "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["report"] == str(tmp_path / "out/report.html")
    assert printed["runs"] == [{"run": "tiny", "folder": str(run_folder), "missing": [], "left_out": []}]
    assert [(v["run"], v["variant"], v["baseline"]) for v in printed["variants"]] == [
        ("tiny", name, "tune") for name in ("tune", "merge_lora", "quantize")
    ]
    scores = json.loads((run_folder / "eval/quantize/scores.json").read_text())
    columns = printed["variants"][2]["columns"]
    paired = scores["paired"]["metrics"]["asr.wer"]
    stored = scores["tasks"]["asr"]["metrics"]["wer"]
    assert columns["wer"] == {
        **stored,
        "n": 12,
        "best": False,
        "difference": {
            "against": "tune",
            "value": paired["difference"],
            "low": paired["low"],
            "high": paired["high"],
            "p_value": paired["p_value"],
            "unit": "points",
        },
    }
    assert columns["files_mb"]["value"] == pytest.approx(241.0)
    assert columns["files_mb"]["best"]
    assert columns["files_mb"]["difference"] == {
        "against": "tune",
        "value": pytest.approx(100 * (241 / 614 - 1)),
        "unit": "%",
    }
    assert columns["ttft_ms"]["p95"] == pytest.approx(315.7)
    assert printed["fronts"][0] == {"quality": "wer", "cost": "ttft_ms", "variants": ["quantize", "merge_lora"]}
    assert printed["circumstances"]["bench"]["threads"] == "2"
    assert printed["warnings"]["bench"] == []


def test_json_says_why_a_value_is_missing(run_folder):
    (run_folder / "bench/tune/bench.json").unlink()
    columns = summarize(collect([run_folder]))["variants"][0]["columns"]
    assert columns["rtf"] == {"value": None, "reason": "not measured: the run holds no bench/tune"}


def test_the_table_fits_100_columns_and_says_what_it_was_measured_on(run_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    (run_folder / "bench/quantize").rename(run_folder / "bench/quantize.partial")
    print_table(collect([run_folder]))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("┏") for line in lines) == 1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    firsts = {row[0]: row[1:] for row in rows if row[0]}
    assert list(firsts) == [
        *("WER, %", "CER, %", "CIDEr-D", "SPIDEr", "exact match, %"),
        *("parameters, M", "files, MB", "peak at load, MB", "peak at run, MB", "TTFT, ms", "TPOT, ms", "RTF"),
    ]
    assert firsts["TTFT, ms"] == ["412.0 p95 453.2", "398.0* p95 437.8", "–"]
    together = " ".join(printed.split())
    assert "n = 36 (12 asr, 12 audiocaption, 12 qa); cpu (Some CPU @ 2.0GHz); dtype float32; threads 2" in together
    assert "seed of the intervals 0" in together
    assert "tiny: bench/quantize: begun, not finished" in together
    assert "quantize: parameters, files, peak at load, peak at run, TTFT, TPOT, RTF not measured" in together


def test_what_an_earlier_recipe_made_is_named_and_left_out(run_folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    recipe = run_folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("- {kind: quantize}\n", ""))
    collected = collect([run_folder])
    assert summarize(collected)["runs"][0]["left_out"] == ["quantize", "eval/quantize", "bench/quantize"]
    print_table(collected)
    told = "tiny: made by an earlier recipe, and left out here: quantize, eval/quantize, bench/quantize"
    assert capsys.readouterr().out.splitlines()[-1] == told


def test_variants_that_do_not_fit_go_into_a_further_table(finished_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_table(collect([finished_run]))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("┏") for line in lines) == 2
    assert max(map(len, lines)) <= 80


def test_several_runs_go_to_one_page(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        shutil.copytree(finished_run, name)
    done = run("a", "b", "--samples", 0)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "report/report.html"
    assert "b/quantize" in (tmp_path / "report/report.html").read_text()


def test_mistakes_are_errors_of_the_user(tmp_path):
    done = run(tmp_path / "gone")
    assert isinstance(done.exception, StapesError)
    assert done.exit_code == 1
    assert not (tmp_path / "gone").exists()


def test_reporting_loads_no_torch(run_folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from stapes.report import build_report; "
        f"build_report([Path({str(run_folder)!r})], Path({str(tmp_path / 'out')!r}), num_samples=1, seed=0); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
