"""How long an answer takes, part by part.

The parts are the model's own, called in the order `generate` calls them: features (processor) → encoders →
connector → prefill → one cached step a token. Not among them is the search for a transcript, which models with
`ctc_weight` make before the LLM writes. Prefill is bound by arithmetic, a cached step by reading every weight
once; so the two are told apart. Clocks are read only when the device has done all it was given.

The CUDA half was type-checked and unit-tested, but never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..model import StapesForConditionalGeneration, StapesProcessor


@dataclass(frozen=True)
class TimedRun:
    """One clip answered once.

    Attributes:
        seconds: `features` (log-mel and tokenised prompt), `encoder`, `connector`, `prefill` (the LLM over the prompt),
            `per_token` (mean of the cached steps), `ttft` (from the waveform to the first token) and `total` (to the
            last token). Parts add up to `ttft` but for choosing the first token.
        token_ids: the greedy tokens, as `generate` gives them; an end symbol does not end the run.
        num_prompt_tokens: L, audio tokens included.
        num_audio_tokens: A.
    """

    seconds: dict[str, float]
    token_ids: list[int]
    num_prompt_tokens: int
    num_audio_tokens: int


@torch.inference_mode()
def time_answer(
    model: StapesForConditionalGeneration,
    processor: StapesProcessor,
    waveform: np.ndarray,
    instruction: str,
    new_tokens: int,
) -> TimedRun:
    """Answer one clip with exactly `new_tokens` tokens, at least 2, and time each part.

    Args:
        model: in eval mode.
        processor: the one saved with it.
        waveform: (N,), float32, mono, 16 kHz.
        instruction: what the prompt asks.
        new_tokens: the prefill predicts the first, `new_tokens - 1` cached steps the others.
    """
    now = _clock(model.device)
    suppressed = model.generation_config.suppress_tokens
    started = now()
    inputs = processor.prepare([waveform], [instruction]).to(model.device)
    input_ids = inputs["input_ids"]
    featured = now()
    frames, frames_mask = model.encode(**{name: tensor for name, tensor in inputs.items() if "features" in name})
    encoded = now()
    audio = model.connect(frames, frames_mask)
    connected = now()
    prompt = model.place_audio(input_ids, model.get_input_embeddings()(input_ids), audio)
    # One row without padding needs no attention mask; `generate` drops it too.
    outputs = model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
    prefilled = now()
    tokens = [_choose(outputs.logits, suppressed)]
    chosen = now()
    for _ in range(new_tokens - 1):
        outputs = model(input_ids=tokens[-1], cache=outputs.cache, use_cache=True, logits_to_keep=1)
        tokens.append(_choose(outputs.logits, suppressed))
    ended = now()
    seconds = {
        "features": featured - started,
        "encoder": encoded - featured,
        "connector": connected - encoded,
        "prefill": prefilled - connected,
        "per_token": (ended - chosen) / (new_tokens - 1),
        "ttft": chosen - started,
        "total": ended - started,
    }
    return TimedRun(seconds, torch.cat(tokens, dim=1)[0].tolist(), input_ids.shape[1], audio.shape[0])


@torch.inference_mode()
def time_generate(
    model: StapesForConditionalGeneration,
    processor: StapesProcessor,
    waveform: np.ndarray,
    instruction: str,
    new_tokens: int,
) -> tuple[float, list[int]]:
    """Answer one clip with transformers' `generate`: seconds from waveform to last token, and the tokens.

    A check on `time_answer`: the two do the same work, so their totals agree but for what `generate` adds around it.
    """
    now = _clock(model.device)
    started = now()
    inputs = processor.prepare([waveform], [instruction]).to(model.device)
    # No token has the id -1, and no text ends it: transformers then generates until max_new_tokens.
    output = cast(Any, model).generate(
        **inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, stop_strings=None
    )
    ended = now()
    return ended - started, output[0, inputs["input_ids"].shape[1] :].tolist()


def time_prompt(processor: StapesProcessor, instruction: str, num_audio_tokens: int) -> float:
    """Return the seconds it takes to write and tokenise the prompt alone."""
    started = perf_counter()
    prompt = processor.build_prompt(instruction)
    prompt = prompt.replace(processor.audio_token, processor.audio_token * num_audio_tokens)
    processor.tokenizer(prompt, add_special_tokens=False)
    return perf_counter() - started


def summarize_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, 95th percentile (linear between neighbours) and mean of durations, in milliseconds."""
    milliseconds = 1000 * np.asarray(seconds)
    p50, p95 = np.percentile(milliseconds, (50, 95))
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "mean": round(float(milliseconds.mean()), 3)}


def _choose(logits: Tensor, suppressed: list[int] | None) -> Tensor:
    """Pick the best token (1, 1) that may be generated from logits (1, 1, V)."""
    last = logits[:, -1]
    if suppressed:
        last[:, suppressed] = -torch.inf
    return last.argmax(dim=-1, keepdim=True)


def _clock(device: torch.device) -> Callable[[], float]:
    """Return a clock in seconds that waits for the work given to `device`."""
    if device.type != "cuda":
        return perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return perf_counter()

    return now
