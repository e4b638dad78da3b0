"""What a recipe means: `extends`, paths, numbers, overrides, and the way back to YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stapes.recipe import (
    Bench,
    CTCCompressor,
    DynamicClip,
    FixedClip,
    MergeLora,
    Quantize,
    Recipe,
    StackedMLP,
    WindowedQFormer,
    dump_recipe,
    load_recipe,
)

RECIPES = Path(__file__).parents[2] / "recipes"

BASE = """\
name: base
seed: 7
model:
  speech_encoder: openai/whisper-base
  llm: org/llm
  connector: {kind: windowed_qformer, window_s: 0.5, num_layers: 3}
train:
  align:
    data: {a.jsonl: 3, b.jsonl: 1}
    valid: [v.jsonl]
    max_steps: 100
    learning_rate: 3e-5
    augment: {noise: {p: 0.5, snr_db: [0, 20], folder: noises}, gain: {p: 1, db: [-6, 6]}}
  tune:
    data: {a.jsonl: 1}
    trainable: [connector, lora]
    lora: {r: 4, target_modules: all-linear}
    max_steps: 10
    clip: {kind: dynamic, percentile: 50, window: 9}
    trainer: {warmup_steps: 5, weight_decay: 1e-2}
compress: [{kind: merge_lora}, {kind: quantize}]
evaluate: {data: [t.jsonl], limit: 5}
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(folder: Path, text: str, overrides: dict[str, Any] | None = None) -> Recipe:
    return load_recipe(write(folder / "r.yaml", text), overrides)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.yaml", BASE)


def test_a_recipe_is_read_as_it_stands(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(base)
    assert (recipe.name, recipe.seed) == ("base", 7)
    assert recipe.model.connector == WindowedQFormer.model_validate(
        {"kind": "windowed_qformer", "window_s": 0.5, "num_layers": 3}
    )
    assert recipe.model.prompt == "chat"
    assert list(recipe.train) == ["align", "tune"]
    align, tune = recipe.train.values()
    assert align.data == {tmp_path / "a.jsonl": 3.0, tmp_path / "b.jsonl": 1.0}
    assert align.valid == (tmp_path / "v.jsonl",)
    assert (align.trainable, align.lora, align.clip) == (("connector",), None, FixedClip(kind="fixed", max_norm=1.0))
    assert align.learning_rate == 3e-5
    assert align.augment is not None
    assert align.augment.noise is not None
    assert align.augment.noise.folder == tmp_path / "noises"
    assert align.augment.noise.snr_db == (0.0, 20.0)
    assert tune.clip == DynamicClip(kind="dynamic", percentile=50, window=9)
    assert tune.lora is not None
    assert (tune.lora.r, tune.lora.lora_alpha, tune.lora.target_modules) == (4, 32, "all-linear")
    assert recipe.compress == (MergeLora(kind="merge_lora"), Quantize(kind="quantize", bits=8, skip=("connector",)))
    assert recipe.evaluate is not None
    assert (recipe.evaluate.data, recipe.evaluate.limit) == ((tmp_path / "t.jsonl",), 5)
    assert recipe.bench == Bench.model_validate({})
    assert recipe.report.samples == 8


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-5", 3e-5), ("1E+3", 1000.0), ("1.5e2", 150.0), (".5e1", 5.0), ("-2e0", -2.0), ("3", 3), ("1e", "1e")],
)
def test_numbers_are_numbers_everywhere(tmp_path: Path, text: str, value: object) -> None:
    trainer = load(tmp_path, BASE.replace("warmup_steps: 5", f"x: {text}")).train["tune"].trainer
    assert trainer == {"x": value, "weight_decay": 0.01}
    assert type(trainer["x"]) is type(value)


def test_mappings_merge_and_values_replace(base: Path, tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "extends: base.yaml\nname: child\nmodel: {llm: org/other}\n"
        "train: {align: {max_steps: 5, augment: {gain: {p: 0.1}}}, tune: {lora: {r: 16}}}\n",
    )
    before = load_recipe(base)
    assert recipe.name == "child"
    assert recipe.seed == 7
    assert recipe.model == before.model.model_copy(update={"llm": "org/other"})
    assert recipe.train["align"].max_steps == 5
    assert recipe.train["align"].learning_rate == 3e-5
    assert recipe.train["align"].augment is not None
    assert recipe.train["align"].augment.gain is not None
    assert recipe.train["align"].augment.gain.p == 0.1
    assert recipe.train["align"].augment.gain.db == (-6.0, 6.0)
    assert recipe.train["tune"].lora is not None
    assert (recipe.train["tune"].lora.r, recipe.train["tune"].lora.target_modules) == (16, "all-linear")
    assert list(recipe.train) == ["align", "tune"]
    assert recipe.compress == before.compress


def test_a_stage_may_be_another_one_with_changes(tmp_path: Path) -> None:
    text = BASE.replace("  align:\n", "  align: &first\n").replace(
        "  tune:\n", "  again: {<<: *first, max_steps: 7}\n  tune:\n"
    )
    stages = load(tmp_path, text).train
    assert list(stages) == ["align", "again", "tune"]
    assert stages["align"].max_steps == 100
    assert stages["again"] == stages["align"].model_copy(update={"max_steps": 7})


def test_what_is_merged_may_itself_be_another_one_with_changes(tmp_path: Path) -> None:
    text = BASE.replace("  align:\n", "  align: &first\n").replace(
        "  tune:\n", "  again: {<<: &next {<<: *first, max_steps: 7}, learning_rate: 2e-4}\n  last: *next\n  tune:\n"
    )
    stages = load(tmp_path, text).train
    assert list(stages) == ["align", "again", "last", "tune"]
    assert stages["last"] == stages["align"].model_copy(update={"max_steps": 7})
    assert stages["again"] == stages["last"].model_copy(update={"learning_rate": 2e-4})


def test_data_merges_by_file(base: Path, tmp_path: Path) -> None:
    child = "extends: base.yaml\nname: c\ntrain: {align: {data: {./a.jsonl: null, b.jsonl: 2, c.jsonl: 5}}}\n"
    assert load(tmp_path, child).train["align"].data == {tmp_path / "b.jsonl": 2.0, tmp_path / "c.jsonl": 5.0}


def test_null_removes_a_key(base: Path, tmp_path: Path) -> None:
    child = (
        "extends: base.yaml\nname: c\ncompress: null\nevaluate: null\n"
        "train: {tune: null, align: {learning_rate: null, augment: {noise: null}, valid: null}}\n"
    )
    recipe = load(tmp_path, child)
    assert list(recipe.train) == ["align"]
    assert recipe.train["align"].learning_rate == 1e-3
    assert recipe.train["align"].valid == ()
    assert recipe.train["align"].augment is not None
    assert recipe.train["align"].augment.noise is None
    assert recipe.train["align"].augment.gain is not None
    assert recipe.compress == ()
    assert recipe.evaluate is None


def test_bench_null_is_none_wherever_it_stands(base: Path, tmp_path: Path) -> None:
    assert load(tmp_path, BASE + "bench: null\n").bench is None
    assert load(tmp_path, "extends: base.yaml\nname: c\nbench: null\n").bench is None
    assert load(tmp_path, BASE, {"bench": None}).bench is None


def test_another_kind_replaces_the_whole_mapping(base: Path, tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "extends: base.yaml\nname: c\nmodel: {connector: {kind: stacked_mlp, stack: 4}}\n"
        "train: {tune: {clip: {kind: fixed}}}\n",
    )
    assert recipe.model.connector == StackedMLP(kind="stacked_mlp", stack=4, hidden_size=2048)
    assert recipe.train["tune"].clip == FixedClip(kind="fixed", max_norm=1.0)
    same = load(tmp_path, "extends: base.yaml\nname: c\nmodel: {connector: {kind: windowed_qformer, num_heads: 4}}\n")
    assert same.model.connector == WindowedQFormer.model_validate(
        {"kind": "windowed_qformer", "window_s": 0.5, "num_layers": 3, "num_heads": 4}
    )


def test_lists_replace(base: Path, tmp_path: Path) -> None:
    recipe = load(
        tmp_path, "extends: base.yaml\nname: c\ncompress: [{kind: merge_lora}]\nevaluate: {data: [u.jsonl]}\n"
    )
    assert recipe.compress == (MergeLora(kind="merge_lora"),)
    assert recipe.evaluate is not None
    assert (recipe.evaluate.data, recipe.evaluate.limit) == ((tmp_path / "u.jsonl",), 5)


def test_paths_are_relative_to_the_file_that_states_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "recipes" / "base.yaml", BASE.replace("openai/whisper-base", "../models/whisper"))
    child = write(
        tmp_path / "recipes" / "ablations" / "child.yaml",
        "extends: ../base.yaml\nname: c\nmodel: {llm: ./llm}\n"
        "train: {align: {data: {../../data/c.jsonl: 1}}}\nevaluate: {data: [e.jsonl]}\n",
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(child, {"train.align.valid": ["w.jsonl"]})
    recipes = tmp_path / "recipes"
    assert recipe.model.speech_encoder == str(tmp_path / "models" / "whisper")
    assert recipe.model.llm == str(recipes / "ablations" / "llm")
    assert list(recipe.train["align"].data) == [
        recipes / "a.jsonl",
        recipes / "b.jsonl",
        tmp_path / "data" / "c.jsonl",
    ]
    assert recipe.train["align"].augment is not None
    assert recipe.train["align"].augment.noise is not None
    assert recipe.train["align"].augment.noise.folder == recipes / "noises"
    assert recipe.evaluate is not None
    assert recipe.evaluate.data == (recipes / "ablations" / "e.jsonl",)
    # What is typed is relative to where it is typed.
    assert recipe.train["align"].valid == (elsewhere / "w.jsonl",)


def test_hub_ids_are_no_paths(base: Path) -> None:
    assert load_recipe(base).model.speech_encoder == "openai/whisper-base"


def test_overrides_come_last(base: Path, tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "extends: base.yaml\nname: c\nseed: 8\n",
        {
            "seed": 9,
            "train.align.max_steps": 2,
            "train.tune": None,
            "train.align.clip": {"kind": "dynamic"},
            "compress": [],
        },
    )
    assert recipe.seed == 9
    assert list(recipe.train) == ["align"]
    assert recipe.train["align"].max_steps == 2
    assert recipe.train["align"].clip == DynamicClip(kind="dynamic", percentile=10.0, window=1000)
    assert load_recipe(base).train["align"].max_steps == 100


def test_a_dumped_recipe_reads_back_equal(base: Path, tmp_path: Path) -> None:
    for text in (
        BASE,
        BASE + "bench: null\n",
        BASE.replace("org/llm", '"1e5"').replace("warmup_steps: 5", 'x: "3e-5"'),
    ):
        recipe = load(tmp_path, text)
        # In another folder: nothing in a dumped recipe depends on where it stands.
        dumped = write(tmp_path / "runs" / "x" / "recipe.yaml", dump_recipe(recipe))
        assert load_recipe(dumped) == recipe


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(RECIPES)))
def test_recipes_that_we_ship_are_right(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path / "recipe.yaml", dump_recipe(recipe))) == recipe


def test_recipes_need_no_torch() -> None:
    code = (
        "import sys, stapes.recipe, stapes.errors, stapes.files, stapes.environment\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("window_s", "frames"), [(0.34, 17), (0.333333, 17), (0.02, 1), (0.029, 1), (30, 1500)])
def test_a_window_is_a_whole_number_of_encoder_frames(window_s: float, frames: int) -> None:
    section = WindowedQFormer.model_validate({"kind": "windowed_qformer", "window_s": window_s})
    assert section.frames_per_window == frames


def test_a_list_of_words_lies_where_the_recipe_says(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        """\
name: words
seed: 0
model:
  speech_encoder: w
  llm: l
  connector: {kind: ctc_compressor, letters: 64, ctc_weight: 0.5, words: lists/words.txt}
train:
  hear: {objective: ctc, data: {a.jsonl: 1}, max_steps: 1, learning_rate: 1e-3}
""",
    )
    assert isinstance(recipe.parts.connector, CTCCompressor)
    assert recipe.parts.connector.words == tmp_path / "lists" / "words.txt"


@pytest.mark.parametrize("symbols", ["letters", "phones"])
def test_letters_and_phones_may_be_taught_before_pieces(tmp_path: Path, symbols: str) -> None:
    recipe = load(
        tmp_path,
        f"""\
name: {symbols}-first
seed: 0
model: {{speech_encoder: w, llm: l, connector: {{kind: ctc_compressor, {symbols}: 64, words: w.txt, ctc_weight: 0.5}}}}
train:
  first: {{objective: {symbols}, data: {{a.jsonl: 1}}, max_steps: 1, learning_rate: 1e-3}}
  hear: {{objective: ctc, data: {{a.jsonl: 1}}, max_steps: 1, learning_rate: 1e-3}}
""",
    )
    assert [stage.objective for stage in recipe.train.values()] == [symbols, "ctc"]
