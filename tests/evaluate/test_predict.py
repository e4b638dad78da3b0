import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from stapes.cli.main import app
from stapes.data.sample import Sample, load_manifest
from stapes.errors import AudioError, ManifestError, ModelFolderError, StapesError
from stapes.evaluate.predict import evaluate_model, load_samples, predict
from stapes.files import read_json
from stapes.inference import AudioLM
from stapes.recipe import Evaluate

SPEECH = Callable[[float, int], np.ndarray]
DURATIONS_S = (2.0, 0.3, 31.5, 5.0, 0.05, 12.0, 1.0, 0.3)
SETTINGS: dict[str, Any] = {"batch_size": 4, "max_new_tokens": 12, "limit": None, "against": None, "seed": 0}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, speech_like: SPEECH) -> Path:
    """Eight clips from 50 ms to more than one window, questions of different length, all three tasks."""
    folder = tmp_path_factory.mktemp("clips")
    lines = []
    for number, duration_s in enumerate(DURATIONS_S):
        soundfile.write(folder / f"{number}.wav", speech_like(duration_s, number), 16_000)
        task = ("asr", "audiocaption", "qa")[number % 3]
        line = {"id": f"clip{number}", "audio": f"{number}.wav", "task": task, "target": f"word{number} and so on"}
        if task == "qa":
            line["prompt"] = "Is it loud? " * number
        if number % 2:
            line["duration_s"] = duration_s
        lines.append(json.dumps(line) + "\n")
    path = folder / "test.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp", "ctc_compressor"])
@pytest.mark.parametrize("pad_audio_to_s", [None, 30.0])
def test_a_batch_of_8_says_what_8_batches_of_1_say(
    kind: Literal["windowed_qformer", "stacked_mlp", "ctc_compressor"],
    pad_audio_to_s: float | None,
    manifest: Path,
    tiny_model_and_processor: Callable[..., tuple[Any, Any]],
    tmp_path: Path,
) -> None:
    audio_lm = AudioLM(*tiny_model_and_processor(kind, pad_audio_to_s=pad_audio_to_s))
    samples = load_manifest(manifest)
    said = {
        size: predict(audio_lm, samples, batch_size=size, max_new_tokens=24, out_path=tmp_path / f"{size}.jsonl")
        for size in (8, 3, 1)
    }
    assert said[8] == said[1]
    assert said[3] == said[1]
    assert (tmp_path / "8.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
    # The test would say nothing of a model that answers the same to everything.
    assert len({prediction["text"] for prediction in said[1]}) >= 4


def test_ties_that_rounding_breaks_fall_alike_in_any_batch(
    tiny_model_and_processor: Callable[..., tuple[Any, Any]], manifest: Path, tmp_path: Path
) -> None:
    model, processor = tiny_model_and_processor()
    with torch.no_grad():
        # Each byte's twin is as good as itself but for the last bits: which one is said, rounding decides.
        table = model.get_output_embeddings().weight
        half = 128
        twins = table[:half] * (1 + 3e-7 * torch.randn(half, 1, generator=torch.Generator().manual_seed(0)))
        table[half : 2 * half] = twins
    audio_lm = AudioLM(model, processor)
    samples = load_manifest(manifest)
    said = [
        predict(audio_lm, samples, batch_size=size, max_new_tokens=24, out_path=tmp_path / f"{size}.jsonl")
        for size in (8, 1)
    ]
    assert said[0] == said[1]


@pytest.fixture(scope="module")
def audio_lm(tiny_model_and_processor: Callable[..., tuple[Any, Any]]) -> AudioLM:
    return AudioLM(*tiny_model_and_processor())


def predict_all(audio_lm: AudioLM, samples: list[Sample], out_path: Path) -> list[dict[str, Any]]:
    return [dict(p) for p in predict(audio_lm, samples, batch_size=3, max_new_tokens=12, out_path=out_path)]


def test_predictions_are_in_manifest_order(audio_lm: AudioLM, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.jsonl"
    predictions = predict_all(audio_lm, load_manifest(manifest), out)
    lines = out.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == predictions
    assert [prediction["id"] for prediction in predictions] == [f"clip{number}" for number in range(8)]
    assert (
        predictions[2].items()
        >= {
            "id": "clip2",
            "task": "qa",
            "audio": str(manifest.parent / "2.wav"),
            "prompt": "Is it loud? Is it loud? ",
            "target": "word2 and so on",
            "num_tokens": 12,
            "truncated": True,
        }.items()
    )
    assert predictions[0]["prompt"] == "Transcribe the speech."
    assert list(tmp_path.iterdir()) == [out]


def test_a_killed_run_goes_on_where_it_stopped(audio_lm: AudioLM, manifest: Path, tmp_path: Path) -> None:
    samples = load_manifest(manifest)
    whole = predict_all(audio_lm, samples, tmp_path / "whole.jsonl")
    out = tmp_path / "predictions.jsonl"
    # Two answers, one of them marked to see that it is not asked again, and a line that the kill cut off.
    kept = [whole[5], whole[2] | {"text": "from before"}]
    lines = [json.dumps(prediction, ensure_ascii=False) for prediction in (*kept, whole[3])]
    (tmp_path / "predictions.jsonl.partial").write_text("\n".join(lines)[:-20], encoding="utf-8")
    whole[2]["text"] = "from before"
    assert predict_all(audio_lm, samples, out) == whole
    assert not (tmp_path / "predictions.jsonl.partial").exists()


def test_bad_audio_stops_it_and_keeps_what_is_answered(audio_lm: AudioLM, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    (tmp_path / "bad.jsonl").write_text('{"id": "bad", "audio": "bad.wav", "target": "x", "duration_s": 0.01}\n')
    good = load_manifest(manifest)[:4]
    out = tmp_path / "predictions.jsonl"
    with pytest.raises(AudioError, match=r"bad\.jsonl:1: sample `bad`: .*bad\.wav"):
        predict_all(audio_lm, [*good, *load_manifest(tmp_path / "bad.jsonl")], out)
    assert not out.exists()
    partial = (tmp_path / "predictions.jsonl.partial").read_text(encoding="utf-8")
    # Three a batch, the longest first.
    assert [json.loads(line)["id"] for line in partial.split("\n")[:-1]] == ["clip2", "clip3", "clip0"]


def test_predictions_of_other_samples_are_refused(audio_lm: AudioLM, manifest: Path, tmp_path: Path) -> None:
    samples = load_manifest(manifest)
    out = tmp_path / "predictions.jsonl"
    predict_all(audio_lm, samples[:2], out)
    with pytest.raises(StapesError, match=r"holds 1 predictions of other samples, e.g. `clip0`"):
        predict_all(audio_lm, samples[1:], out)


def test_ids_must_be_told_apart(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"test\.jsonl:1: id `clip0` is taken by .*test\.jsonl:1"):
        load_samples([manifest, manifest], None)
    assert [sample.id for sample in load_samples([manifest], 2)] == ["clip0", "clip1"]


def test_evaluation(manifest: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    scores = evaluate_model(tiny_model_folder, [manifest], tmp_path, **SETTINGS)
    assert scores == read_json(tmp_path / "scores.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.jsonl", "scores.json", "settings.json"]
    described = {key: scores[key] for key in ("variant", "manifests", "n", "seed", "batch_size", "max_new_tokens")}
    assert described == {
        "variant": "tiny",
        "manifests": [str(manifest)],
        "n": 8,
        "seed": 0,
        "batch_size": 4,
        "max_new_tokens": 12,
    }
    assert {task: scored["n"] for task, scored in scores["tasks"].items()} == {"asr": 3, "audiocaption": 3, "qa": 2}
    assert scores["tasks"]["qa"]["metrics"]["exact_match"]["value"] == 0.0
    assert scores["num_resumed"] == 0
    assert (scores["environment"]["device"], scores["environment"]["dtype"]) == ("cpu", "float32")
    assert "paired" not in scores


def test_a_finished_evaluation_is_scored_anew_without_asking_again(
    manifest: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    first = evaluate_model(tiny_model_folder, [manifest], tmp_path / "a", **SETTINGS)
    evaluate_model(tiny_model_folder, [manifest], tmp_path / "b", **SETTINGS)
    # Another answer in the file shows that the file is what is scored.
    path = tmp_path / "a" / "predictions.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[0] = json.dumps(json.loads(lines[0]) | {"text": "word0 and so on"})
    path.write_text("\n".join(lines), encoding="utf-8")
    again = evaluate_model(
        tiny_model_folder,
        [manifest],
        tmp_path / "a",
        **SETTINGS | {"seed": 1, "batch_size": 1, "against": tmp_path / "b"},
    )
    assert again["seed"] == 1
    kept = ("batch_size", "seconds", "num_resumed", "environment")
    assert [again[key] for key in kept] == [first[key] for key in kept]
    wer = again["paired"]["metrics"]["asr.wer"]
    assert again["paired"]["against"] == "tiny"
    assert wer["n"] == 3
    assert (
        wer["difference"]
        == again["tasks"]["asr"]["metrics"]["wer"]["value"] - first["tasks"]["asr"]["metrics"]["wer"]["value"]
    )
    assert wer["difference"] < 0


def test_an_interrupted_evaluation_is_resumed(manifest: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    first = evaluate_model(tiny_model_folder, [manifest], tmp_path, **SETTINGS)
    content = (tmp_path / "predictions.jsonl").read_bytes()
    (tmp_path / "scores.json").unlink()
    (tmp_path / "predictions.jsonl").unlink()
    (tmp_path / "predictions.jsonl.partial").write_bytes(b"".join(content.splitlines(keepends=True)[3:]))
    again = evaluate_model(tiny_model_folder, [manifest], tmp_path, **SETTINGS)
    assert again["num_resumed"] == 5
    assert again["tasks"] == first["tasks"]
    assert (tmp_path / "predictions.jsonl").read_bytes() == content


def test_other_settings_are_never_mixed_in(manifest: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    evaluate_model(tiny_model_folder, [manifest], tmp_path, **SETTINGS | {"limit": 2})
    with pytest.raises(StapesError, match="holds an evaluation of another limit and max_new_tokens; choose another"):
        evaluate_model(tiny_model_folder, [manifest], tmp_path, **SETTINGS | {"max_new_tokens": 3})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(StapesError, match="of another model and manifests and limit and max_new_tokens"):
        evaluate_model(tiny_model_folder, [manifest], tmp_path, **SETTINGS | {"limit": 2})


def test_what_cannot_be_compared_is_refused_before_the_model_answers(
    manifest: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    evaluate_model(tiny_model_folder, [manifest], tmp_path / "two", **SETTINGS | {"limit": 2})
    with pytest.raises(StapesError, match=r"6 samples have no prediction of tiny, e.g. `clip2`"):
        evaluate_model(tiny_model_folder, [manifest], tmp_path / "all", **SETTINGS | {"against": tmp_path / "two"})
    with pytest.raises(StapesError, match=r"nowhere/scores\.json: no such file"):
        evaluate_model(tiny_model_folder, [manifest], tmp_path / "all", **SETTINGS | {"against": tmp_path / "nowhere"})
    with pytest.raises(ModelFolderError, match="nowhere: no such model folder"):
        evaluate_model(tmp_path / "nowhere", [manifest], tmp_path / "all", **SETTINGS)
    assert not (tmp_path / "all").exists()


def test_the_verb(manifest: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    arguments = ["eval", str(tiny_model_folder), "--manifest", str(manifest), "--max-new-tokens", "4", "--limit", "3"]
    shown = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a")])
    assert shown.exit_code == 0
    assert "exact_match" in shown.stdout
    assert shown.stdout.strip().endswith(str(tmp_path / "a"))
    printed = CliRunner().invoke(
        app, [*arguments, "--out", str(tmp_path / "b"), "--against", str(tmp_path / "a"), "--json"]
    )
    scores = json.loads(printed.stdout)
    assert scores == read_json(tmp_path / "b" / "scores.json")
    assert scores["batch_size"] == Evaluate.model_fields["batch_size"].default
    assert scores["paired"]["metrics"]["asr.cer"]["p_value"] == 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_help_tells_the_defaults_of_a_recipe() -> None:
    text = " ".join(CliRunner().invoke(app, ["eval", "--help"], env={"COLUMNS": "300"}).stdout.split())
    assert f"Samples at once, {Evaluate.model_fields['batch_size'].default} unless given" in text
    assert f"tokens of answer, {Evaluate.model_fields['max_new_tokens'].default} unless given" in text


def test_the_published_scorings_stand_beside_our_own(manifest: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    arguments = ["eval", str(tiny_model_folder), "--manifest", str(manifest), "--max-new-tokens", "4"]
    printed = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a"), "--protocol", "nota-v1", "--json"])
    scores = json.loads(printed.stdout)
    assert scores == read_json(tmp_path / "a/scores_nota-v1.json")
    assert (scores["protocol"], list(scores["tasks"]["asr"]["metrics"])) == ("nota-v1", ["wer"])
    assert list(scores["tasks"]["audiocaption"]["metrics"]) == ["cider_d_x100"]
    assert scores["tasks"]["qa"]["unavailable"] == {"exact_match": "nota-v1 scores asr and audiocaption only"}
    ours = read_json(tmp_path / "a/scores.json")
    assert "protocol" not in ours
    assert list(ours["tasks"]["asr"]["metrics"]) == ["wer", "cer"]
    again = [*arguments, "--out", str(tmp_path / "a"), "--protocol", "nota-v1", "--against", str(tmp_path / "a")]
    shown = CliRunner().invoke(app, again, env={"COLUMNS": "200"})
    assert "cider_d_x100, 1 reference" in shown.stdout
    wer = scores["tasks"]["asr"]["metrics"]["wer"]["value"]
    assert f"asr wer: nota-v1 prints `WER: {wer:.4f}%`" in shown.stdout
    assert "qa exact_match is unavailable: nota-v1 scores asr and audiocaption only" in shown.stdout
    assert read_json(tmp_path / "a/scores_nota-v1.json")["paired"]["metrics"]["asr.wer"]["difference"] == 0.0


def test_further_references_reach_the_predictions(manifest: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if '"audiocaption"' in line]
    lines[0]["references"] = ["a second caption"]
    several = manifest.with_name("several.jsonl")
    several.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]), encoding="utf-8")
    scores = evaluate_model(tiny_model_folder, [several], tmp_path, **SETTINGS)
    assert scores["tasks"]["audiocaption"]["metrics"]["cider_d"]["references"] == [1, 2]
    first, second = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["references"] == ["a second caption"]
    assert "references" not in json.loads(second)


@pytest.mark.parametrize("line", [{"audio": "bad.wav"}, {"audio": "gone.wav", "duration_s": 1.0}])
def test_bad_audio_is_found_before_the_model_is_loaded(manifest: Path, tmp_path: Path, line: dict[str, Any]) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    (tmp_path / "model").mkdir()  # holds no model: to load it would be another error
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"id": "bad", "target": "x"} | line) + "\n")
    with pytest.raises(AudioError, match=rf"bad\.jsonl:1: sample `bad`: .*{line['audio']}: no"):
        evaluate_model(tmp_path / "model", [manifest, path], tmp_path / "out", **SETTINGS)


def test_a_question_with_the_audio_token_is_refused_before_any_answer(
    audio_lm: AudioLM, manifest: Path, tmp_path: Path
) -> None:
    token = audio_lm.processor.audio_token
    line = {"id": "odd", "audio": str(manifest.parent / "1.wav"), "task": "qa", "prompt": f"{token}?", "target": "x"}
    (tmp_path / "odd.jsonl").write_text(json.dumps(line) + "\n")
    samples = [*load_manifest(manifest), *load_manifest(tmp_path / "odd.jsonl")]
    with pytest.raises(ManifestError) as caught:
        predict_all(audio_lm, samples, tmp_path / "predictions.jsonl")
    assert str(caught.value) == (
        f"{tmp_path / 'odd.jsonl'}:1: sample `odd`: the question holds the audio token '{token}'; take it out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["odd.jsonl"]
