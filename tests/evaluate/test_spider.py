from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stapes.errors import StapesError
from stapes.evaluate.nota import nota_captions_v11
from stapes.evaluate.score import Prediction, score_predictions
from stapes.evaluate.spider import spider, why_no_spider
from stapes.evaluate.tasks import measure, unavailable

# What aac-metrics 0.6 has under these names, without its Java program: scores that tell what they were given.
STAND_IN = {
    "__init__.py": "",
    "utils/__init__.py": "",
    "utils/globals.py": """
from pathlib import Path
def get_default_java_path(): return str(Path(__file__).parents[2] / "java")
def get_default_cache_path(): return str(Path(__file__).parents[2] / "cache")
""",
    "utils/checks.py": """
from pathlib import Path
def check_java_path(path): return "1.8" in Path(path).read_text()
""",
    "functional/__init__.py": "",
    "functional/spider.py": """
import torch
GIVEN = []
def spider(candidates, mult_references):
    GIVEN.append((candidates, mult_references))
    return {}, {"spider": torch.tensor([0.25, 0.5], dtype=torch.float64)}
""",
}
JARS = ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")


@pytest.fixture
def aac_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a stand-in for the package, its Java and its jars; all of it is there."""
    for name, text in STAND_IN.items():
        (tmp_path / "aac_metrics" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "aac_metrics" / name).write_text(text)
    (tmp_path / "java").write_text("#!/bin/sh\n# 1.8\n")
    (tmp_path / "java").chmod(0o755)
    for jar in JARS:
        (tmp_path / "cache/aac-metrics/spice" / jar).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cache/aac-metrics/spice" / jar).touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "aac_metrics"]:
        del sys.modules[name]


@pytest.fixture
def no_aac_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    # A name that is None in sys.modules cannot be imported; find_spec says None of it too.
    monkeypatch.setattr("stapes.evaluate.spider.find_spec", lambda name: None)


def caption(id: str, target: str, text: str, *references: str) -> Prediction:  # noqa: A002 - the key's name
    prediction: Prediction = {
        "id": id,
        "task": "audiocaption",
        "audio": f"{id}.wav",
        "prompt": "…",
        "target": target,
        "text": text,
        "num_tokens": 3,
        "truncated": False,
    }
    return {**prediction, "references": list(references)} if references else prediction


CAPTIONS = [caption("a", "A dog barks.", "A Dog", "A hound bays"), caption("b", "Rain", "rain")]


def test_without_the_package_it_is_unavailable_and_no_number_is_made_up(no_aac_metrics: None) -> None:
    scored = score_predictions(CAPTIONS, seed=0)["audiocaption"]
    assert list(scored["metrics"]) == ["cider_d"]
    assert scored["unavailable"] == {
        "spider": "the package aac-metrics is not installed; `pip install aac-metrics && aac-metrics-download`, with "
        "Java 8 to 13"
    }
    with pytest.raises(StapesError, match="SPIDEr cannot be computed: the package aac-metrics is not installed"):
        spider(["a", "b"], [["a"], ["b"]])
    assert score_predictions(CAPTIONS, seed=0, protocol="nota-v1.1")["audiocaption"]["metrics"] == {}


def test_what_is_missing_beside_the_package_is_named(aac_metrics: Path) -> None:
    assert why_no_spider() is None
    jar = aac_metrics / "cache/aac-metrics/spice" / JARS[1]
    jar.unlink()
    assert why_no_spider() == f"{jar} is not there; `aac-metrics-download` gets it"
    (aac_metrics / "java").write_text("#!/bin/sh\n# 17.0\n")
    assert str(why_no_spider()).startswith(
        f"SPICE does not run on this Java ({aac_metrics / 'java'}); install version 8"
    )
    (aac_metrics / "java").unlink()
    assert str(why_no_spider()).startswith("there is no Java; install version 8 to 13")


def test_our_own_scoring_gives_words_and_all_references(aac_metrics: Path) -> None:
    metric = score_predictions(CAPTIONS, seed=0)["audiocaption"]["metrics"]["spider"]
    assert (metric["value"], metric["references"]) == (0.375, [1, 2])
    given = sys.modules["aac_metrics.functional.spider"].GIVEN
    assert given == [(["a dog", "rain"], [["a dog barks", "a hound bays"], ["rain"]])]


def test_nota_v11_gives_lowered_texts_and_one_reference_as_it_is(aac_metrics: Path) -> None:
    scored = score_predictions(CAPTIONS, seed=0, protocol="nota-v1.1")["audiocaption"]["metrics"]
    assert {name: (m["value"], m["references"], m["printed"]) for name, m in scored.items()} == {
        "spider": (0.375, 1, "SPIDEr: 0.375")
    }
    assert sys.modules["aac_metrics.functional.spider"].GIVEN == [(["a dog", "rain"], [["A dog barks."], ["Rain"]])]
    assert nota_captions_v11(["x", "y"], ["x", "y"]).numerator.tolist() == [0.25, 0.5]


def test_one_caption_alone_has_no_spider(aac_metrics: Path) -> None:
    assert unavailable("audiocaption", "stapes", 1) == {"spider": "wants at least two samples"}
    assert list(measure("audiocaption", [["a"]], ["a"])) == ["cider_d"]
