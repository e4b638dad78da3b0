from __future__ import annotations

import json
import shutil

import pytest
import yaml
from written_runs import make_bench, make_environment

from stapes.errors import StapesError
from stapes.files import read_json, write_json
from stapes.report import collect


def test_a_finished_run_has_its_variants_in_the_order_of_the_recipe(finished_run):
    collected = collect([finished_run])
    (run,) = collected.runs
    assert [variant.label for variant in collected.variants] == ["tune", "merge_lora", "quantize"]
    assert {variant.baseline for variant in collected.variants} == {"tune"}
    assert [len(variant.predictions) for variant in collected.variants] == [36, 36, 36]
    assert [(stage.name, stage.is_finished, len(stage.lines)) for stage in run.stages] == [
        ("align", True, 16),
        ("tune", True, 8),
    ]
    assert [step["step"] for step in run.steps][:4] == ["data_check", "align", "tune", "merge_lora"]
    assert run.missing == ()


def test_without_a_recipe_the_baseline_comes_first_and_dates_order_the_others(run_folder):
    (run_folder / "recipe.yaml").unlink()
    for seconds, name in enumerate(("quantize", "merge_lora", "tune")):
        write_json(run_folder / name / "step.json", {"step": name, "environment": make_environment(seconds)})
    assert [variant.name for variant in collect([run_folder]).variants] == ["tune", "quantize", "merge_lora"]


def test_an_unfinished_run_says_what_is_missing(run_folder):
    (run_folder / "bench/quantize").rename(run_folder / "bench/quantize.partial")
    (run_folder / "eval/tune").rename(run_folder / "eval/tune.partial")
    shutil.rmtree(run_folder / "eval/quantize")
    (run_folder / "eval/by_hand.partial").mkdir()
    (run_folder / "report.partial").mkdir()
    collected = collect([run_folder])
    assert collected.runs[0].missing == (
        "eval/tune: begun, not finished",
        "eval/quantize: not made yet",
        "bench/quantize: begun, not finished",
        "eval/by_hand: begun, not finished",
    )
    assert [(v.name, v.scores is not None, v.bench is not None) for v in collected.variants] == [
        ("tune", False, True),
        ("merge_lora", True, True),
    ]


def change_recipe(folder, **changes) -> None:
    """Write other sections into a run's recipe; None takes one out."""
    path = folder / "recipe.yaml"
    recipe = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))


def start_from_a_model(folder) -> None:
    """Turn a run into one of a trained model, gone on with by a stage and a step; it is not scored."""
    changes = {"start_from": "stapes-tiny", "train": {"tune": {"max_steps": 60}}, "compress": [{"kind": "merge_lora"}]}
    change_recipe(folder, **changes, evaluate=None)
    for name in ("align", "quantize", "eval", "bench/quantize"):
        shutil.rmtree(folder / name)
    write_json(folder / "base/step.json", {"step": "base", "environment": make_environment(3)})
    write_json(folder / "bench/base/step.json", {"step": "bench/base", "environment": make_environment(30)})
    write_json(folder / "bench/base/bench.json", make_bench("tune") | {"variant": "base"})


def test_the_model_that_a_run_starts_from_is_its_baseline(run_folder):
    start_from_a_model(run_folder)
    collected = collect([run_folder])
    assert [variant.name for variant in collected.variants] == ["base", "tune", "merge_lora"]
    assert {variant.baseline for variant in collected.variants} == {"base"}
    assert collected.runs[0].missing == ()


def test_the_model_that_a_run_starts_from_can_be_missing(run_folder):
    start_from_a_model(run_folder)
    change_recipe(run_folder, evaluate={"data": ["test.jsonl"]})
    for name in ("base", "bench/base"):
        shutil.rmtree(run_folder / name)
    assert collect([run_folder]).runs[0].missing == (
        "base: not made yet",
        "eval/base: not made yet",
        "eval/tune: not made yet",
        "eval/merge_lora: not made yet",
        "bench/base: not made yet",
    )


@pytest.mark.parametrize("line", ["", "train: null\n", "train: {}\n"])
def test_a_run_that_starts_from_a_model_need_not_train(run_folder, line):
    start_from_a_model(run_folder)
    change_recipe(run_folder, train=None)
    with (run_folder / "recipe.yaml").open("a") as stream:
        stream.write(line)
    for name in ("tune", "bench/tune"):
        shutil.rmtree(run_folder / name)
    collected = collect([run_folder])
    assert [variant.name for variant in collected.variants] == ["base", "merge_lora"]
    assert collected.runs[0].missing == ()


def test_what_an_earlier_recipe_made_is_left_out_and_named(run_folder):
    """A run that goes on with less leaves in its folder what was made of the rest."""
    change_recipe(run_folder, train={"tune": {"max_steps": 60}}, compress=[])
    (run_folder / "bench/quantize").rename(run_folder / "bench/quantize.partial")
    (run_folder / "align").rename(run_folder / "align.partial")
    collected = collect([run_folder])
    (run,) = collected.runs
    assert [variant.name for variant in collected.variants] == ["tune"]
    assert [stage.name for stage in run.stages] == ["tune"]
    assert [step["step"] for step in run.steps] == ["data_check", "tune", "eval/tune", "bench/tune"]
    assert run.missing == ()
    assert run.left_out == (
        *("align.partial", "merge_lora", "quantize"),
        *("eval/merge_lora", "eval/quantize", "bench/merge_lora", "bench/quantize.partial"),
    )


def test_what_was_measured_by_hand_stays_whatever_the_recipe_says(run_folder):
    """It bears no `step.json`; without a recipe nothing is known to be of another one."""
    change_recipe(run_folder, train={"tune": {"max_steps": 60}}, compress=[{"kind": "merge_lora"}])
    for name in ("eval/quantize", "align"):
        (run_folder / name / "step.json").unlink()
    collected = collect([run_folder])
    assert [(v.name, v.scores is not None, v.bench is not None) for v in collected.variants] == [
        ("tune", True, True),
        ("merge_lora", True, True),
        ("quantize", True, False),
    ]
    assert [stage.name for stage in collected.runs[0].stages] == ["tune", "align"]
    assert collected.runs[0].left_out == ("quantize", "bench/quantize")
    (run_folder / "recipe.yaml").unlink()
    collected = collect([run_folder])
    assert [variant.bench is not None for variant in collected.variants] == [True, True, True]
    assert collected.runs[0].left_out == ()


def test_losses_of_a_stage_under_way_are_read_up_to_the_line_being_written(run_folder):
    (run_folder / "tune").rename(run_folder / "tune.partial")
    with (run_folder / "tune.partial/losses.jsonl").open("a") as stream:
        stream.write('{"stage": "tune", "st')
    (_, tune) = collect([run_folder]).runs[0].stages
    assert (tune.name, tune.is_finished, len(tune.lines)) == ("tune", False, 8)


def test_several_runs_are_told_apart_by_name_or_path(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "other")
    shutil.copytree(finished_run, tmp_path / "x" / "tiny")
    two = collect([finished_run, tmp_path / "other"])
    assert [variant.label for variant in two.variants][2:4] == ["tiny/quantize", "other/tune"]
    assert [variant.baseline for variant in two.variants][2:4] == ["tiny/tune", "other/tune"]
    alike = collect([finished_run, tmp_path / "x" / "tiny"])
    assert [run.label for run in alike.runs] == [str(finished_run), str(tmp_path / "x" / "tiny")]
    with pytest.raises(StapesError, match=r"tiny: is given twice; name each run once$"):
        collect([finished_run, finished_run.parent / "." / "tiny"])


def test_what_is_no_run_folder_is_refused(tmp_path):
    with pytest.raises(StapesError, match=r"gone: is no run folder: no such folder; `stapes run RECIPE --out "):
        collect([tmp_path / "gone"])
    (tmp_path / "eval").mkdir()
    with pytest.raises(StapesError, match=r"is no run folder: holds no recipe\.yaml, eval/, bench/ nor losses;"):
        collect([tmp_path])


def test_a_folder_of_measurements_alone_is_a_run(tmp_path):
    write_json(tmp_path / "bench/quantize/bench.json", make_bench("quantize"))
    (variant,) = collect([tmp_path]).variants
    assert (variant.name, variant.baseline, variant.scores, variant.predictions) == ("quantize", "quantize", None, ())


def test_a_run_that_has_only_begun_is_reported(run_folder, tmp_path):
    (tmp_path / "new").mkdir()
    shutil.copy(run_folder / "recipe.yaml", tmp_path / "new")
    collected = collect([tmp_path / "new"])
    assert collected.variants == ()
    assert collected.runs[0].missing[:2] == ("data_check: not made yet", "align: not made yet")
    assert len(collected.runs[0].missing) == 11


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("recipe.yaml", "train: [", r"recipe\.yaml: is not the resolved recipe of a run; `stapes run` writes it anew"),
        ("recipe.yaml", "just text", r"recipe\.yaml: is not the resolved recipe"),
        ("eval/tune/scores.json", "{}", r"scores\.json: is no scores\.json: lacks `tasks`; `stapes eval` writes"),
        ("eval/tune/scores.json", '{"tasks"', r"scores\.json:1: not JSON"),
        ("bench/tune/bench.json", "[]", r"bench\.json: is no bench\.json: lacks `latency_ms`; `stapes bench` writes"),
        ("eval/tune/predictions.jsonl", '{"id": "a"}\n', r"predictions\.jsonl:1: is no prediction: lacks task, audio"),
        ("align/losses.jsonl", '{"step": 1}\n{"st', r"losses\.jsonl:2: not JSON"),
        ("align/losses.jsonl", "7\n", r"losses\.jsonl:1: holds 7; wanted one JSON object a line"),
    ],
)
def test_a_broken_file_is_named(run_folder, path, content, message):
    (run_folder / path).write_text(content)
    with pytest.raises(StapesError, match=message):
        collect([run_folder])


def test_line_separators_inside_texts_end_no_line(run_folder):
    path = run_folder / "eval/tune/predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["text"] = "one\u2028two"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert collect([run_folder]).variants[0].predictions[0]["text"] == "one\u2028two"


def test_scores_without_predictions_are_reported(run_folder):
    (run_folder / "eval/tune/predictions.jsonl").unlink()
    first = collect([run_folder]).variants[0]
    assert first.predictions == ()
    assert first.scores == read_json(run_folder / "eval/tune/scores.json")
