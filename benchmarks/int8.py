"""int8 against float32 on the same weights: time of the three parts that Linear layers dominate, and what is lost.

Runs alternate, so that a machine that slows down slows both. Each round answers one clip: the speech encoder over
`--audio-s` seconds, the LLM's prefill of 90 embeddings, one cached step. Goal: int8 is the faster one in all three.

    python benchmarks/int8.py [--speech-encoder NAME] [--llm NAME] [--audio-s 10] [--repeats 20] [--threads N]

Prints one JSON document; exits 1 if the goal is missed. Milliseconds are medians of wall time; `cpu_speedup` is the
ratio of the processor's time, which other programs on a busy machine disturb less. Errors: `relative` is the norm of
the difference by the norm of float32's output, `kl` the mean divergence of the next token in nats.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stapes.assembly import build
from stapes.bench.protocols import speech_shaped_noise
from stapes.environment import environment
from stapes.model import ConnectorConfig, StapesForConditionalGeneration
from stapes.model.int8 import swap_linears

PREFILL_TOKENS = 90
WARMUP = 2
PARTS = ("encoder", "prefill", "step")
TEXT = (
    "The stapes is the smallest bone of the human body. It passes the vibrations of the ear drum on to the inner ear, "
    "where they become nerve signals. He hoped there would be stew for dinner, turnips and carrots and bruised "
    "potatoes and fat mutton pieces to be ladled out in thick, peppered, flour fattened sauce. In the beginning there "
    "was a small village near the river, where people lived in peace and cultivated their fields."
)

Times = dict[str, tuple[float, float]]


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Return the milliseconds of wall time and of processor time that `run` takes."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)


@torch.inference_mode()
def answer(model: StapesForConditionalGeneration, features: Tensor, input_ids: Tensor) -> tuple[Times, Tensor]:
    """Run the three parts once: their times, and the encoder's frames."""
    kept: dict[str, Any] = {}

    def encode() -> None:
        kept["frames"] = model.encode(features)[0]

    def prefill() -> None:
        kept["cache"] = model(input_ids=input_ids, use_cache=True, logits_to_keep=1).cache

    def step() -> None:
        model(input_ids=input_ids[:, :1], cache=kept["cache"], use_cache=True, logits_to_keep=1)

    times = {name: timed(run) for name, run in zip(PARTS, (encode, prefill, step), strict=True)}
    return times, kept["frames"]


@torch.inference_mode()
def next_tokens(model: StapesForConditionalGeneration, input_ids: Tensor) -> Tensor:
    """Return the logarithms of the probabilities of the token after each of (1, L): (L, V)."""
    return model(input_ids=input_ids).logits[0].log_softmax(dim=-1)


def weight_bytes(model: StapesForConditionalGeneration) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()
    )


def summary(rounds: list[tuple[tuple[Times, Tensor], tuple[Times, Tensor]]], part: str) -> dict[str, float]:
    exact, int8 = ([times[part] for times, _ in column] for column in zip(*rounds, strict=True))
    exact_ms, int8_ms = (statistics.median(wall for wall, _ in times) for times in (exact, int8))
    exact_cpu_ms, int8_cpu_ms = (statistics.median(cpu for _, cpu in times) for times in (exact, int8))
    return {
        "float32_ms_p50": round(exact_ms, 2),
        "int8_ms_p50": round(int8_ms, 2),
        "speedup": round(exact_ms / int8_ms, 2),
        "cpu_speedup": round(exact_cpu_ms / int8_cpu_ms, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech-encoder", default="openai/whisper-base")
    parser.add_argument("--llm", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--audio-s", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    connector = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=2048)
    exact, processor = build(arguments.speech_encoder, arguments.llm, connector)
    int8 = copy.deepcopy(exact)
    num_layers = len(swap_linears(int8, skip=["connector"]))
    sizes = weight_bytes(exact), weight_bytes(int8)
    features = processor.feature_extractor([speech_shaped_noise(arguments.audio_s, seed=0)])["input_features"]
    input_ids = processor.tokenizer(TEXT, return_tensors="pt")["input_ids"][:, :PREFILL_TOKENS]

    rounds = [
        (answer(exact, features, input_ids), answer(int8, features, input_ids))
        for _ in range(WARMUP + arguments.repeats)
    ]
    parts = {part: summary(rounds[WARMUP:], part) for part in PARTS}
    (_, frames), (_, int8_frames) = rounds[-1]
    expected, given = next_tokens(exact, input_ids), next_tokens(int8, input_ids)
    print(
        json.dumps(
            {
                "speech_encoder": arguments.speech_encoder,
                "llm": arguments.llm,
                "audio_s": arguments.audio_s,
                "prefill_tokens": input_ids.shape[1],
                "int8_layers": num_layers,
                "weight_bytes": {"float32": sizes[0], "int8": sizes[1]},
                "parts": parts,
                "encoder_relative_error": round(float((int8_frames - frames).norm() / frames.norm()), 5),
                "next_token_kl": round(float((expected.exp() * (expected - given)).sum(-1).mean()), 5),
                "same_best_token": round(float((expected.argmax(-1) == given.argmax(-1)).float().mean()), 3),
                "repeats": arguments.repeats,
                "environment": environment(),
            },
            indent=2,
        )
    )
    sys.exit(any(part["speedup"] <= 1 for part in parts.values()))


if __name__ == "__main__":
    main()
