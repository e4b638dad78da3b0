"""How much a logit depends on the batch: each clip in a batch of 8 against the same clip alone.

Matrix products of another size round differently. Greedy answers stay the same in any batch because tokens that lead by
less than `rounding.rounding_margin` are chosen again alone; this measures what that margin has to cover.

    python benchmarks/batch_rounding.py [MODEL] [--manifest data/speech_test.jsonl] [--clips 24] [--new-tokens 16]

Without MODEL, an untrained model of whisper-base and SmolLM2-135M: one whose tokens lie close together. Prints one JSON
document: the largest difference of any logit, the margin in force, and the share of answers that are asked for again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import LogitsProcessor

from stapes.assembly import build, load_model
from stapes.data.prompts import TEST_INSTRUCTIONS
from stapes.data.sample import load_manifest, load_sample_audio, sample_duration_s
from stapes.environment import environment
from stapes.model import ConnectorConfig, StapesForConditionalGeneration, StapesProcessor
from stapes.rounding import rounding_margin

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = 8


class Scores(LogitsProcessor):
    """Keeps the scores of every step."""

    def __init__(self) -> None:
        self.steps: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Keep `scores` (B, V) and pass them on."""
        self.steps.append(scores.clone())
        return scores


@torch.inference_mode()
def scores_of(
    model: StapesForConditionalGeneration, processor: StapesProcessor, clips: Sequence[np.ndarray], new_tokens: int
) -> torch.Tensor:
    """Return the scores (B, steps, V) of a greedy answer; end symbols do not end it."""
    inputs = processor.prepare(clips, [TEST_INSTRUCTIONS["asr"]] * len(clips))
    kept = Scores()
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": -1, "logits_processor": [kept]}
    cast(Any, model).generate(**inputs, **settings)
    return torch.stack(kept.steps, dim=1)


def compare(alone: torch.Tensor, among: torch.Tensor) -> tuple[float, float]:
    """Return the largest difference up to the first token that differs, and the smallest lead of a best token alone."""
    largest = 0.0
    for ours, theirs in zip(alone, among, strict=True):
        finite = torch.isfinite(ours)
        largest = max(largest, float((ours - theirs)[finite].abs().max()))
        if ours.argmax() != theirs.argmax():
            break
    best = alone.topk(2, dim=-1).values
    return largest, float((best[:, 0] - best[:, 1]).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--manifest", type=Path, default=ROOT / "data" / "speech_test.jsonl")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=16)
    arguments = parser.parse_args()

    if arguments.model:
        model, processor = load_model(arguments.model)
    else:
        connector = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=2048)
        model, processor = build("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct", connector)
    samples = sorted(load_manifest(arguments.manifest)[: arguments.clips], key=sample_duration_s, reverse=True)
    found = []
    for start in range(0, len(samples), BATCH_SIZE):
        clips = [load_sample_audio(sample) for sample in samples[start : start + BATCH_SIZE]]
        together = scores_of(model, processor, clips, arguments.new_tokens)
        for clip, among in zip(clips, together, strict=True):
            found.append(compare(scores_of(model, processor, [clip], arguments.new_tokens)[0], among))
    margin = rounding_margin(model)
    print(
        json.dumps(
            {
                "model": str(arguments.model or "untrained"),
                "n": len(found),
                "new_tokens": arguments.new_tokens,
                "largest_difference": max(largest for largest, _ in found),
                "margin": margin,
                "asked_again": sum(lead < margin for _, lead in found) / len(found),
                "environment": environment(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
