from __future__ import annotations

import re
import shutil
from xml.etree import ElementTree

from written_runs import make_predictions, write_eval

from stapes.report import Collected, collect
from stapes.report.plots import SERIES, Chart, draw_latency, draw_losses, draw_tradeoff, part_colours
from stapes.report.tradeoff import build_panels


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def latency(collected: Collected) -> Chart:
    chart = draw_latency(collected)
    assert chart is not None
    return chart


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in parse(svg).iter("text")]


def test_charts_can_live_in_one_page(finished_run):
    """No addresses, no id twice, and every colour is the page's, so that a dark page has a legible chart."""
    collected = collect([finished_run])
    labels = [variant.label for variant in collected.variants]
    charts = [draw_tradeoff(panel, labels) for panel in build_panels(collected)]
    charts += [draw_losses(collected.runs, stage) for stage in ("align", "tune")]
    charts.append(latency(collected))
    together = "".join(chart.svg for chart in charts)
    assert "http" not in together
    assert not re.search(r"#[0-9a-f]{6}", together)
    ids = re.findall(r'\bid="([^"]+)"', together)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', together)) == set(ids)
    for chart in charts:
        root = parse(chart.svg)
        assert (root.get("role"), root.get("aria-label")) == ("img", chart.alt)


def test_tradeoff_names_its_axes_points_and_front(finished_run):
    collected = collect([finished_run])
    panel = build_panels(collected)[0]
    chart = draw_tradeoff(panel, [variant.label for variant in collected.variants])
    shown = texts(chart.svg)
    assert {"tune", "merge_lora", "quantize", "TTFT, ms (lower is better)", "WER, % (lower is better)"} <= set(shown)
    assert "quantize" in chart.alt
    assert panel.finding in chart.alt
    assert chart.svg.count("stroke-dasharray") == 1  # the front
    assert draw_tradeoff(panel, [variant.label for variant in collected.variants]) == chart


def test_an_interval_that_rounding_puts_beside_its_value_is_drawn(run_folder):
    """One sample with one of three words wrong: 100 * 1 / 3 and 100 * (1 / 3) differ in the last bit."""
    shutil.rmtree(run_folder / "eval/quantize")
    spoken = make_predictions(run_folder, 0.0, 0, samples=1)[0]
    spoken |= {"target": "a red house", "text": "a red horse"}
    for variant in ("tune", "merge_lora"):
        wer = write_eval(run_folder, variant, [spoken])["tasks"]["asr"]["metrics"]["wer"]
        assert wer["high"] < wer["value"]
    collected = collect([run_folder])
    chart = draw_tradeoff(build_panels(collected)[0], [variant.label for variant in collected.variants])
    assert chart.alt.startswith("WER against TTFT: tune 33.3 % at 412.0 ms; merge_lora 33.3 % at 398.0 ms. ")


def test_labels_of_points_in_one_place_do_not_cover_each_other(finished_run, tmp_path):
    """`tune` and `merge_lora` of three equal runs: six points in two places."""
    folders = [shutil.copytree(finished_run, tmp_path / name) for name in "abc"]
    collected = collect(folders)
    labels = [variant.label for variant in collected.variants]
    svg = draw_tradeoff(build_panels(collected)[0], labels).svg
    boxes = []
    for element in parse(svg).iter("text"):
        label = "".join(element.itertext()).strip()
        if label in labels:
            # Labels start, end or are centred at their x; a figure of DejaVu Sans 9 is some 5.5 points wide.
            x, y = map(float, re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", ""))[0]) if (
                element.get("transform", "").startswith("translate")
            ) else (float(element.get("x", "nan")), float(element.get("y", "nan")))  # fmt: skip
            width = 5.5 * len(label)
            anchor = re.search(r"text-anchor: (\w+)", element.get("style", ""))
            left = {"middle": x - width / 2, "end": x - width}.get(anchor[1] if anchor else "start", x)
            boxes.append((label, left, left + width, y - 7, y))
    assert len(boxes) == 9
    for index, (_, left, right, top, bottom) in enumerate(boxes):
        for _, other_left, other_right, other_top, other_bottom in boxes[:index]:
            assert right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top


def test_losses_of_several_runs_lie_in_one_chart(finished_run, make_run, tmp_path):
    runs = [shutil.copytree(finished_run, tmp_path / "a"), make_run("b", start=6.0)]
    (runs[1] / "align").rename(runs[1] / "align.partial")
    chart = draw_losses(collect(runs).runs, "align")
    assert {"a: training", "a: validation", "b: training, unfinished", "b: validation, unfinished"} <= set(
        texts(chart.svg)
    )
    assert "a: training from 4.45 to 1.60" in chart.alt
    assert "b: validation from 4.11 to 1.86, unfinished" in chart.alt
    for index in range(2):
        assert f"stroke: var(--series-{index})" in chart.svg


def test_latency_tells_the_table_s_medians(finished_run, run_folder):
    chart = latency(collect([finished_run]))
    assert "quantize: 287 ms to the first token, then 19.4 ms a token" in texts(chart.svg)
    assert {"185", "206"} <= set(texts(chart.svg))
    assert (
        "tune features 12.4 ms, speech encoder 185 ms, connector 8.24 ms, prefill 206 ms, one more token 38.2 ms"
        in (chart.alt)
    )
    for variant in ("tune", "merge_lora", "quantize"):
        shutil.rmtree(run_folder / "bench" / variant)
    assert draw_latency(collect([run_folder])) is None


def test_a_part_that_was_not_measured_is_said_and_not_drawn(run_folder):
    path = run_folder / "bench/quantize/bench.json"
    path.write_text(path.read_text().replace('"connector": {', '"conector": {', 1))
    chart = latency(collect([run_folder]))
    assert "quantize features 8.61 ms, speech encoder 129 ms, connector not measured" in chart.alt


def test_names_are_text_and_nothing_more(finished_run, tmp_path):
    folder = shutil.copytree(finished_run, tmp_path / "a$b$ & <i>")
    (tmp_path / "x").mkdir()
    other = shutil.copytree(finished_run, tmp_path / "x" / '"q" _{2}')
    collected = collect([folder, other])
    labels = [variant.label for variant in collected.variants]
    chart = draw_tradeoff(build_panels(collected)[0], labels)
    assert set(labels) <= set(texts(chart.svg))
    assert parse(chart.svg).get("aria-label") == chart.alt


def test_the_legend_has_the_colours_of_the_bars():
    assert part_colours()[0] == ("features", "var(--series-0)")
    assert part_colours()[-1] == ("one more token", "var(--muted)")
    assert len(set(SERIES)) == len(SERIES) == 7
