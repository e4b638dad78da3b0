from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from written_runs import make_bench, make_environment, make_predictions, write_eval

from stapes.files import read_json, write_json
from stapes.report import Collected, collect
from stapes.report.circumstances import Circumstances, describe_bench, describe_scores, is_comparable, shorten


def scored(collected: Collected) -> Circumstances:
    found = describe_scores(collected)
    assert found is not None
    return found


def measured(collected: Collected) -> Circumstances:
    found = describe_bench(collected)
    assert found is not None
    return found


def change_bench(folder: Path, variant: str, **changes) -> None:
    bench = make_bench(variant)
    bench["environment"] |= changes.pop("environment", {})
    write_json(folder / "bench" / variant / "bench.json", {**bench, **changes})


def test_equal_circumstances_stand_once_and_warn_of_nothing_but_few_samples(finished_run):
    collected = collect([finished_run])
    scores, bench = scored(collected), measured(collected)
    facts = dict(scores.facts)
    assert facts["samples"] == "n = 36 (12 asr, 12 audiocaption, 12 qa)"
    assert facts["device"] == "cpu (Some CPU @ 2.0GHz)"
    assert (facts["threads"], facts["torch"], facts["commit"]) == ("2", "2.13.0", "0123456789ab")
    assert (facts["seed of the intervals"], facts["date"]) == ("0", "2026-01-02")
    assert facts["answers cut off at that limit"] == "0"
    assert "samples taken of each manifest" not in facts
    assert scores.warnings == (
        "Only 12 asr and 12 audiocaption and 12 qa samples: below some 20, intervals are too narrow.",
    )
    facts = dict(bench.facts)
    assert (facts["clip"], facts["runs that count"]) == ("10 s of speech-shaped noise", "10")
    assert bench.warnings == ()


def test_other_threads_and_versions_are_named_with_their_variants(run_folder):
    versions = {"stapes": "0.1.0", "torch": "2.12.0"}
    change_bench(run_folder, "quantize", environment={"num_threads": 4, "versions": versions, "dtype": "int8"})
    bench = measured(collect([run_folder]))
    assert bench.warnings == (
        "Different threads: 2 (tune, merge_lora); 4 (quantize).",
        "Different torch: 2.13.0 (tune, merge_lora); 2.12.0 (quantize).",
        "So latency and peak memory do not compare: no best value is marked, no Pareto front drawn.",
    )
    assert dict(bench.facts)["dtype"] == "float32 (tune, merge_lora); int8 (quantize)"


def test_another_version_alone_warns_but_still_compares(run_folder):
    change_bench(run_folder, "tune", environment={"python": "3.12.1"})
    collected = collect([run_folder])
    assert measured(collected).warnings == ("Different Python: 3.12.1 (tune); 3.11.9 (merge_lora, quantize).",)
    assert is_comparable(collected.variants, "bench")


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": {"device": "cuda:0"}},
        {"environment": {"device_name": "Another CPU"}},
        {"audio_s": 5.0},
        {"new_tokens": 8},
        {"protocol": "nota"},
        {"audio": "clip.wav"},
    ],
)
def test_what_keeps_measurements_from_comparing(run_folder, changes):
    change_bench(run_folder, "tune", **changes)
    assert not is_comparable(collect([run_folder]).variants, "bench")


def test_a_run_stands_for_its_variants(finished_run, tmp_path):
    runs = [shutil.copytree(finished_run, tmp_path / name) for name in "ab"]
    for variant in ("tune", "merge_lora", "quantize"):
        change_bench(runs[1], variant, environment={"num_threads": 4})
    change_bench(runs[1], "tune", environment={"num_threads": 4, "os": "Darwin"})
    warnings = measured(collect(runs)).warnings
    assert warnings[0] == "Different threads: 2 (a); 4 (b)."
    assert warnings[1] == "Different system: Linux-6.1 (a, b/merge_lora, b/quantize); Darwin (b/tune)."


def test_other_samples_and_settings_are_warned_of(run_folder):
    write_eval(run_folder, "extra", make_predictions(run_folder, 0.2, 0), max_new_tokens=8)
    path = run_folder / "eval/extra/predictions.jsonl"
    path.write_text(path.read_text().replace('"target": "Good morning"', '"target": "Good night"'))
    collected = collect([run_folder])
    warnings = scored(collected).warnings
    assert "Different limit of an answer: 48 tokens (tune, merge_lora, quantize); 8 tokens (extra)." in warnings
    assert (
        "Variants were scored on different asr samples: their scores do not compare, and no best value is marked."
        in (warnings)
    )
    assert not is_comparable(collected.variants, "scores", "asr")
    assert is_comparable(collected.variants, "scores", "qa")


def test_without_predictions_only_the_number_of_samples_tells_sets_apart(run_folder):
    (run_folder / "eval/tune/predictions.jsonl").unlink()
    assert is_comparable(collect([run_folder]).variants, "scores", "asr")
    scores = read_json(run_folder / "eval/tune/scores.json")
    scores["tasks"]["asr"]["n"] = 11
    write_json(run_folder / "eval/tune/scores.json", scores)
    assert not is_comparable(collect([run_folder]).variants, "scores", "asr")


def test_doubtful_peaks_and_reduced_runs_are_said(run_folder):
    memory = make_bench("tune")["memory_bytes"] | {"run_peak_includes_load": True}
    change_bench(run_folder, "tune", memory_bytes=memory, nota={"reduced": True})
    assert measured(collect([run_folder])).warnings == (
        "The system could not reset the peak of the process: the peak at run includes loading (tune).",
        "Fewer runs than the nota protocol prescribes (tune).",
    )


def test_commands_measure_the_same_again(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parent)
    write_eval(run_folder, "tune", make_predictions(run_folder, 0.25, 0), limit=5, manifests=["my data/test.jsonl"])
    collected = collect([run_folder])
    assert scored(collected).commands[0] == (
        "stapes eval tiny/tune --manifest 'my data/test.jsonl' --batch-size 8 --max-new-tokens 48 --limit 5 --seed 0 "
        "--out new/tune"
    )
    assert scored(collected).commands[2] == (
        "stapes eval tiny/quantize --manifest data/test.jsonl --batch-size 8 --max-new-tokens 48 --seed 0 "
        "--against tiny/eval/tune --out new/quantize"
    )
    measure = "--audio-s 10 --new-tokens 16 --warmup 2 --repeats 10 --seed 0 --threads 2 --device cpu"
    assert measured(collected).commands == (f"stapes bench tiny/tune tiny/merge_lora tiny/quantize {measure}",)

    change_bench(run_folder, "tune", protocol="nota", audio="white noise", new_tokens=2)
    change_bench(run_folder, "merge_lora", audio="clips/a.wav", environment={"device": "cuda:0"})
    assert measured(collect([run_folder])).commands == (
        "stapes bench tiny/tune --protocol nota --warmup 2 --repeats 10 --seed 0 --threads 2 --device cpu",
        "stapes bench tiny/merge_lora --audio clips/a.wav --new-tokens 16 --warmup 2 --repeats 10 --seed 0 "
        "--device cuda:0",
        f"stapes bench tiny/quantize {measure}",
    )


def test_each_variant_of_each_run_is_measured_again_in_a_folder_of_its_own(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "x/a"):
        shutil.copytree(finished_run, tmp_path / name)

    def outs(*folders: str | Path) -> list[str]:
        commands = scored(collect(list(map(Path, folders)))).commands
        return [command.rpartition(" --out ")[2] for command in commands]

    names = ("tune", "merge_lora", "quantize")
    assert outs("a") == [f"new/{name}" for name in names]
    assert outs("a", "b") == [f"new/{run}/{name}" for run in "ab" for name in names]
    # Runs that are called the same go by their paths, which must not lead out of `new`.
    assert outs("a", tmp_path / "x/a") == [f"new/{run}/{name}" for run in ("a", "x/a") for name in names]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert outs("../a", tmp_path / "x/a") == [
        *(f"new/up/a/{name}" for name in names),
        *(f"new/root{tmp_path}/x/a/{name}" for name in names),
    ]


def test_no_command_names_a_model_folder_that_is_not_there(run_folder):
    shutil.rmtree(run_folder / "tune")
    collected = collect([run_folder])
    assert [command.split()[2].rpartition("/")[2] for command in scored(collected).commands] == [
        "merge_lora",
        "quantize",
    ]


def test_an_interrupted_evaluation_tells_what_its_seconds_leave_out(run_folder):
    write_eval(run_folder, "tune", make_predictions(run_folder, 0.25, 0), num_resumed=30, seconds=12.0)
    facts = dict(scored(collect([run_folder])).facts)
    assert facts["answering took"].startswith("12 s without 30 answers from before an interruption (tune); 81 s")


def test_nothing_measured_has_no_circumstances(finished_run):
    collected = collect([finished_run])
    bare = Collected(collected.runs, tuple(replace(v, scores=None, bench=None) for v in collected.variants))
    assert describe_scores(bare) is None
    assert describe_bench(bare) is None


def test_paths_below_the_current_folder_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shorten(tmp_path / "a/b.jsonl") == "a/b.jsonl"
    assert shorten("/elsewhere/b.jsonl") == "/elsewhere/b.jsonl"
    assert make_environment()["num_threads"] == 2


def test_that_transcripts_are_not_searched_for_is_said(run_folder):
    change_bench(run_folder, "tune", leaves_out_transcript_search=True)
    assert measured(collect([run_folder])).warnings == (
        "TTFT, RTF and latency leave out the search for a transcript before the first token (tune).",
    )
