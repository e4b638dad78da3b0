from __future__ import annotations

import pytest
from written_runs import make_bench

from stapes.files import write_json
from stapes.report import collect
from stapes.report.tradeoff import build_panels, pareto_front


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 5), (2, 3), (3, 4), (4, 1), (5, 1)], [0, 1, 3]),
        ([(4, 1), (1, 5), (2, 3)], [1, 2, 0]),  # cheapest first
        ([(1, 1), (2, 2), (3, 3)], [0]),
        ([(1, 2), (1, 2), (2, 2)], [0, 1]),  # equal points do not beat each other
        ([(1, 3), (1, 2)], [1]),
        ([(7, 7)], [0]),
        ([], []),
    ],
)
def test_front_of_known_points(points, front):
    assert pareto_front(points) == front


def test_panels_set_wer_against_latency_and_memory(finished_run):
    panels = build_panels(collect([finished_run]))
    assert [(panel.quality.key, panel.cost.key) for panel in panels] == [("wer", "ttft_ms"), ("wer", "run_peak_mb")]
    # `tune` and `merge_lora` say the same, `merge_lora` sooner; `quantize` errs more and is the fastest.
    assert panels[0].front == ("quantize", "merge_lora")
    assert panels[0].finding == (
        "Pareto front: quantize, merge_lora. "
        "Beaten: tune; one on the front is at least as good in both and better in one."
    )


def test_where_higher_is_better_the_front_turns(run_folder):
    for variant, value in (("tune", 0.2), ("merge_lora", 0.5), ("quantize", 0.4)):
        metrics = {"cider_d": {"value": value, "low": 0.1, "high": 0.9, "unit": "", "better": "higher"}}
        scores = {"variant": variant, "n": 9, "tasks": {"audiocaption": {"n": 9, "metrics": metrics}}}
        write_json(run_folder / "eval" / variant / "scores.json", scores)
        (run_folder / "eval" / variant / "predictions.jsonl").unlink()
    panel = build_panels(collect([run_folder]))[0]
    assert (panel.quality.key, panel.front) == ("cider_d", ("quantize", "merge_lora"))


def test_unlike_measurements_have_no_front(run_folder):
    bench = make_bench("tune")
    bench["environment"]["num_threads"] = 1
    write_json(run_folder / "bench/tune/bench.json", bench)
    panel = build_panels(collect([run_folder]))[0]
    assert (len(panel.points), panel.front) == (3, None)
    assert panel.finding == "No Pareto front: the variants were measured under different circumstances."


def test_variants_without_both_are_left_out(run_folder):
    (run_folder / "bench/quantize/bench.json").unlink()
    panel = build_panels(collect([run_folder]))[0]
    assert [label for label, _, _ in panel.points] == ["tune", "merge_lora"]
    assert panel.front == ("merge_lora",)
    (run_folder / "eval/merge_lora/scores.json").unlink()
    assert build_panels(collect([run_folder])) == []
