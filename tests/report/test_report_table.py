from __future__ import annotations

import pytest
from written_runs import make_bench

from stapes.bench.protocols import BenchSettings
from stapes.bench.runner import measure
from stapes.data.sample import load_manifest
from stapes.evaluate.predict import evaluate_model
from stapes.files import read_json, write_json
from stapes.report import collect
from stapes.report.table import COST, QUALITY, build_table, p_text, signed, three_figures


def metric(value, low, high, unit="%", better="lower"):
    return {"value": value, "low": low, "high": high, "unit": unit, "better": better}


def write_scores(folder, name, tasks, paired=None):
    scores = {"variant": name, "n": 100, "tasks": tasks, "environment": {}}
    write_json(folder / "eval" / name / "scores.json", scores | ({"paired": paired} if paired else {}))


@pytest.fixture
def small_run(tmp_path):
    """Two variants by hand: `int8` is worse in WER, better in exact match, and was not measured."""
    asr = {"n": 80, "metrics": {"wer": metric(31.24, 27.0, 35.96), "cer": metric(12.0, 10.0, 14.0)}}
    qa = {"n": 20, "metrics": {"exact_match": metric(80.0, 60.0, 95.0, better="higher")}}
    write_scores(tmp_path, "tune", {"asr": asr, "qa": qa})
    asr = {"n": 80, "metrics": {"wer": metric(33.0, 29.0, 37.0), "cer": metric(12.04, 10.0, 14.0)}}
    qa = {"n": 20, "metrics": {"exact_match": metric(90.0, 75.0, 100.0, better="higher")}}
    differences = {
        "asr.wer": {"difference": 1.76, "low": 0.3, "high": 3.2, "p_value": 0.0319, "n": 80},
        "asr.cer": {"difference": 0.04, "low": -1.0, "high": 1.1, "p_value": 0.9, "n": 80},
        "qa.exact_match": {"difference": 10.0, "low": 0.0, "high": 20.0, "p_value": 0.0004, "n": 20},
    }
    write_scores(tmp_path, "int8", {"asr": asr, "qa": qa}, {"against": "tune", "metrics": differences})
    write_json(tmp_path / "bench/tune/bench.json", make_bench("tune"))
    return tmp_path


def test_scores_have_values_intervals_and_paired_differences(small_run):
    table = build_table(collect([small_run]), QUALITY)
    assert [variant.label for variant, _ in table.rows] == ["tune", "int8"]
    wer = table.cell("tune", "wer")
    assert (wer.text, wer.spread, wer.change, wer.verdict, wer.n) == ("31.2", "27.0 – 36.0", "", "", 80)
    wer = table.cell("int8", "wer")
    assert (wer.text, wer.spread) == ("33.0", "29.0 – 37.0")
    assert (wer.change, wer.verdict) == ("+1.8 (+0.3 … +3.2), p = 0.032", "worse")
    cer = table.cell("int8", "cer")
    assert (cer.change, cer.verdict) == ("±0.0 (−1.0 … +1.1), p = 0.900", "no clear difference")
    match = table.cell("int8", "exact_match")
    assert (match.change, match.verdict) == ("+10.0 (±0.0 … +20.0), p < 0.001", "better")


def test_costs_have_units_percentiles_and_changes(finished_run):
    table = build_table(collect([finished_run]), COST)
    shown = {cell.column.title: (cell.text, cell.spread, cell.change) for cell in table.rows[2][1]}
    assert shown == {
        "parameters, M": ("160", "", "−0.3\N{NO-BREAK SPACE}%"),
        "files, MB": ("241", "", "−61\N{NO-BREAK SPACE}%"),
        "peak at load, MB": ("800", "", "−43\N{NO-BREAK SPACE}%"),
        "peak at run, MB": ("880", "", "−41\N{NO-BREAK SPACE}%"),
        "TTFT, ms": ("287.0", "p95 315.7", "−30\N{NO-BREAK SPACE}%"),
        "TPOT, ms": ("19.4", "p95 21.3", "−49\N{NO-BREAK SPACE}%"),
        "RTF": ("0.058", "p95 0.064", "−41\N{NO-BREAK SPACE}%"),
    }
    assert [cell.change for cell in table.rows[0][1]] == [""] * 7


def test_the_best_is_the_lowest_or_the_highest_and_what_prints_like_it(small_run, finished_run):
    table = build_table(collect([small_run]), QUALITY)
    best = {
        cell.column.key: (label.name, cell.is_best) for label, cells in table.rows for cell in cells if cell.is_best
    }
    assert best == {"wer": ("tune", True), "exact_match": ("int8", True)}  # both CERs print as 12.0

    table = build_table(collect([finished_run]), COST)
    for key, labels in {
        "parameters": ["merge_lora", "quantize"],
        "files_mb": ["quantize"],
        "rtf": ["quantize"],
    }.items():
        assert [variant.label for variant, _ in table.rows if table.cell(variant.label, key).is_best] == labels


def test_one_variant_alone_is_not_the_best(tmp_path):
    write_json(tmp_path / "bench/tune/bench.json", make_bench("tune"))
    assert not any(cell.is_best for cell in build_table(collect([tmp_path]), COST).rows[0][1])


def test_what_is_missing_is_a_dash_with_its_reason_and_never_zero(small_run):
    collected = collect([small_run])
    quality, cost = build_table(collected, QUALITY), build_table(collected, COST)
    assert quality.cell("tune", "cider_d").text == "–"
    assert quality.notes == ("tune, int8: CIDEr-D, SPIDEr not measured: the manifests hold no audiocaption samples.",)
    assert {cell.text for cell in cost.rows[1][1]} == {"–"}
    assert not any(cell.is_best or cell.change for cell in cost.rows[1][1])
    assert cost.notes == (
        "int8: parameters, files, peak at load, peak at run, TTFT, TPOT, RTF not measured: the run holds no "
        "bench/int8.",
    )


def test_a_field_that_a_file_lacks_is_missing_and_nothing_else(run_folder):
    bench = make_bench("quantize")
    del bench["latency_ms"]["per_token"], bench["memory_bytes"]["load_peak"]
    write_json(run_folder / "bench/quantize/bench.json", bench)
    table = build_table(collect([run_folder]), COST)
    assert [cell.text for cell in table.rows[2][1]] == ["160", "241", "–", "880", "287.0", "–", "0.058"]
    assert table.notes == ("quantize: peak at load, TPOT not measured: bench.json does not tell it.",)
    assert table.cell("merge_lora", "tpot_ms").is_best


def test_unlike_measurements_are_neither_ranked_nor_subtracted(run_folder):
    bench = make_bench("quantize")
    bench["environment"]["num_threads"] = 4
    write_json(run_folder / "bench/quantize/bench.json", bench)
    table = build_table(collect([run_folder]), COST)
    for key in ("load_peak_mb", "run_peak_mb", "ttft_ms", "tpot_ms", "rtf"):
        assert not any(table.cell(variant.label, key).is_best for variant, _ in table.rows)
        assert table.cell("quantize", key).change == ""
    assert table.cell("quantize", "files_mb").is_best
    assert table.cell("merge_lora", "ttft_ms").change == "−3.4\N{NO-BREAK SPACE}%"


def test_scores_on_other_samples_are_not_ranked(finished_run, make_run):
    runs = [finished_run, make_run("b", damages=(0.0, 0.0, 0.0))]
    path = runs[1] / "eval/tune/predictions.jsonl"
    path.write_text(path.read_text().replace('"id": "asr-0"', '"id": "asr-x"'))
    table = build_table(collect(runs), QUALITY)
    assert not any(table.cell(variant.label, "wer").is_best for variant, _ in table.rows)
    assert table.cell("b/tune", "cider_d").is_best


def test_files_of_real_measurements_fill_every_cell(tiny_model_folder, speech_like, tmp_path):
    """The writers and this reader agree on names and places."""
    import soundfile

    for name, task, prompt in (("a", "asr", ""), ("b", "audiocaption", ""), ("c", "qa", '"prompt": "Is it?", ')):
        soundfile.write(tmp_path / f"{name}.wav", speech_like(0.5, 0), 16_000)
        with (tmp_path / "test.jsonl").open("a") as stream:
            stream.write(
                f'{{"id": "{name}", "audio": "{name}.wav", "task": "{task}", {prompt}"target": "yes it is"}}\n'
            )
    assert len(load_manifest(tmp_path / "test.jsonl")) == 3
    settings = {"batch_size": 3, "max_new_tokens": 4, "limit": None, "seed": 0}
    out = tmp_path / "run"
    evaluate_model(tiny_model_folder, [tmp_path / "test.jsonl"], out / "eval/tiny", against=None, **settings)
    measured = measure(tiny_model_folder, BenchSettings(0.5, 2, 0, 1, num_threads=1), lambda done, of: None)
    write_json(out / "bench/tiny/bench.json", measured)

    collected = collect([out])
    quality, cost = build_table(collected, QUALITY), build_table(collected, COST)
    # SPIDEr tells itself why there is none.
    assert (quality.notes, cost.notes) == (("tiny: SPIDEr not measured: wants at least two samples.",), ())
    scores = read_json(out / "eval/tiny/scores.json")
    assert quality.cell("tiny", "wer").value == scores["tasks"]["asr"]["metrics"]["wer"]["value"]
    assert cost.cell("tiny", "run_peak_mb").value == pytest.approx(measured["memory_bytes"]["run_peak"] / 1e6)
    assert cost.cell("tiny", "tpot_ms").value == measured["latency_ms"]["per_token"]["p50"]
    assert cost.cell("tiny", "parameters").value == pytest.approx(measured["parameters"]["total"] / 1e6)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (1.234, "1.23"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1234.5, "1,234"),
    ],
)
def test_three_figures_count(value, text):
    assert three_figures(value) == text


def test_signs_and_p_values():
    assert [signed(value, 1) for value in (1.25, -0.5, 0.04, -0.04)] == ["+1.2", "−0.5", "±0.0", "±0.0"]
    assert [p_text(p) for p in (0.0009, 0.001998, 1.0)] == ["p < 0.001", "p = 0.002", "p = 1.000"]
