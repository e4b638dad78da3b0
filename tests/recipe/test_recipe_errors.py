"""Every mistake in a recipe gives one line: file, key, what is wrong, the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stapes.errors import RecipeError
from stapes.recipe import load_recipe, parse_value

MODEL = """\
name: x
model:
  speech_encoder: openai/whisper-base
  llm: org/llm
"""
QFORMER = "  connector: {kind: windowed_qformer}\n"
TRAIN = "train:\n  align:\n    data: {a.jsonl: 1}\n    max_steps: 3\n"
WHOLE = MODEL + QFORMER + TRAIN
LORA_STAGE = WHOLE + "    trainable: [connector, lora]\n    lora: {r: 4}\n"


def message(folder: Path, text: str | bytes, overrides: dict[str, Any] | None = None) -> str:
    """What `load_recipe` says about `text`, the recipe's path replaced by R and its folder by D."""
    path = folder / "r.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(str(path), "R").replace(str(folder), "D")


QFORMER_KEYS = (
    "kind, window_s, queries_per_window, tail, hidden_size, num_layers, num_heads, intermediate_size, dropout"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # unknown keys, at every depth
        (WHOLE + "sead: 1\n", "R: sead is not a recipe key; did you mean `seed`?"),
        (
            WHOLE + "zzz: 1\n",
            "R: zzz is not a recipe key; known here: name, seed, model, start_from, train, compress, evaluate, bench, "
            "report",
        ),
        (MODEL + "  lm: x\n" + QFORMER + TRAIN, "R: model.lm is not a recipe key; did you mean `llm`?"),
        (
            WHOLE + "    learning_rat: 1\n",
            "R: train.align.learning_rat is not a recipe key; did you mean `learning_rate`?",
        ),
        (
            WHOLE + "    augment: {nois: {p: 1, snr_db: [0, 1]}}\n",
            "R: train.align.augment.nois is not a recipe key; did you mean `noise`?",
        ),
        (
            WHOLE + "    augment: {noise: {p: 1, snr_db: [0, 1], fold: x}}\n",
            "R: train.align.augment.noise.fold is not a recipe key; did you mean `folder`?",
        ),
        (
            LORA_STAGE.replace("{r: 4}", "{rank: 4, lora_alfa: 8}"),
            "R: train.align.lora.rank is not a recipe key; known here: r, lora_alpha, lora_dropout, target_modules, "
            "target_parameters\n"
            "R: train.align.lora.lora_alfa is not a recipe key; did you mean `lora_alpha`?",
        ),
        (WHOLE + "bench: {audio: 3}\n", "R: bench.audio is not a recipe key; did you mean `audio_s`?"),
        # inside unions that a `kind` tells apart: the keys of that kind, and no tag in the path
        (
            MODEL + "  connector: {kind: windowed_qformer, windows_s: 1}\n" + TRAIN,
            "R: model.connector.windows_s is not a recipe key; did you mean `window_s`?",
        ),
        (
            MODEL + "  connector: {kind: windowed_qformer, stack: 8}\n" + TRAIN,
            f"R: model.connector.stack is not a recipe key; known here: {QFORMER_KEYS}",
        ),
        (
            MODEL + "  connector: {kind: stacked_mlp, stak: 8}\n" + TRAIN,
            "R: model.connector.stak is not a recipe key; did you mean `stack`?",
        ),
        (
            WHOLE + "    clip: {kind: dynamic, windw: 8}\n",
            "R: train.align.clip.windw is not a recipe key; did you mean `window`?",
        ),
        (
            WHOLE + "compress: [{kind: quantize, bit: 8}]\n",
            "R: compress.0.bit is not a recipe key; did you mean `bits`?",
        ),
        # kinds
        (
            MODEL + "  connector: {kind: windowed_qforme}\n" + TRAIN,
            "R: model.connector.kind: windowed_qforme is no kind of this section; did you mean `windowed_qformer`?",
        ),
        (
            MODEL + "  connector: {kind: conv}\n" + TRAIN,
            "R: model.connector.kind: conv is no kind of this section; known: windowed_qformer, stacked_mlp, "
            "ctc_compressor",
        ),
        (
            MODEL + "  connector: {stack: 8}\n" + TRAIN,
            "R: model.connector.kind is missing; known: windowed_qformer, stacked_mlp, ctc_compressor",
        ),
        (WHOLE + "    clip: {}\n", "R: train.align.clip.kind is missing; known: fixed, dynamic"),
        (
            WHOLE + "compress: [{kind: merge_lora}, {kind: quantise}]\n",
            "R: compress.1.kind: quantise is no kind of this section; did you mean `quantize`?",
        ),
        # missing keys
        ("name: x\n" + TRAIN, "R: wants either `model`, to build one, or `start_from`, to go on from a trained one"),
        (
            WHOLE + "start_from: stapes-tiny\n",
            "R: wants either `model`, to build one, or `start_from`, to go on from a trained one",
        ),
        (
            MODEL + "  connector: {kind: stacked_mlp}\n",
            "R: train is missing; a model that is built here has to learn in at least one stage",
        ),
        (MODEL + TRAIN, "R: model.connector is missing"),
        (WHOLE.replace("    max_steps: 3\n", ""), "R: train.align.max_steps is missing"),
        (WHOLE + "    augment: {gain: {p: 1}}\n", "R: train.align.augment.gain.db is missing"),
        (WHOLE + "    augment: {gain: {p: 1, db: [3]}}\n", "R: train.align.augment.gain.db.1 is missing"),
        # wrong types and values
        (
            WHOLE.replace("max_steps: 3", "max_steps: many"),
            "R: train.align.max_steps: Input should be a valid integer, unable to parse string as an integer, "
            "not 'many'",
        ),
        (
            WHOLE.replace("max_steps: 3", "max_steps: 0"),
            "R: train.align.max_steps: Input should be greater than or equal to 1, not 0",
        ),
        (WHOLE + "    learning_rate: .inf\n", "R: train.align.learning_rate: Input should be a finite number, not inf"),
        (
            MODEL + "  connector: stacked_mlp\n" + TRAIN,
            "R: model.connector: wants a mapping (`key: value`), not 'stacked_mlp'",
        ),
        (MODEL + QFORMER + "train: 3\n", "R: train: wants a mapping (`key: value`), not 3"),
        (MODEL + QFORMER + "train: {align: 3}\n", "R: train.align: wants a mapping (`key: value`), not 3"),
        (WHOLE + "    valid: v.jsonl\n", "R: train.align.valid: wants a list, not 'v.jsonl'"),
        (WHOLE + "evaluate: {data: [3]}\n", "R: evaluate.data.0: wants a path, not 3"),
        (WHOLE.replace("a.jsonl: 1", "7: 1"), "R: train.align.data.7: wants a path, not 7"),
        (WHOLE + "evaluate: {data: []}\n", "R: evaluate.data: wants at least 1, not 0"),
        (WHOLE.replace("{a.jsonl: 1}", "{}"), "R: train.align.data: wants at least 1, not 0"),
        (
            WHOLE.replace("{a.jsonl: 1}", "[a.jsonl]"),
            "R: train.align.data: wants a mapping (`key: value`), not ['a.jsonl']",
        ),
        (
            WHOLE + "    augment: {gain: {p: 1, db: [1, 2, 3]}}\n",
            "R: train.align.augment.gain.db: wants at most 2, not 3",
        ),
        (
            WHOLE + "    augment: {gain: {p: 1, db: [3, -3]}}\n",
            "R: train.align.augment.gain.db: wants [lowest, highest], not [3, -3]",
        ),
        (
            WHOLE + "    augment: {speed: {p: 1, factor: [0, 1]}}\n",
            "R: train.align.augment.speed.factor.0: Input should be greater than 0, not 0",
        ),
        (
            WHOLE + "    augment: {band_pass: {p: 1, low_hz: 4000}}\n",
            "R: train.align.augment.band_pass: low_hz 4000 is not below high_hz 3400",
        ),
        (
            WHOLE + "    trainable: [conector]\n",
            "R: train.align.trainable.0: Input should be 'speech_encoder', 'sound_encoder', 'connector', "
            "'language_model' or 'lora', not 'conector'",
        ),
        (
            LORA_STAGE.replace("{r: 4}", "{target_modules: [3]}"),
            "R: train.align.lora.target_modules: wants a list of module names, or one text: `all-linear`, or a regular "
            "expression, not [3]",
        ),
        (
            MODEL + "  connector: {kind: windowed_qformer, hidden_size: 100}\n" + TRAIN,
            "R: model.connector: hidden_size 100 does not divide by num_heads 12",
        ),
        (
            MODEL + "  connector: {kind: windowed_qformer, window_s: 0.01}\n" + TRAIN,
            "R: model.connector.window_s: Input should be greater than or equal to 0.02, not 0.01",
        ),
        (
            MODEL + '  prompt: "say {instruction}"\n' + QFORMER + TRAIN,
            "R: model: prompt must be `chat`, `plain` or a text with one {audio}, not 'say {instruction}'",
        ),
        (
            WHOLE.replace("name: x", "name: ../x"),
            "R: name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]*$', not '../x'",
        ),
        # contradictions
        (
            WHOLE.replace("a.jsonl: 1", "a.jsonl: 0"),
            "R: train.align: data: the weight of D/a.jsonl is 0.0; weights are shares above 0",
        ),
        (
            WHOLE.replace("a.jsonl: 1", "a.jsonl: 1, ./a.jsonl: 2"),
            "R: train.align.data: ./a.jsonl stands twice, spelt differently; add the shares up",
        ),
        (
            WHOLE + "    trainer: {warmup_steps: 3, learning_rate: 1}\n",
            "R: train.align: trainer: learning_rate is set by the recipe itself; use the key beside `trainer`",
        ),
        (
            WHOLE + "    trainer: {max_grad_norm: 3, seed: 1}\n",
            "R: train.align: trainer: max_grad_norm, seed is set by the recipe itself; use the key beside `trainer`",
        ),
        (
            WHOLE + "    objective: ctc\n",
            "R: train.align: `objective: ctc` teaches a connector of kind ctc_compressor, not windowed_qformer",
        ),
        (
            MODEL + "  connector: {kind: ctc_compressor}\n" + TRAIN + "    objective: sound\n",
            "R: train.align: `objective: sound` wants `sound_layer` in `model.connector`",
        ),
        (
            MODEL + "  connector: {kind: ctc_compressor}\n" + TRAIN + "    objective: letters\n",
            "R: train.align: `objective: letters` wants `letters` in `model.connector`",
        ),
        (
            MODEL
            + "  connector: {kind: ctc_compressor, words: w.txt, phones: 0, letters: 64, ctc_weight: 0.5}\n"
            + TRAIN
            + "    objective: phones\n",
            "R: train.align: `objective: phones` wants `phones` in `model.connector`",
        ),
        (
            MODEL + "  connector: {kind: ctc_compressor, phones: 64}\n" + TRAIN + "    objective: ctc\n",
            "R: train.align: to teach phones takes `words` in `model.connector`, with how to speak them",
        ),
        (
            MODEL + "  sound_encoder: ./beats\n  connector: {kind: ctc_compressor, sound_layer: 2}\n" + TRAIN,
            "R: model: sounds are heard by a `sound_encoder` or by a `sound_layer`, not by both",
        ),
        (
            MODEL + "  connector: {kind: ctc_compressor}\n" + TRAIN,
            "R: train.align: a ctc_compressor hears nothing before a stage with `objective: ctc`; put one first",
        ),
        (
            WHOLE + "    feature_cache: false\n    augment: {frames: {}}\n",
            "R: train.align: `augment.frames` acts on stored encoder output; drop it or `feature_cache: false`",
        ),
        (
            WHOLE + "    trainable: [speech_encoder, connector]\n    augment: {frames: {}}\n",
            "R: train.align: `augment.frames` acts on stored encoder output, and that of a speech_encoder that learns "
            "is not stored; take one of the two out",
        ),
        (
            LORA_STAGE + "    objective: ctc\n",
            "R: train.align: `objective: ctc` has no use for lora; take that out of `trainable`",
        ),
        (
            MODEL + "  connector: {kind: ctc_compressor, step_s: 0.1}\n" + TRAIN,
            "R: model.connector: step_s is 0.1; wanted a multiple of 0.04",
        ),
        (
            MODEL + "  connector: {kind: ctc_compressor, step_s: 0.2}\n" + TRAIN,
            "R: model.connector: step_s 0.2 is longer than slot_s 0.16",
        ),
        (
            MODEL + "  connector: {kind: ctc_compressor, words: words.txt, ctc_weight: 0.5}\n" + TRAIN,
            "R: model.connector: words are searched for among letters: give `letters` and a `ctc_weight`, too",
        ),
        (
            WHOLE + "    lora: {r: 4}\n",
            "R: train.align: `lora` is set but `trainable` does not list it; add it to `trainable` or drop `lora`",
        ),
        (
            LORA_STAGE + "  tune:\n    data: {t.jsonl: 1}\n    max_steps: 1\n    trainable: [lora]\n    lora: {r: 8}\n",
            "R: train.tune.lora: adapters stay for later stages and cannot change their shape; drop it",
        ),
        (
            WHOLE + "    trainable: [lora]\n",
            "R: train.align: `trainable` lists lora, but no stage up to here has a `lora` section",
        ),
        (
            LORA_STAGE + "compress: [{kind: quantize}, {kind: merge_lora}]\n",
            "R: compress: `quantize` needs merged adapters; put {kind: merge_lora} before it",
        ),
        (
            LORA_STAGE + "compress: [{kind: quantize}]\n",
            "R: compress: `quantize` needs merged adapters; put {kind: merge_lora} before it",
        ),
        (
            LORA_STAGE.replace(MODEL + QFORMER, "name: x\nstart_from: m\n") + "compress: [{kind: quantize}]\n",
            "R: compress: `quantize` needs merged adapters; put {kind: merge_lora} before it",
        ),
        (WHOLE + f"seed: {2**32}\n", f"R: seed: Input should be less than {2**32}, not {2**32}"),
        (
            WHOLE + "compress: [{kind: merge_lora}]\n",
            "R: compress: `merge_lora` has nothing to merge; no stage has a `lora` section",
        ),
        (
            WHOLE + "compress: [{kind: quantize}, {kind: quantize}]\n",
            "R: compress: each kind of step may stand once, not quantize, quantize",
        ),
        (
            WHOLE.replace("align:", "eval:"),
            "R: train: `eval` cannot name a stage; use lower-case letters, e.g. `align`",
        ),
        (
            WHOLE.replace("align:", "A/b:"),
            "R: train: `A/b` cannot name a stage; use lower-case letters, e.g. `align`",
        ),
        # YAML
        (WHOLE + "    max_steps: 4\n", "R:10: not YAML: `max_steps` stands twice"),
        (WHOLE + "name: y\n", "R:10: not YAML: `name` stands twice"),
        (WHOLE + "    ? [a, b]\n    : 4\n", "R:10: not YAML: found unhashable key"),
        (WHOLE + "evaluate: [\n", "R:11: not YAML: expected the node content, but found '<stream end>'"),
        ("name: x\n\tmodel: y\n", "R:2: not YAML: found character '\\t' that cannot start any token"),
        (
            "x: !!python/object/apply:os.getcwd []\n",
            "R:1: not YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.getcwd'",
        ),
        ("name: \0\n", "R: not YAML: unacceptable character #x0000: special characters are not allowed"),
        ("- name\n", "R: a recipe is a mapping (`name: …`), not list"),
        ("", "R: a recipe is a mapping (`name: …`), not NoneType"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == expected


def test_without_the_mistakes_the_recipes_are_right(tmp_path: Path) -> None:
    for text in (WHOLE, LORA_STAGE):
        (tmp_path / "r.yaml").write_text(text)
        assert load_recipe(tmp_path / "r.yaml").name == "x"


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = WHOLE.replace("name: x", "nam: x").replace("max_steps: 3", "max_step: 3")
    assert message(tmp_path, text).splitlines() == [
        "R: name is missing",
        "R: train.align.max_steps is missing",
        "R: train.align.max_step is not a recipe key; did you mean `max_steps`?",
        "R: nam is not a recipe key; did you mean `name`?",
    ]


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.yaml: no such recipe$"):
        load_recipe(tmp_path / "gone.yaml")
    with pytest.raises(RecipeError, match=r": not a recipe file: .*Is a directory"):
        load_recipe(tmp_path)
    assert message(tmp_path, b"name: \xff\n").startswith("R: not a recipe file: 'utf-8' codec can't decode byte 0xff")


def test_a_mistake_in_the_base_names_the_base(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(WHOLE + "    learning_rat: 1\n")
    assert message(tmp_path, "extends: base.yaml\nname: y\nsead: 1\n").splitlines() == [
        "D/base.yaml: train.align.learning_rat is not a recipe key; did you mean `learning_rate`?",
        "R: sead is not a recipe key; did you mean `seed`?",
    ]


def test_extends_goes_one_level(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: root.yaml\n")
    assert (
        message(tmp_path, "extends: base.yaml\n")
        == "R: extends base.yaml, which extends root.yaml; one level is allowed"
    )
    assert message(tmp_path, "extends: gone.yaml\n") == "R: extends: D/gone.yaml: no such recipe"
    assert message(tmp_path, "extends: [a, b]\n") == "R: extends: wants the name of one recipe file, not ['a', 'b']"
    assert message(tmp_path, "extends: r.yaml\n") == "R: extends r.yaml, which extends r.yaml; one level is allowed"


def test_a_mistake_on_the_command_line_names_set(tmp_path: Path) -> None:
    assert message(tmp_path, WHOLE, {"train.align.max_step": 3}) == (
        "--set: train.align.max_step is not a recipe key; did you mean `max_steps`?"
    )
    assert message(tmp_path, WHOLE, {"name.x": 3}) == "--set name.x: `name` is not a mapping"
    assert message(tmp_path, WHOLE, {"train.tune.max_steps": 3}) == "R: train.tune.data is missing"


def test_values_of_the_command_line() -> None:
    assert parse_value("3e-5") == 3e-5
    assert parse_value("[a, 1]") == ["a", 1]
    assert parse_value("{kind: fixed}") == {"kind": "fixed"}
    assert parse_value("null") is None
    with pytest.raises(RecipeError) as caught:
        parse_value("{a: 1")
    assert str(caught.value) == "'{a: 1' is not a YAML value: expected ',' or '}', but got '<stream end>'"
