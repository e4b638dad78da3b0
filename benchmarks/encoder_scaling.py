"""Encoder time of a short clip against that of a 30 s one: work has to follow the clip's true length.

The encoder has the shape of whisper-base (6 layers, 512 wide) and random weights, which cost the same time as trained
ones. Runs of the two lengths alternate, so that a machine that slows down slows both. Goal: 3 s cost at most a third.

    python benchmarks/encoder_scaling.py [--short-s 3] [--repeats 30] [--threads N]

Prints one JSON document; exits 1 if the goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
from transformers import WhisperConfig

from stapes.environment import environment
from stapes.model.speech_encoder import SpeechEncoder

LONG_S = 30.0
GOAL = 1 / 3
FEATURE_FRAMES_PER_S = 100
WARMUP = 3


def build_encoder() -> SpeechEncoder:
    torch.manual_seed(0)
    shape = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    return SpeechEncoder(WhisperConfig(**shape, num_mel_bins=80)).eval()


@torch.inference_mode()
def time_encoder(encoder: SpeechEncoder, features: torch.Tensor) -> float:
    """Return the milliseconds of one run on features (1, M, F)."""
    started = time.perf_counter()
    encoder(features)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short-s", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    encoder = build_encoder()
    lengths_s = (arguments.short_s, LONG_S)
    features = [torch.randn(1, 80, round(length_s * FEATURE_FRAMES_PER_S)) for length_s in lengths_s]
    rounds = [[time_encoder(encoder, clip) for clip in features] for _ in range(WARMUP + arguments.repeats)][WARMUP:]
    short_ms, long_ms = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = short_ms / long_ms
    print(
        json.dumps(
            {
                "short_s": arguments.short_s,
                "long_s": LONG_S,
                "short_ms_p50": round(short_ms, 2),
                "long_ms_p50": round(long_ms, 2),
                "ratio": round(ratio, 4),
                "goal": round(GOAL, 4),
                "repeats": arguments.repeats,
                "environment": environment(),
            },
            indent=2,
        )
    )
    sys.exit(ratio > GOAL)


if __name__ == "__main__":
    main()
