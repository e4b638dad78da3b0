import json
from pathlib import Path

import pytest

from stapes.errors import StapesError
from stapes.evaluate.score import Prediction, compare, read_predictions, score_predictions


def prediction(id: str, task: str, target: str, text: str) -> Prediction:  # noqa: A002 - the key's name
    return {
        "id": id,
        "task": task,  # type: ignore[typeddict-item]  # one test needs a task that does not exist
        "audio": f"audio/{id}.ogg",
        "prompt": "…",
        "target": target,
        "text": text,
        "num_tokens": 3,
        "truncated": False,
    }


PREDICTIONS = [
    prediction("q1", "qa", "yes", "Yes."),
    prediction("s1", "asr", "one two three four", "one two three four"),
    prediction("s2", "asr", "the cat sat on", "the cap sat on"),
    prediction("q2", "qa", "no", "yes"),
]


def test_scores_by_task() -> None:
    tasks = score_predictions(PREDICTIONS, seed=0)
    assert list(tasks) == ["asr", "qa"]
    assert tasks["asr"]["n"] == 2
    assert list(tasks["asr"]["metrics"]) == ["wer", "cer"]
    # "one two three four" is the number 1234 to Whisper's normaliser: 1 word of 5 is wrong, 1 character of 18.
    assert tasks["asr"]["metrics"]["wer"] == {"value": 20.0, "low": 0.0, "high": 25.0, "unit": "%", "better": "lower"}
    assert tasks["asr"]["metrics"]["cer"]["value"] == pytest.approx(100 / 18)
    assert tasks["qa"] == {
        "n": 2,
        "metrics": {"exact_match": {"value": 50.0, "low": 0.0, "high": 100.0, "unit": "%", "better": "higher"}},
    }


def test_captions_tell_their_number_of_references() -> None:
    captions = [
        prediction("a", "audiocaption", "a dog barks", "a dog barks"),
        prediction("b", "audiocaption", "rain", ""),
    ]
    metric = score_predictions(captions, seed=0)["audiocaption"]["metrics"]["cider_d"]
    assert metric["value"] == pytest.approx(3.75)
    assert metric["references"] == 1


def test_compare_pairs_by_id() -> None:
    better = [*PREDICTIONS[:2], prediction("s2", "asr", "the cat sat on", "the cat sat on"), PREDICTIONS[3]]
    paired = compare(PREDICTIONS, better[::-1], against="tune", seed=0)
    assert paired["against"] == "tune"
    assert list(paired["metrics"]) == ["asr.wer", "asr.cer", "qa.exact_match"]
    # Errors of 0 in 1 word and 1 in 4 against none: 0, 1/5 or 1/4 of the words; 0 comes up in a quarter of the draws.
    wer = paired["metrics"]["asr.wer"]
    assert (wer["difference"], wer["low"], wer["high"], wer["n"]) == (20.0, 0.0, 25.0, 2)
    assert wer["p_value"] == pytest.approx(0.5, abs=0.06)
    assert paired["metrics"]["qa.exact_match"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "n": 2}


def test_compare_refuses_other_samples() -> None:
    with pytest.raises(StapesError, match=r"1 samples have no prediction of tune, e.g. `q2`"):
        compare(PREDICTIONS, PREDICTIONS[:3], against="tune", seed=0)
    with pytest.raises(StapesError, match=r"1 samples have no prediction of this variant, e.g. `q2`"):
        compare(PREDICTIONS[:3], PREDICTIONS, against="tune", seed=0)
    changed = [prediction("q1", "qa", "maybe", "Yes."), *PREDICTIONS[1:]]
    with pytest.raises(StapesError, match=r"sample `q1` has target `yes` \(qa\) here but `maybe` \(qa\) with tune"):
        compare(PREDICTIONS, changed, against="tune", seed=0)


def test_predictions_survive_the_file(tmp_path: Path) -> None:
    # U+2028 ends a line for str.splitlines, not for JSON Lines.
    odd = [prediction("a", "asr", "x", "one\u2028two\x85three"), *PREDICTIONS]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in odd), encoding="utf-8")
    assert read_predictions(path) == odd


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "predictions.jsonl:2: not JSON"),
        ("[]", "predictions.jsonl:2: is no prediction"),
        ('{"id": "x"}', "predictions.jsonl:2: is no prediction: lacks audio, num_tokens"),
        (json.dumps(prediction("x", "sing", "", "")), "predictions.jsonl:2: task is `sing`; known are asr"),
    ],
)
def test_bad_prediction_files_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(PREDICTIONS[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(StapesError, match=message):
        read_predictions(path)


def test_a_missing_prediction_file_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(StapesError, match="`stapes eval` writes it"):
        read_predictions(tmp_path / "predictions.jsonl")
