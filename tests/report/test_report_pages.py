from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from written_runs import make_bench

from stapes.files import write_json
from stapes.report import build_report
from stapes.report.pages import escape_markdown

HOSTILE = '<script>alert("1")</script> <img src=x onerror=alert(2)> {{ 7 * 7 }} & “quotes” | `code`'


class Reader(HTMLParser):
    """Collects what a browser would see: elements with their attributes, and the text outside `style`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("span", "strong", "em", "code", "mark", "ins", "del", "wbr"):
            self.text += " "
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def build(*folders: Path, out: Path, num_samples: int = 3, seed: int = 0) -> Reader:
    return Reader(build_report(list(folders), out, num_samples=num_samples, seed=seed).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(finished_run, tmp_path_factory) -> Path:
    """The folder of a report."""
    return build_report([finished_run], tmp_path_factory.mktemp("report"), num_samples=3, seed=0).parent


@pytest.fixture(scope="module")
def page(built) -> Reader:
    return Reader((built / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_but_itself(page):
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attributes)
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    policy = next(found for found in page.all("meta") if found.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def test_no_address_stands_anywhere(built):
    raw = (built / "report.html").read_text()
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)", raw)


def test_tables_have_scoped_heads_and_pictures_words(page):
    heads = page.all("th")
    assert heads
    assert all(head.get("scope") in ("col", "row", "rowgroup") for head in heads)
    drawings = page.all("svg")
    assert len(drawings) == 5
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    players = page.all("audio")
    assert len(players) == 3
    assert all(
        player["aria-label"] and (player["src"] or "").startswith("data:audio/mpeg;base64,") for player in players
    )
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.all("html")[0]["lang"] == "en"
    assert any(found.get("name") == "viewport" for found in page.all("meta"))


def test_the_page_shows_numbers_with_their_circumstances(page, finished_run):
    wer = json.loads((finished_run / "eval/quantize/scores.json").read_text())["tasks"]["asr"]["metrics"]["wer"]
    assert f"{wer['value']:.1f} {wer['low']:.1f} – {wer['high']:.1f}" in page.words
    for text in (
        "TTFT, ms lower is better",
        "287.0★ best p95 315.7 −30 %",
        "n = 36 (12 asr, 12 audiocaption, 12 qa)",
        "seed of the clip 0",
        "threads 2",
        "Pareto front: quantize, merge_lora. Beaten: tune",
        "Read with care Only 12 asr",
    ):
        assert text in page.words
    assert "merge_lora against tune. No clear difference: WER ±0.0 points" in page.words
    assert "36 of 36 answers are the same text." in page.words
    assert "not finished" not in page.words


def test_what_models_say_is_text_and_nothing_more(run_folder, tmp_path):
    for path in run_folder.glob("eval/*/predictions.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [
            {**line, "text": HOSTILE, "target": HOSTILE, "prompt": HOSTILE, "id": line["id"] + HOSTILE}
            for line in lines
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_folder / "recipe.yaml").write_text((run_folder / "recipe.yaml").read_text() + f"note: |\n  {HOSTILE}\n")
    out = tmp_path / "out"
    page = build(run_folder, out=out, num_samples=3)
    assert not page.all("script")
    assert not page.all("img")
    assert page.words.count(" ".join(HOSTILE.split())) >= 3 * 4
    text = (out / "report.md").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert r"\| \`code\`" in text


def test_word_errors_are_marked_in_speech_only(run_folder, tmp_path):
    for path in run_folder.glob("eval/*/predictions.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [{**line, "target": "press one for help", "text": "press two for for"} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    raw = build_report([run_folder], tmp_path / "out", num_samples=3, seed=0).read_text()
    marked = '<mark title="instead of: one">two<span class="sr"> (instead of one)</span></mark> for <mark'
    assert raw.count(marked) == 1
    assert raw.count('<mark title="instead of: help">for<span') == 1


def test_an_unfinished_run_shows_what_is_there(run_folder, tmp_path):
    shutil.rmtree(run_folder / "bench/quantize")
    shutil.rmtree(run_folder / "eval/quantize")
    (run_folder / "quantize").rename(run_folder / "quantize.partial")
    page = build(run_folder, out=tmp_path / "out", num_samples=0)
    assert "tiny is not finished quantize: begun, not finished eval/quantize: not made yet" in page.words
    assert "2 variants of 1 run" in page.words
    assert not page.all("audio")
    assert "quantize: begun, not finished" in (tmp_path / "out/report.md").read_text()


def test_what_an_earlier_recipe_made_is_named_and_no_more(run_folder, tmp_path):
    recipe = run_folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("- {kind: quantize}\n", ""))
    page = build(run_folder, out=tmp_path / "out", num_samples=1)
    text = (tmp_path / "out/report.md").read_text()
    line = "made by an earlier recipe, and left out here: quantize, eval/quantize, bench/quantize"
    assert f"tiny: {line}." in page.words
    assert f"tiny: {escape_markdown(line)}." in text
    for words in (page.words, text):
        assert words.count("quantize") == 3
        assert "not finished" not in words


def test_a_run_without_measurements_has_dashes_and_no_plots_of_them(run_folder, tmp_path):
    shutil.rmtree(run_folder / "bench")
    page = build(run_folder, out=tmp_path / "out", num_samples=0)
    assert "not measured: the run holds no bench/tune" in page.words
    assert "Where the time goes" not in page.words
    assert "Quality against cost" not in page.words
    assert len(page.all("svg")) == 2


def test_a_run_that_has_only_begun_has_a_page(run_folder, tmp_path):
    (tmp_path / "new").mkdir()
    shutil.copy(run_folder / "recipe.yaml", tmp_path / "new")
    page = build(tmp_path / "new", out=tmp_path / "new" / "report")
    assert "No variant is scored or measured yet." in page.words
    assert "No variant is scored" in (tmp_path / "new/report/report.md").read_text()


def test_several_runs_stand_in_one_page(finished_run, make_run, tmp_path):
    runs = [shutil.copytree(finished_run, tmp_path / "a"), make_run("b", damages=(0.1, 0.1, 0.2), start=6.0)]
    bench = make_bench("tune")
    bench["environment"]["device_name"] = "Another CPU"
    write_json(runs[1] / "bench/tune/bench.json", bench)
    page = build(*runs, out=tmp_path / "out", num_samples=1)
    assert "6 variants of 2 runs, differences against a/tune, b/tune" in page.words
    assert (
        "Different device: cpu (Some CPU @ 2.0GHz) (a, b/merge_lora, b/quantize); cpu (Another CPU) (b/tune)."
        in page.words
    )
    assert "No Pareto front: the variants were measured under different circumstances." in page.words
    assert "b/quantize against b/tune." in page.words
    losses = next(
        found["aria-label"] for found in page.all("svg") if "Losses of stage align" in (found["aria-label"] or "")
    )
    assert "a: training" in (losses or "")
    assert "b: training" in (losses or "")


def test_missing_audio_leaves_a_note(run_folder, tmp_path):
    for path in run_folder.glob("eval/*/predictions.jsonl"):
        path.write_text(path.read_text().replace("/audio/", "/gone/"))
    page = build(run_folder, out=tmp_path / "out", num_samples=3)
    assert not page.all("audio")
    assert page.words.count("is not to be heard: the file is gone, or named from another folder") == 3


def test_paths_below_the_current_folder_are_told_relative_to_it(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = run_folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("[test.jsonl]", f"[{tmp_path}/data/test.jsonl]"))
    out = tmp_path / "out"
    build(run_folder, out=out, num_samples=1)
    for name in ("report.html", "report.md"):
        assert str(tmp_path) not in (out / name).read_text()
    assert "stapes report tiny --samples 1 --seed 0" in (out / "report.html").read_text()
    assert "data/test.jsonl" in (out / "report.html").read_text()


def test_markdown_has_the_tables(built):
    lines = (built / "report.md").read_text().splitlines()
    head = lines.index(
        "| variant | parameters, M | files, MB | peak at load, MB | peak at run, MB | TTFT, ms | TPOT, ms | RTF |"
    )
    assert lines[head + 1] == "|---|---:|---:|---:|---:|---:|---:|---:|"
    row = lines[head + 4]
    assert row.startswith("| quantize | **160** ★<br>−0.3 % | **241** ★<br>−61 % |")
    assert row.count("|") == 9
    assert lines[head + 2].startswith("| tune | 161 | 614 |")
    assert "stapes bench" in "\n".join(lines)
    assert not any(line.endswith(" ") for line in lines)


def test_long_names_may_break_after_underscores_and_are_escaped(built, finished_run, tmp_path):
    assert '<th scope="row">merge_<wbr>lora</th>' in (built / "report.html").read_text()
    folders = [finished_run, shutil.copytree(finished_run, tmp_path / "<i>_x")]
    raw = build_report(folders, tmp_path / "out", num_samples=0, seed=0).read_text()
    assert "&lt;i&gt;_<wbr>x/<wbr>tune" in raw
    assert "<i>_" not in raw


def test_escaped_markdown_is_read_as_it_was():
    assert escape_markdown("a_b * [c](d) | `e`\n<f> & 'g'") == r"a\_b \* \[c\](d) \| \`e\` &lt;f&gt; &amp; 'g'"


def test_the_same_runs_give_the_same_page(built, finished_run, tmp_path):
    again = build_report([finished_run], tmp_path, num_samples=3, seed=0).read_text()
    once = (built / "report.html").read_text()
    # All but the moment, and the state of the checkout, in the last line but two.
    assert again.partition("<footer>")[0] == once.partition("<footer>")[0]


@dataclass(frozen=True)
class Words:
    """A table as `stapes ablate` hands it over."""

    title: str = "llm"
    shared: str = "speech encoder: whisper-base"
    heads: tuple[str, ...] = ("variant", "LLM", "predicted memory, GiB")
    is_number: tuple[bool, ...] = (False, False, True)
    rows: tuple[tuple[str, ...], ...] = (("llm-a", HOSTILE, "4.0938"), ("llm-b", "Qwen2.5-0.5B", "–"))


def test_tables_of_recipes_stand_in_both_pages(finished_run, tmp_path):
    notes = ["predicted: v100-32gb"]
    build_report([finished_run], tmp_path, num_samples=0, seed=0, tables=[Words()], table_notes=notes)
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Recipes side by side llm All with speech encoder: whisper-base." in page.words
    assert f"llm-a {HOSTILE} 4.0938 llm-b Qwen2.5-0.5B –" in page.words
    assert "predicted: v100-32gb" in page.words
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| variant | LLM | predicted memory, GiB |\n|---|---|---:|\n| llm-a |" in text
    assert "| llm-b | Qwen2.5-0.5B | – |" in text


def test_tables_can_stand_alone(tmp_path):
    build_report([], tmp_path, num_samples=0, seed=0, tables=[Words()])
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "No variant is scored or measured yet." in page.words
    assert "llm-b Qwen2.5-0.5B –" in page.words
