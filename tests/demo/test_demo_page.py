"""What the page's buttons do, without a browser: cards and messages, and nothing of a traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stapes.demo.answering import Panel
from stapes.demo.cards import card, message
from stapes.inference import AudioLM
from stapes.model import StapesForConditionalGeneration, StapesProcessor

pytest.importorskip("gradio", reason="gradio is not installed: `make install` brings it")

from stapes.demo.page import _answer, _stop, build_page

ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]


@pytest.fixture
def panel(tiny_model_and_processor: ModelFactory) -> Panel:
    return Panel({"tiny": AudioLM(*tiny_model_and_processor(seed=2))}, max_audio_s=10, max_new_tokens=8)


@pytest.fixture
def clip(tmp_path: Path, speech_like: Callable[[float, int], np.ndarray]) -> str:
    soundfile.write(tmp_path / "clip.wav", speech_like(1.0, 0), 16_000)
    return str(tmp_path / "clip.wav")


def test_cards_grow_and_the_message_goes(panel: Panel, clip: str) -> None:
    shown = list(_answer(panel, clip, "Hi?"))
    assert all(error["visible"] is False for error, _ in shown)
    assert 'class="card waiting"' in shown[0][1]
    assert 'class="card done"' in shown[-1][1]


@pytest.mark.parametrize(("audio", "question"), [(None, "Hi?"), (__file__, "Hi?"), ("clip", "")])
def test_a_mistake_is_a_message(panel: Panel, clip: str, audio: str | None, question: str) -> None:
    ((error, shown),) = _answer(panel, clip if audio == "clip" else audio, question)
    assert error["visible"] is True
    assert error["value"].startswith('<p class="message" role="alert">')
    assert shown == card(panel.idle()[0])


def test_a_model_that_fails_is_a_line_here_and_a_traceback_in_the_terminal(
    panel: Panel, clip: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_module: Any, _inputs: Any) -> None:
        raise RuntimeError("out of memory\nat line 3")

    panel.models["tiny"].model.register_forward_pre_hook(fail)
    with caplog.at_level(logging.ERROR):
        error, _ = list(_answer(panel, clip, "Hi?"))[-1]
    assert error["value"] == message("The model failed (RuntimeError); the terminal of `stapes demo` says why.")
    assert "out of memory" in caplog.text
    assert "Traceback" in caplog.text


def test_answers_that_are_complete_outlive_the_failure_of_the_next_model(
    clip: str, tiny_model_and_processor: ModelFactory
) -> None:
    def fail(_module: Any, _inputs: Any) -> None:
        raise RuntimeError("out of memory")

    models = {name: AudioLM(*tiny_model_and_processor(seed=2)) for name in ("a", "b", "c")}
    models["b"].model.register_forward_pre_hook(fail)
    panel = Panel(models, max_audio_s=10, max_new_tokens=8)
    *_, (_, *before), (error, *after) = _answer(panel, clip, "Hi?")
    assert error["value"] == message("The model failed (RuntimeError); the terminal of `stapes demo` says why.")
    assert 'class="card done"' in before[0]
    assert after == [before[0], *map(card, panel.idle()[1:])]


def test_stopping_marks_each_card(panel: Panel) -> None:
    idle = card(panel.idle()[0])
    busy = idle.replace('aria-busy="false"', 'aria-busy="true"')
    assert _stop(idle) == idle
    assert "Stopped." in _stop(busy)
    assert ["Stopped." in each for each in _stop(idle, busy)] == [False, True]


def test_all_events_that_use_the_models_share_one_place(panel: Panel) -> None:
    page = build_page(panel, [])
    of_models = [event for event in page.fns.values() if event.concurrency_id == "models"]
    assert [event.concurrency_limit for event in of_models] == [1, 1, 1, 1]


def test_the_page_says_where_sounds_go_and_not_whose_computer_that_is(panel: Panel) -> None:
    """A proxy in front of a loopback address opens the page to others, and nothing here can know of it."""
    shown = " ".join(str(block.value) for block in build_page(panel, []).blocks.values() if hasattr(block, "value"))
    assert "Sounds go to the computer that runs stapes, which sends them nowhere." in shown
    assert "this computer" not in shown


def test_a_question_with_the_audio_token_is_a_message(panel: Panel, clip: str) -> None:
    token = panel.models["tiny"].processor.audio_token
    *_, (error, shown) = _answer(panel, clip, f"What is {token}?")
    assert error["value"] == message(f"the question holds the audio token '{token}'; take it out")
    assert shown == card(panel.idle()[0])
