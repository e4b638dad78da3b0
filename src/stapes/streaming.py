"""The tokens of an answer while it is being made: `generate` in a thread of its own, its tokens in a queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from time import perf_counter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from .model import StapesForConditionalGeneration


class TimedToken(NamedTuple):
    """A token, and when it was chosen (`perf_counter`), however late it is asked for; several may be chosen at once."""

    token_id: int
    at_s: float


class TokenStream:
    """Greedy tokens of one prompt, one by one, as `generate` chooses them.

    The model starts at once, in a thread that ends with the answer, with `close`, or when the stream is let go.

    Args:
        model: in eval mode; one call at a time is for the caller to see to.
        inputs: what the processor's `prepare` gives for one sample, on the model's device.
        max_new_tokens: at most so many tokens.
        guides: what has a say in which token comes next.
        tokenizer: needed by models whose answers end at a text (`stop_strings` of their generation configuration).

    Source: the same calls as transformers' `TextIteratorStreamer` makes; unlike it this one yields tokens, passes
    errors on, and can be closed.
    """

    def __init__(
        self,
        model: StapesForConditionalGeneration,
        inputs: Mapping[str, Any],
        *,
        max_new_tokens: int,
        guides: Sequence[LogitsProcessor] = (),
        tokenizer: Any = None,
    ) -> None:
        self._queue: SimpleQueue[TimedToken | BaseException | None] = SimpleQueue()
        self._stop = Event()
        self._ended = False
        # The thread must not hold this object: a stream that is let go stops its model (`__del__`).
        generate = {"max_new_tokens": max_new_tokens, "logits_processor": list(guides), "tokenizer": tokenizer}
        arguments = (model, {**inputs, **generate}, self._queue, self._stop)
        self._thread = Thread(target=_generate, args=arguments, name="stapes-stream", daemon=True)
        self._thread.start()

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> TimedToken:
        if self._ended:
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, TimedToken):
            return item
        self._ended = True
        # What it still holds is let go in the thread: a script that ends here must not cut it off.
        self._thread.join()
        if item is not None:
            raise item
        raise StopIteration

    def close(self) -> None:
        """Stop the model and wait until it has: one token at most. Nothing happens if it is done; any thread may."""
        self._stop.set()
        self._thread.join()

    def __del__(self) -> None:
        self._stop.set()


class _Listener(BaseStreamer):
    def __init__(self, queue: SimpleQueue[TimedToken | BaseException | None]) -> None:
        self._queue = queue
        self._prompt_is_past = False

    def put(self, value: Tensor) -> None:
        if self._prompt_is_past:
            at_s = perf_counter()
            for token_id in value.flatten().tolist():
                self._queue.put(TimedToken(token_id, at_s))
        self._prompt_is_past = True

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):
    def __init__(self, stop: Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]  # legacy alias
        return torch.full((input_ids.shape[0],), self._stop.is_set(), device=input_ids.device, dtype=torch.bool)


def _generate(
    model: StapesForConditionalGeneration,
    arguments: dict[str, Any],
    queue: SimpleQueue[TimedToken | BaseException | None],
    stop: Event,
) -> None:
    end: BaseException | None = None
    listener = _Listener(queue)
    if "custom_generate" in arguments:  # to such a method `generate` hands no streamer
        arguments["custom_generate"] = partial(arguments["custom_generate"], streamer=listener)
    try:
        # Inference mode is a thread's own. The protocol that types `generate` asks for more than our model has.
        with torch.inference_mode():
            cast(Any, model).generate(
                **arguments,
                do_sample=False,
                streamer=listener,
                stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
            )
    except BaseException as error:  # raised again where the tokens are awaited
        end = error
    finally:
        queue.put(end)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return the part of a decoded beginning that no stop string can still turn out to have begun in."""
    longest = max((len(stop) for stop in stops), default=1)
    for begin in range(max(0, len(text) - longest + 1), len(text)):
        if any(stop.startswith(text[begin:]) for stop in stops):
            return text[:begin]
    return text


def settled(text: str) -> str:
    """Return the part of a decoded beginning that stays as it is, whatever tokens follow.

    White space at both ends goes, as from a whole answer. A replacement character at the end is held back: it is a
    character of which some bytes are still to come.
    """
    return text.lstrip().rstrip("\N{REPLACEMENT CHARACTER}").rstrip()
