"""Measure what CTC's say in a transcript costs: time to the first token and to the last, with `ctc_weight` and with 0.

    python benchmarks/guide_cost.py AUDIO [--model FOLDER] [--weight 0.5] [--runs 10]

The two take turns, so that a machine whose speed wanders slows both. Prints a line of JSON: medians in milliseconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

import stapes
from stapes.data.audio import load_audio
from stapes.data.prompts import TEST_INSTRUCTIONS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    lm, waveform = stapes.load(asked.model), load_audio(asked.audio)
    lm.transcribe(waveform)  # what is made once is made
    ttft_ms: dict[float, list[float]] = {0.0: [], asked.weight: []}
    whole_ms: dict[float, list[float]] = {0.0: [], asked.weight: []}
    for _ in range(asked.runs):
        for weight in (0.0, asked.weight):
            lm.model.config.connector_config.ctc_weight = weight
            started_s = perf_counter()
            stream = lm.stream(waveform, TEST_INSTRUCTIONS["asr"])
            list(stream)
            assert stream.ttft_s is not None
            whole_ms[weight].append(1000 * (perf_counter() - started_s))
            ttft_ms[weight].append(1000 * stream.ttft_s)
    figures = {
        f"ctc_weight {weight:g}": {
            "ttft": round(median(ttft_ms[weight]), 1),
            "whole": round(median(whole_ms[weight]), 1),
        }
        for weight in ttft_ms
    }
    print(json.dumps({"audio_s": round(waveform.shape[0] / 16_000, 2), "runs": asked.runs, **figures}))


if __name__ == "__main__":
    main()
