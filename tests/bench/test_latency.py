from __future__ import annotations

from typing import Any

import pytest
import torch

from stapes.bench import latency
from stapes.bench.latency import summarize_ms, time_answer, time_generate, time_prompt

INSTRUCTION = "Transcribe the speech."


@pytest.fixture(scope="module", params=["windowed_qformer", "stacked_mlp", "ctc_compressor"])
def model_and_processor(request, tiny_model_and_processor):
    return tiny_model_and_processor(request.param)


@pytest.fixture(scope="module")
def qformer(tiny_model_and_processor):
    return tiny_model_and_processor("windowed_qformer")


@pytest.mark.parametrize(("duration_s", "seed"), [(1.0, 0), (1.3, 1), (1.9, 3), (4.0, 4), (33.0, 5)])
def test_timed_run_says_what_generate_says(model_and_processor, speech_like, duration_s, seed):
    model, processor = model_and_processor
    clip = speech_like(duration_s, seed)

    run = time_answer(model, processor, clip, INSTRUCTION, new_tokens=12)

    inputs = processor.prepare([clip], [INSTRUCTION])
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert run.token_ids[: len(output)] == output
    assert len(output) == 12 or output[-1] == model.generation_config.eos_token_id
    assert time_generate(model, processor, clip, INSTRUCTION, new_tokens=12)[1] == run.token_ids


def test_end_symbol_does_not_end_a_timed_run(qformer, speech_like):
    model, processor = qformer
    run = time_answer(model, processor, speech_like(1.9, 3), INSTRUCTION, new_tokens=12)
    assert len(run.token_ids) == 12
    assert model.generation_config.eos_token_id in run.token_ids[:-1]


def test_timed_run_does_the_work_of_generate(qformer, speech_like):
    """The LLM is called as often, on inputs as long, and makes logits for as many positions."""
    model, processor = qformer
    calls: list[tuple[Any, ...]] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append((kwargs["inputs_embeds"].shape, kwargs["attention_mask"], output.logits.shape, len(output.cache)))

    hook = model.language_model.register_forward_hook(record, with_kwargs=True)
    time_answer(model, processor, speech_like(2.0, 0), INSTRUCTION, new_tokens=5)
    timed, calls = calls, []
    time_generate(model, processor, speech_like(2.0, 0), INSTRUCTION, new_tokens=5)
    hook.remove()

    assert timed == calls
    assert [logits for _, _, logits, _ in timed] == [(1, 1, 262)] * 5


def test_parts_add_up(qformer, speech_like):
    model, processor = qformer
    run = time_answer(model, processor, speech_like(3.0, 0), INSTRUCTION, new_tokens=4)

    assert set(run.seconds) == {"features", "encoder", "connector", "prefill", "per_token", "ttft", "total"}
    assert all(seconds > 0 for seconds in run.seconds.values())
    parts = sum(run.seconds[name] for name in ("features", "encoder", "connector", "prefill"))
    assert parts <= run.seconds["ttft"]
    assert run.seconds["total"] == pytest.approx(run.seconds["ttft"] + 3 * run.seconds["per_token"])
    # 3 s are 150 encoder frames at 50 Hz: 9 windows of 17.
    assert run.num_audio_tokens == 9
    assert run.num_prompt_tokens == processor.prepare([speech_like(3.0, 0)], [INSTRUCTION])["input_ids"].shape[1]


def test_prompt_alone_takes_less_than_with_features(qformer, speech_like):
    model, processor = qformer
    run = time_answer(model, processor, speech_like(30.0, 0), INSTRUCTION, new_tokens=2)
    assert 0 < time_prompt(processor, INSTRUCTION, run.num_audio_tokens) < run.seconds["features"]


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ([7.0], {"p50": 7.0, "p95": 7.0, "mean": 7.0}),
        # p50 halfway between 2 and 3; p95 at 0.95 * 3 = 2.85 of the way from the first: 3 + 0.85.
        ([4.0, 1.0, 3.0, 2.0], {"p50": 2.5, "p95": 3.85, "mean": 2.5}),
        # p95 at 0.95 * 20 = 19 from the first, the 20th of 21 values; one slow run moves the mean alone.
        ([*range(1, 21), 1000.0], {"p50": 11.0, "p95": 20.0, "mean": 57.619}),
    ],
)
def test_summary(milliseconds, expected):
    assert summarize_ms([value / 1000 for value in milliseconds]) == expected


def test_clock_waits_for_the_gpu(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    gpu = torch.device("cuda:1")

    now = latency._clock(gpu)
    assert now() <= now()
    assert waited == [gpu, gpu]

    latency._clock(torch.device("cpu"))()
    assert waited == [gpu, gpu]
