"""Answers that the LLM reads as drafts, against the same written token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import BaseStreamer

from stapes.model import DraftedDecoding
from stapes.model.drafts import MOST_DRAFTED

LENGTH = 12


class Dislikes(LogitsProcessor):
    """Forbids what was said last, which no fixed draft can foresee."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]  # legacy aliases of Tensor
        return scores.scatter(1, input_ids[:, -1:], -torch.inf)


class Told(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def model(tiny_model_and_processor: Callable[..., tuple[Any, Any]]) -> Any:
    model = tiny_model_and_processor()[0]
    for parameter in model.language_model.parameters():
        parameter.data.mul_(4)  # so that what is read matters
    return model


@torch.inference_mode()
def answer(
    model: Any,
    draft: Callable[[Sequence[int]], Sequence[int]] | None,
    streamer: BaseStreamer | None = None,
    **generate: Any,
) -> tuple[list[int], int]:
    """Return what follows a prompt, and how often the LLM ran for it; without a draft token by token."""
    prompt = torch.arange(20, 29)[None]
    embeds = model.get_input_embeddings()(prompt)
    cache = model.language_model(inputs_embeds=embeds[:, :-1], use_cache=True).cache
    calls: list[int] = []
    hook = model.language_model.model.register_forward_hook(lambda *_: calls.append(1))
    drafted = {} if draft is None else {"custom_generate": partial(DraftedDecoding(draft), streamer=streamer)}
    inputs = {"input_ids": prompt, "inputs_embeds": embeds, "attention_mask": torch.ones_like(prompt), "cache": cache}
    settings = {"max_new_tokens": LENGTH, "do_sample": False, "logits_processor": LogitsProcessorList([Dislikes()])}
    output = model.generate(**inputs, **{**settings, **drafted, **generate})
    hook.remove()
    return output[0, prompt.shape[1] :].tolist(), len(calls)


@pytest.mark.parametrize("wrong", [(), (0,), (3,), (2, 3, 9), range(LENGTH)])
def test_what_a_draft_says_wrongly_the_llm_says_itself(model: Any, wrong: Sequence[int]) -> None:
    expected, calls = answer(model, None)
    assert calls == len(expected) == LENGTH
    assert len(set(expected)) > 3
    drafts = [token + 1 if at in wrong else token for at, token in enumerate(expected)]
    said, calls = answer(model, lambda written: drafts[len(written) :])
    assert said == expected
    # A wrong token costs one more pass, but for the last one, which no draft has.
    assert calls == 1 + sum(at < LENGTH - 1 for at in wrong)


def test_a_long_draft_is_read_in_parts(model: Any) -> None:
    expected, _ = answer(model, None, max_new_tokens=2 * MOST_DRAFTED + 3)
    said, calls = answer(model, lambda written: expected[len(written) :], max_new_tokens=2 * MOST_DRAFTED + 3)
    # Each pass adds a token of its own to the draft's.
    assert (said, calls) == (expected, 3)


def test_without_drafts_it_is_greedy_decoding(model: Any) -> None:
    assert answer(model, lambda written: []) == answer(model, None)


def test_the_end_ends_it_whatever_the_draft_says(model: Any) -> None:
    expected, _ = answer(model, None)
    end = expected[5]
    told = Told()
    said, calls = answer(model, lambda written: expected[len(written) :], eos_token_id=end, streamer=told)
    assert said == expected[: expected.index(end) + 1] == answer(model, None, eos_token_id=end)[0]
    assert calls == 1
    assert told.tokens == said
    assert told.ended
    assert answer(model, lambda written: expected[len(written) :] + [1] * 50, max_new_tokens=4)[0] == expected[:4]
