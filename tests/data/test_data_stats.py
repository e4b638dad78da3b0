from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stapes.data.stats import collect_stats, write_stats
from stapes.errors import AudioError


@pytest.fixture
def manifests(tmp_path: Path) -> list[Path]:
    soundfile.write(tmp_path / "two.wav", np.zeros(32_000), 16_000)
    speech = [
        {"id": "a", "audio": "a.wav", "duration_s": 1.0, "target": "Don't stop, don’t!", "source": "<b>talk</b>"},
        {"id": "b", "audio": "two.wav", "target": "stop"},
    ]
    questions = [
        {"id": str(n), "audio": "a.wav", "duration_s": 1.0, "task": "qa", "prompt": "?", "target": "yes"}
        for n in (1, 2)
    ]
    paths = [tmp_path / "speech.jsonl", tmp_path / "qa.jsonl"]
    for path, lines in zip(paths, (speech, questions), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def test_counts(manifests):
    figures = collect_stats(manifests)
    speech, questions = figures["manifests"]
    assert speech == {
        "name": str(manifests[0]),
        "num_samples": 2,
        "hours": 3 / 3600,
        "different_hours": 3 / 3600,
        "duration_s": {"min": 1.0, "median": 1.5, "mean": 1.5, "p95": 1.95, "max": 2.0},
        "words_per_target": {"min": 1, "median": 2.0, "mean": 2.0, "p95": 2.9, "max": 3},
        "num_words": 4,
        "num_different_words": 3,
        "tasks": {"asr": 2},
        "sources": {"<b>talk</b>": 1, "not given": 1},
    }
    assert (questions["hours"], questions["different_hours"]) == (2 / 3600, 1 / 3600)
    total = figures["total"]
    assert (total["num_samples"], total["hours"], total["tasks"]) == (4, 5 / 3600, {"asr": 2, "qa": 2})
    assert figures["common_words"] == {"stop": 2, "yes": 2, "don't": 1, "don’t": 1}


def test_histograms_count_every_sample_in_the_right_bin(manifests):
    histograms = collect_stats(manifests)["histograms"]
    durations = histograms["duration_s"]
    assert durations["edges"][:3] == [0.0, 0.1, 0.2]
    assert durations["edges"][-1] > 2.0
    assert {task: sum(counts) for task, counts in durations["counts"].items()} == {"asr": 2, "qa": 2}
    assert durations["counts"]["qa"][10] == 2
    assert histograms["words_per_target"] == {
        "edges": [-0.5, 0.5, 1.5, 2.5, 3.5],
        "counts": {"asr": [0, 1, 0, 1], "qa": [0, 2, 0, 0]},
    }


def test_the_page_stands_alone_and_escapes_what_manifests_say(manifests, tmp_path):
    page = write_stats(collect_stats(manifests), tmp_path / "out").read_text()
    assert not re.search(r'(src|href)="(?!#)', page.replace('xlink:href="#', 'xlink:ref="#'))
    assert "<link" not in page
    assert "<script" not in page
    assert page.count("<svg") == 4
    assert "<b>" not in page
    assert "&lt;b&gt;talk&lt;/b&gt;" in page
    assert json.loads((tmp_path / "out/stats.json").read_text())["total"]["num_samples"] == 4


def test_the_same_figures_give_the_same_page(manifests, tmp_path):
    figures = collect_stats(manifests)
    assert write_stats(figures, tmp_path / "1").read_bytes() == write_stats(figures, tmp_path / "2").read_bytes()


def test_many_sources_become_seven_slices(tmp_path):
    lines = [
        {"id": f"{source}-{n}", "audio": "a.wav", "duration_s": 1.0, "target": "x", "source": f"source {source}"}
        for source in range(9)
        for n in range(10 - source)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_stats(collect_stats([tmp_path / "m.jsonl"]), tmp_path).read_text()
    assert re.findall(r"</i>(source \d|\d others)</td><td>(\d+)", page) == [
        *((f"source {source}", str(10 - source)) for source in range(6)),
        ("3 others", "9"),
    ]


def test_a_length_that_cannot_be_read_is_an_error_with_its_line(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "a", "audio": "no.wav", "target": "x"}')
    with pytest.raises(AudioError, match=r"m\.jsonl:1: sample `a`: .*no\.wav: no such file; `stapes data check "):
        collect_stats([tmp_path / "m.jsonl"])
