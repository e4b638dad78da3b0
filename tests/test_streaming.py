"""Tokens as they are chosen: the same ones, in time, errors and closing included."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from time import perf_counter, sleep
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from stapes.model import StapesForConditionalGeneration, StapesProcessor
from stapes.streaming import TokenStream, settled

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]
Prompt = tuple[StapesForConditionalGeneration, Any]


@pytest.fixture
def prompt(tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> Prompt:
    model, processor = tiny_model_and_processor()
    return model, processor.prepare([speech_like(1.0, 0)], ["Hi?"])


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "stapes-stream"]


def test_tokens_are_those_of_generate(prompt: Prompt) -> None:
    model, inputs = prompt
    with torch.inference_mode():
        whole = cast(Any, model).generate(**inputs, max_new_tokens=30, do_sample=False)
    wanted = whole[0, inputs["input_ids"].shape[1] :].tolist()
    started = perf_counter()
    tokens = list(TokenStream(model, inputs, max_new_tokens=30))
    assert [token.token_id for token in tokens] == wanted
    times = [token.at_s for token in tokens]
    assert times == sorted(times)
    assert started < times[0]
    assert times[-1] < perf_counter()


def test_a_closed_stream_has_stopped_its_model(prompt: Prompt) -> None:
    model, inputs = prompt
    model.generation_config.eos_token_id = None
    stream = TokenStream(model, inputs, max_new_tokens=900)
    next(stream)
    stream.close()
    assert threads() == []
    assert len(list(stream)) < 800
    stream.close()
    assert list(stream) == []


def test_a_finished_stream_leaves_no_thread_behind(prompt: Prompt) -> None:
    class SlowToGo(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]  # legacy aliases
            return scores

        def __del__(self) -> None:
            sleep(0.2)

    model, inputs = prompt
    # A thread that outlives the last token is cut off where a script ends there, and the process aborts.
    list(TokenStream(model, inputs, max_new_tokens=3, guides=[SlowToGo()]))
    assert threads() == []


def test_a_stream_that_is_let_go_stops_its_model(prompt: Prompt) -> None:
    model, inputs = prompt
    model.generation_config.eos_token_id = None
    stream = TokenStream(model, inputs, max_new_tokens=900)
    next(stream)
    thread = stream._thread
    started = perf_counter()
    del stream
    gc.collect()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert perf_counter() - started < 30


def test_an_error_of_the_model_comes_out_where_the_tokens_are_awaited(prompt: Prompt) -> None:
    model, inputs = prompt
    inputs["input_ids"] = inputs["input_ids"][:, :-20]  # cuts into the audio tokens
    stream = TokenStream(model, inputs, max_new_tokens=4)
    with pytest.raises(ValueError, match="audio"):
        list(stream)
    assert list(stream) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("  a", "a"),
        ("a b ", "a b"),
        ("a b\n", "a b"),
        ("caf\N{REPLACEMENT CHARACTER}", "caf"),
        ("a \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}", "a"),
        ("a\N{REPLACEMENT CHARACTER}b", "a\N{REPLACEMENT CHARACTER}b"),
    ],
)
def test_only_what_stays_is_settled(text: str, shown: str) -> None:
    assert settled(text) == shown
