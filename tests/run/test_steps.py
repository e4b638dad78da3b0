import shutil
from pathlib import Path
from typing import Any

import pytest

from stapes.assembly import load_model
from stapes.errors import RecipeError, StapesError
from stapes.model import WordList
from stapes.recipe import Recipe, load_recipe
from stapes.run import plan_steps

NAMES = [
    "data_check",
    "align",
    "tune",
    "merge_lora",
    "quantize",
    "eval/tune",
    "eval/merge_lora",
    "eval/quantize",
    "bench/tune",
    "bench/merge_lora",
    "bench/quantize",
    "report",
]


def marks(recipe: Recipe, folder: Path) -> dict[str, str]:
    return {step.name: step.fingerprint for step in plan_steps(recipe, folder)}


def test_a_recipe_comes_down_to_steps_in_order(small_parts: Path, tmp_path: Path) -> None:
    steps = plan_steps(load_recipe(small_parts / "small.yaml"), tmp_path)
    assert [step.name for step in steps] == NAMES
    assert [step.name for step in steps if step.everywhere] == ["align", "tune"]
    assert [step.name for step in steps if step.resumable] == [
        "align",
        "tune",
        "eval/tune",
        "eval/merge_lora",
        "eval/quantize",
    ]


def test_without_evaluation_or_bench_there_are_no_such_steps(small_parts: Path, tmp_path: Path) -> None:
    recipe = load_recipe(small_parts / "small.yaml", {"evaluate": None, "bench": None, "compress": []})
    assert [step.name for step in plan_steps(recipe, tmp_path)] == ["data_check", "align", "tune", "report"]


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("bench.repeats", 4, [name for name in NAMES if name.startswith(("bench", "report"))]),
        ("evaluate.limit", 3, [name for name in NAMES if name.startswith(("eval", "report"))]),
        ("report.samples", 3, ["report"]),
        ("train.tune.learning_rate", 2e-3, NAMES[2:]),
        ("train.align.max_steps", 5, NAMES[1:]),
        ("model.pad_audio_to_s", 30, NAMES[1:]),
        ("seed", 2, NAMES[1:]),
        ("compress", [{"kind": "merge_lora"}, {"kind": "quantize", "skip": ["lm_head"]}],
         ["quantize", "eval/quantize", "bench/quantize", "report"]),
        ("name", "other", []),
    ],
)  # fmt: skip
def test_a_change_reaches_what_follows_from_it_and_nothing_else(
    key: str, value: object, changed: list[str], small_parts: Path, tmp_path: Path
) -> None:
    before = marks(load_recipe(small_parts / "small.yaml"), tmp_path)
    after = marks(load_recipe(small_parts / "small.yaml", {key: value}), tmp_path)
    assert [name for name in before if before[name] != after[name]] == changed


def test_what_lies_in_files_of_this_machine_counts(small_parts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small_parts, tmp_path / "parts"))
    noise = {"p": 1, "snr_db": [0, 10], "folder": str(folder / "noises")}
    shutil.copytree(folder / "clips", folder / "noises")
    keys = {**hear(folder), "evaluate": None, "bench": None, "train.hear.augment": {"noise": noise}}
    seen = []
    for path, text in (("words.txt", "word\t-1.0\n"), ("noises/more.wav", ""), ("encoder/config.json", "{}")):
        seen.append(marks(load_recipe(folder / "small.yaml", keys), tmp_path))
        (folder / path).write_text(text)
    seen.append(marks(load_recipe(folder / "small.yaml", keys), tmp_path))
    assert len({found["hear"] for found in seen}) == 4
    assert len({found["data_check"] for found in seen}) == 1


def test_a_part_in_the_users_home_counts_too(
    small_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = Path(shutil.copytree(small_parts, tmp_path / "parts"))
    keys = {"model.speech_encoder": "~/parts/encoder", "model.llm": "~/parts/llm"}
    before = marks(load_recipe(folder / "small.yaml", keys), tmp_path)
    (folder / "llm" / "config.json").write_text("{}")
    after = marks(load_recipe(folder / "small.yaml", keys), tmp_path)
    assert [name for name in before if before[name] != after[name]] == NAMES[1:]


def test_what_goes_on_from_a_trained_model(small_parts: Path, tmp_path: Path) -> None:
    base = tmp_path / "tuned"
    base.mkdir()
    (base / "config.json").write_text("{}")
    more = {"data": {str(small_parts / "train.jsonl"): 1}, "max_steps": 1}
    start = {"model": None, "start_from": str(base), "train": {"more": more}, "compress": []}

    def planned(**keys: object) -> dict[str, str]:
        return marks(load_recipe(small_parts / "small.yaml", {**start, **keys}), tmp_path)

    before = planned()
    # Notes beside a model are no part of it; its code is only where its configuration names it.
    for name in ("step.json", "losses.jsonl", "trained.json", "README.md", "make.py"):
        (base / name).write_text("other")
    assert planned() == before
    after = planned(seed=2)
    assert after["base"] == before["base"]
    assert after["more"] != before["more"]
    compressed = [planned(train=None, compress=[{"kind": "quantize"}], seed=seed)["quantize"] for seed in (1, 2)]
    assert compressed[0] == compressed[1]
    (base / "config.json").write_text('{"auto_map": {}}')
    named = planned()
    (base / "make.py").write_text("changed")
    assert planned()["base"] != named["base"] != before["base"]


def test_another_manifest_text_makes_everything_anew_that_reads_it(small_parts: Path, tmp_path: Path) -> None:
    for name in ("small.yaml", "train.jsonl", "valid.jsonl", "test.jsonl"):
        shutil.copy(small_parts / name, tmp_path)
    recipe = load_recipe(tmp_path / "small.yaml")
    before = marks(recipe, tmp_path)
    manifest = tmp_path / "valid.jsonl"
    manifest.write_text(manifest.read_text().replace("word 1", "word one"))
    after = marks(recipe, tmp_path)
    assert [name for name in before if before[name] != after[name]] == NAMES


def test_a_missing_manifest_is_named(small_parts: Path, tmp_path: Path) -> None:
    recipe = load_recipe(small_parts / "small.yaml", {"evaluate.data": [str(tmp_path / "none.jsonl")]})
    with pytest.raises(StapesError, match=r"none\.jsonl: no such manifest"):
        plan_steps(recipe, tmp_path)


def hear(folder: Path) -> dict[str, Any]:
    """What makes `small.yaml` a recipe of a connector that looks for words."""
    connector = {
        "kind": "ctc_compressor", "letters": 64, "ctc_weight": 0.5, "merges": 1, "words": str(folder / "words.txt"),
        "hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    data = {str(folder / "train.jsonl"): 1}
    stage = {"objective": "ctc", "data": data, "max_steps": 1, "learning_rate": 1e-3}
    return {"model.connector": connector, "train": {"hear": stage}, "compress": []}


def test_the_words_of_transcripts_become_part_of_the_model(small_parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(small_parts, folder)
    WordList({"word": -1.0, "one": -2.0}).write(folder / "words.txt")
    _, stage, *_ = plan_steps(load_recipe(folder / "small.yaml", hear(folder)), tmp_path)
    stage.make(tmp_path / "hear")
    _, processor = load_model(tmp_path / "hear")
    assert processor.words is not None
    assert [word in processor.words for word in ("word", "one", "two")] == [True, True, False]
    (folder / "words.txt").write_text("some words\n")
    with pytest.raises(RecipeError, match=r"^model\.connector\.words: .*line 1: 'some words' is neither a word"):
        stage.make(tmp_path / "again")
    (folder / "words.txt").unlink()
    with pytest.raises(RecipeError, match=r"^model\.connector\.words: .*No such file"):
        stage.make(tmp_path / "again")
