"""One question to every model: what is shown meanwhile, what it cost, what is refused, and never two at once."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stapes.data.prompts import TEST_INSTRUCTIONS
from stapes.demo.answering import Panel, Reply, names_of
from stapes.errors import AudioError, UsageError
from stapes.inference import AudioLM
from stapes.model import StapesForConditionalGeneration, StapesProcessor

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]


@pytest.fixture
def panel(tiny_model_and_processor: ModelFactory) -> Panel:
    models = {name: AudioLM(*tiny_model_and_processor(seed=seed)) for seed, name in enumerate(("a", "b"))}
    return Panel(models, max_audio_s=3, max_new_tokens=12)


@pytest.fixture
def clip(tmp_path: Path, speech_like: Waveforms) -> Path:
    soundfile.write(tmp_path / "clip.wav", speech_like(2.0, 0), 16_000, subtype="FLOAT")
    return tmp_path / "clip.wav"


def test_each_model_answers_as_it_does_alone(panel: Panel, clip: Path) -> None:
    seen = list(panel.ask(clip, " Hi? "))
    for row, (name, lm) in enumerate(panel.models.items()):
        last = seen[-1][row]
        assert (last.model, last.text, last.state) == (name, lm.ask(clip, "Hi?", max_new_tokens=12), "done")


def test_what_is_seen_meanwhile(panel: Panel, clip: Path) -> None:
    assert panel.idle() == [Reply("a"), Reply("b")]
    seen = list(panel.ask(clip, "Hi?"))
    assert seen[0] == [Reply("a", state="waiting"), Reply("b", state="waiting")]
    assert seen[1] == [Reply("a", state="speaking"), Reply("b", state="waiting")]
    states = [tuple(reply.state for reply in replies) for replies in seen]
    assert sorted(set(states), key=states.index) == [
        ("waiting", "waiting"),
        ("speaking", "waiting"),
        ("done", "waiting"),
        ("done", "speaking"),
        ("done", "done"),
    ]
    for row in (0, 1):
        texts = [replies[row].text for replies in seen]
        assert all(after.startswith(before) for before, after in pairwise(texts))


def test_a_model_is_seen_at_work_before_its_work_begins(clip: Path, tiny_model_and_processor: ModelFactory) -> None:
    """Transcripts that CTC has a say in are heard before there is a stream; the card must not say "waiting" then."""
    lm = AudioLM(*tiny_model_and_processor("ctc_compressor"))
    lm.model.config.connector_config.ctc_weight = 0.5
    seen: list[str] = []
    encoded: list[list[str]] = []
    lm.model.speech_encoder.register_forward_pre_hook(lambda _module, _inputs: encoded.append(list(seen)))
    for (reply,) in Panel({"a": lm}, max_audio_s=3, max_new_tokens=4).ask(clip, TEST_INSTRUCTIONS["asr"]):
        seen.append(reply.state)
    assert encoded == [["waiting", "speaking"]]


def test_what_an_answer_cost(panel: Panel, clip: Path) -> None:
    figures = list(panel.ask(clip, "Hi?"))[-1][0].figures
    answer = panel.models["a"].answer([soundfile.read(clip, dtype="float32")[0]], ["Hi?"], max_new_tokens=12)[0]
    assert figures is not None
    assert (figures.audio_s, figures.num_audio_tokens) == (2.0, 6)
    assert (figures.num_tokens, figures.truncated) == (answer.num_tokens, answer.truncated)
    assert figures.ttft_s > 0
    assert figures.tokens_per_s is not None
    assert figures.memory == "rss"
    assert figures.peak_bytes is not None
    assert 50e6 < figures.peak_bytes < 50e9  # torch alone is more, this machine less


def test_what_is_refused(panel: Panel, clip: Path, tmp_path: Path, speech_like: Waveforms) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "long.wav", speech_like(3.5, 0), 16_000)
    refused: list[tuple[Path | None, str | None, type[Exception], str]] = [
        (None, "Hi?", AudioError, "^There is no sound yet: "),
        (clip, None, UsageError, "^The question is empty: "),
        (clip, " \n", UsageError, "^The question is empty: "),
        (tmp_path / "text.wav", "Hi?", AudioError, r"^text\.wav: not audio that libsndfile can read"),
        (tmp_path / "long.wav", "Hi?", AudioError, r"^The sound lasts 4 s, and this page takes 3 s: "),
    ]
    for audio, question, kind, message in refused:
        with pytest.raises(kind, match=message) as caught:
            next(panel.ask(audio, question))
        assert "\n" not in str(caught.value)


def note_calls(panel: Panel) -> list[threading.Thread]:
    """List the thread of every call of every model, in order."""
    calls: list[threading.Thread] = []

    def note(_module: Any, _inputs: Any) -> None:
        calls.append(threading.current_thread())

    for lm in panel.models.values():
        lm.model.register_forward_pre_hook(note)
    return calls


def test_one_model_call_at_a_time(panel: Panel, clip: Path) -> None:
    calls = note_calls(panel)
    answers: list[list[Reply]] = []
    askers = [threading.Thread(target=lambda: answers.append(list(panel.ask(clip, "Hi?"))[-1])) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert [[reply.text for reply in replies] for replies in answers] == [[r.text for r in answers[0]]] * 3
    changes = sum(before is not after for before, after in pairwise(calls))
    assert changes == 5  # six answers, none of which another interrupted


def test_one_who_leaves_lets_the_next_one_in(panel: Panel, clip: Path) -> None:
    panel.max_new_tokens = 900
    for number in (2, 3):  # before its stream is made, and while that speaks
        asking = panel.ask(clip, "Hi?")
        replies = [next(asking)[0] for _ in range(number)]
        assert [reply.state for reply in replies[1:]] == ["speaking"] * (number - 1)
        assert bool(replies[-1].text) is (number == 3)
        asking.close()  # type: ignore[attr-defined]  # a generator
    calls = note_calls(panel)
    panel.max_new_tokens = 4
    assert list(panel.ask(clip, "Hi?"))[-1][1].state == "done"
    assert len(calls) <= 8


def test_models_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert names_of([tmp_path / "runs/a/tune"]) == ["tune"]
    assert names_of([tmp_path / "runs/a/tune", tmp_path / "runs/a/quantize"]) == ["tune", "quantize"]
    assert names_of([tmp_path / "runs/a/tune", tmp_path / "runs/b/tune"]) == ["a/tune", "b/tune"]
    with pytest.raises(UsageError, match=r"tune: is named twice; name each model once$"):
        names_of([tmp_path / "tune", tmp_path / "x" / ".." / "tune"])


def test_a_sound_that_is_too_long_is_not_decoded(panel: Panel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "hours.flac", np.zeros(600 * 16_000, np.int16), 16_000)  # 0.1 MB, and 38 MB of samples
    tracemalloc.start()
    with pytest.raises(AudioError, match=r"^The sound lasts 600 s, and this page takes 3 s: "):
        next(panel.ask(tmp_path / "hours.flac", "Hi?"))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1e6
