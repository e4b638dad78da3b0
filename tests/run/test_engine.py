import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from stapes.errors import ManifestError, RecipeError, StapesError, WeightsError
from stapes.evaluate.predict import evaluate_model
from stapes.files import read_json
from stapes.inference import load
from stapes.model import BeatsConfig, BeatsEncoder, BeatsFeatureExtractor
from stapes.recipe import Recipe, load_recipe
from stapes.run import check_recipe, check_splits, run_recipe

# Measuring starts a process for each variant, which is the slow tier's business.
OFFLINE = {"bench": None}
MADE = ["data_check", "align", "tune", "merge_lora", "quantize"]
EVALS = ["eval/tune", "eval/merge_lora", "eval/quantize"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe(small_parts: Path) -> Recipe:
    return load_recipe(small_parts / "small.yaml", OFFLINE)


def changed(small_parts: Path, **keys: object) -> Recipe:
    return load_recipe(small_parts / "small.yaml", {**OFFLINE, **{k.replace("__", "."): v for k, v in keys.items()}})


def test_a_run_makes_every_step_once_and_the_second_run_skips_all(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run_recipe(recipe, folder)
    assert (first.made, first.skipped) == ([*MADE, *EVALS, "report"], [])
    assert first.report is not None
    assert first.report == folder / "report" / "report.html"
    assert first.report.stat().st_size > 0
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    lines: list[str] = []
    second = run_recipe(recipe, folder, say=lines.append)
    assert (second.made, second.skipped) == ([], first.made)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    assert lines[0] == "[1/9] data_check: done before, skipped"
    assert not list(folder.rglob("*.partial"))
    for name in first.made:
        mark = read_json(folder / name / "step.json")
        assert mark["step"] == name
        assert mark["complete"] is True
        assert mark["environment"]["device"] == "cpu"

    # Every variant answers, and merging changes nothing that is said.
    said = [
        [json.loads(line)["text"] for line in (folder / name / "predictions.jsonl").read_text().splitlines()]
        for name in EVALS
    ]
    assert len(said[0]) == 4
    assert said[0] == said[1]
    scores = read_json(folder / "eval" / "quantize" / "scores.json")
    assert scores["paired"]["against"] == "tune"
    assert load(folder / "quantize").model.config.int8 is not None


def test_a_run_hears_with_two_encoders(small_parts: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(small_parts, parts)
    beats = BeatsConfig(
        patch_embedding_size=8,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        conv_kernel=8,
        conv_groups=2,
    )
    BeatsEncoder(beats).save_pretrained(parts / "sound")
    BeatsFeatureExtractor().save_pretrained(parts / "sound")
    text = (parts / "small.yaml").read_text().replace("  llm: ./llm\n", "  llm: ./llm\n  sound_encoder: ./sound\n")
    (parts / "both.yaml").write_text(text, encoding="utf-8")
    (parts / "one.yaml").write_text("name: one\nextends: both.yaml\nmodel: {sound_encoder: null}\n", encoding="utf-8")
    assert load_recipe(parts / "one.yaml").parts.sound_encoder is None
    check_recipe(load_recipe(parts / "both.yaml"), "both.yaml")
    folder = tmp_path / "run"
    run_recipe(load_recipe(parts / "both.yaml", {**OFFLINE, "evaluate": None, "compress": []}), folder)
    assert isinstance(load(folder / "tune").model.sound_encoder, BeatsEncoder)


def test_other_settings_are_refused_until_redo_makes_anew_what_follows(small_parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plain = {"evaluate": None, "compress": []}
    run_recipe(changed(small_parts, **plain), folder)
    other = changed(small_parts, **plain, train__tune__learning_rate=2e-3)
    with pytest.raises(StapesError, match=r"run/tune was made from other settings or data; `--redo` makes it"):
        run_recipe(other, folder)
    assert (folder / "tune" / "trained.safetensors").exists()
    redone = run_recipe(other, folder, redo=True)
    assert redone.skipped == ["data_check", "align"]
    assert redone.made == ["tune", "report"]


def test_a_run_that_is_refused_leaves_all_as_it_is(small_parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plain = {"evaluate": None, "compress": [{"kind": "merge_lora"}]}
    run_recipe(changed(small_parts, **plain), folder)
    before = {name: (folder / name).read_text() for name in ("recipe.yaml", "environment.json")}
    shutil.rmtree(folder / "tune")
    # What cannot be used is found before what is missing is trained.
    with pytest.raises(StapesError, match=r"run/merge_lora was made from other settings"):
        run_recipe(changed(small_parts, **plain, train__tune__learning_rate=2e-3), folder)
    assert not (folder / "tune").exists()
    assert {name: (folder / name).read_text() for name in before} == before


def test_what_no_run_made_is_not_taken_away(small_parts: Path, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "run", changed(small_parts, compress=[])
    run_recipe(recipe, folder)
    by_hand = folder / "eval" / "tune"
    shutil.rmtree(by_hand)
    settings = {"batch_size": 2, "max_new_tokens": 4, "limit": None, "against": None, "seed": 0}
    evaluate_model(folder / "tune", [small_parts / "test.jsonl"], by_hand, **settings)
    said = (by_hand / "predictions.jsonl").read_text()
    with pytest.raises(StapesError, match=r"eval/tune was not made by a run \(`step\.json` is missing\); move it away"):
        run_recipe(recipe, folder)
    assert (by_hand / "predictions.jsonl").read_text() == said
    assert run_recipe(recipe, folder, redo=True).made == ["eval/tune", "report"]


def test_the_report_is_of_what_was_measured_last(small_parts: Path, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "run", changed(small_parts, compress=[{"kind": "merge_lora"}])
    run_recipe(recipe, folder)
    shutil.rmtree(folder / "eval" / "tune")

    def interrupt(line: str) -> None:
        if "eval/merge_lora" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, folder, say=interrupt)
    assert run_recipe(recipe, folder).made == ["report"]
    assert run_recipe(recipe, folder).made == []


def test_an_interrupted_step_is_not_taken_for_a_finished_one(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"

    def interrupt(line: str) -> None:
        if "merge_lora" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, folder, say=interrupt)
    assert not (folder / "merge_lora").exists()
    # A folder that a kill left behind half-made is made anew.
    half = folder / "merge_lora.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half of it")
    again = run_recipe(recipe, folder)
    assert again.skipped == ["data_check", "align", "tune"]
    assert again.made == ["merge_lora", "quantize", *EVALS, "report"]
    assert not half.exists()


def test_a_run_goes_on_from_a_trained_model_and_measures_it_too(small_parts: Path, tmp_path: Path) -> None:
    first = changed(small_parts, compress=[])
    run_recipe(first, tmp_path / "run")
    stage = first.train["tune"].model_copy(update={"lora": None, "max_steps": 2, "save_steps": 2})
    start = {"model": None, "start_from": str(tmp_path / "run" / "tune"), "train": {"more": stage}}
    recipe = changed(small_parts, **start)
    assert recipe.start_from == str(tmp_path / "run" / "tune")
    summary = run_recipe(recipe, tmp_path / "more")
    variants = ["base", "more", "merge_lora", "quantize"]
    assert summary.made == ["data_check", *variants, *(f"eval/{variant}" for variant in variants), "report"]
    before, base, after = [
        load_file(tmp_path / folder / "trained.safetensors") for folder in ("run/tune", "more/base", "more/more")
    ]
    assert all(torch.equal(before[name], base[name]) for name in before)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    said = [(tmp_path / place / "predictions.jsonl").read_text() for place in ("run/eval/tune", "more/eval/base")]
    assert said[0] == said[1]
    assert read_json(tmp_path / "more/eval/quantize/scores.json")["paired"]["against"] == "base"
    assert run_recipe(recipe, tmp_path / "more").made == []
    # Nothing has to learn: a trained model can be compressed as it is.
    plain = changed(small_parts, **{**start, "train": None, "evaluate": None})
    assert run_recipe(plain, tmp_path / "plain").made == ["data_check", "base", "merge_lora", "quantize", "report"]
    gone = plain.model_copy(update={"start_from": str(tmp_path / "gone")})
    with pytest.raises(StapesError, match=r"gone: no such model folder"):
        check_recipe(gone, "r.yaml")
    with pytest.raises(StapesError, match=r"gone: no such model folder"):
        run_recipe(gone, tmp_path / "other")


def test_two_runs_do_not_share_a_folder(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(StapesError, match="another run works in this folder"):
        run_recipe(recipe, folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_bad_audio_stops_a_run_before_it_trains(small_parts: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(small_parts, parts)
    clip = parts / "clips" / "train3.wav"
    clip.write_bytes(clip.read_bytes()[:5000])
    with pytest.raises(StapesError, match=r"(?s)1 samples cannot be used, the first:\n.*train\.jsonl:4: .*train3\.wav"):
        run_recipe(load_recipe(parts / "small.yaml", OFFLINE), tmp_path / "run")
    assert not (tmp_path / "run" / "align").exists()


def test_check_finds_what_a_run_would_stumble_over(small_parts: Path) -> None:
    path = str(small_parts / "small.yaml")
    check_recipe(load_recipe(path), path)
    wrong = load_recipe(path, {"train.align.trainer": {"warmup_step": 3}})
    with pytest.raises(RecipeError, match=r"small\.yaml: train\.align\.trainer\.warmup_step .* `warmup_steps`\?"):
        check_recipe(wrong, path)
    with pytest.raises(StapesError, match=r"none\.jsonl: no such manifest"):
        check_recipe(load_recipe(path, {"evaluate.data": ["/nowhere/none.jsonl"]}), path)
    with pytest.raises(WeightsError, match="no/where"):
        check_recipe(load_recipe(path, {"model.llm": "/no/where"}), path)


@pytest.mark.parametrize(("key", "manifest"), [("evaluate.data", "train"), ("train.align.valid", "mixed")])
def test_a_model_is_not_measured_on_what_it_learns_from(
    small_parts: Path, tmp_path: Path, key: str, manifest: str
) -> None:
    parts = Path(shutil.copytree(small_parts, tmp_path / "parts"))
    lines = [(parts / f"{split}.jsonl").read_text().splitlines()[1] for split in ("valid", "train")]
    (parts / "mixed.jsonl").write_text("\n".join(lines) + "\n")
    recipe = load_recipe(parts / "small.yaml", {key: [str(parts / f"{manifest}.jsonl")]})
    problem = rf"small\.yaml: {key}: \d samples of .* are about clips that the model learns from, .*`train[01]`, which"
    with pytest.raises(ManifestError, match=problem):
        check_recipe(recipe, "small.yaml")


@pytest.mark.parametrize("split", ["train", "test"])
def test_further_clips_of_a_sample_are_learnt_and_measured_too(small_parts: Path, tmp_path: Path, split: str) -> None:
    parts = Path(shutil.copytree(small_parts, tmp_path / "parts"))
    learnt = json.loads((parts / "train.jsonl").read_text().splitlines()[0])
    tested = json.loads((parts / "valid.jsonl").read_text().splitlines()[0])
    if split == "train":  # the test's clip is heard after the first one of a sample that is learnt
        own, other = learnt, tested
    else:
        own, other = tested, learnt
    own["extra_audio"] = [other["audio"]]
    (parts / "a.jsonl").write_text(json.dumps(learnt) + "\n")
    (parts / "b.jsonl").write_text(json.dumps(tested) + "\n")
    learnt_from = {f"train.{stage}.data": {str(parts / "a.jsonl"): 1} for stage in ("align", "tune")}
    keys = {**learnt_from, "train.align.valid": [], "evaluate.data": [str(parts / "b.jsonl")]}
    recipe = load_recipe(parts / "small.yaml", keys)
    problem = rf"^small\.yaml: evaluate\.data: 1 samples of .*b\.jsonl are .* e\.g\. `{tested['id']}`, which .*a\.jsonl"
    with pytest.raises(ManifestError, match=problem):
        check_splits(recipe, "small.yaml")
