"""Training throughput: the published loop's way of working against ours, on the same model, data and machine.

The published loop (SALMONN and its descendants) pads every clip to 30 s, runs the frozen encoder at each step, takes
samples in random order, and computes logits for the whole prompt. Ours follows the clips' true length, encodes each
clip once, batches like lengths together and computes logits where a label is.

    python benchmarks/throughput.py [--manifest data/speech_train.jsonl] [--steps 30] [--baseline-steps 5]

Prints one JSON document: samples per second of both and their ratio, with and without the time that filling the
encoder cache takes (which a training of many epochs pays once).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from stapes.assembly import build
from stapes.data.collator import Example, collate
from stapes.data.sample import load_manifest, load_sample_audio
from stapes.environment import environment
from stapes.model import ConnectorConfig
from stapes.recipe import Stage
from stapes.train.stage import train_stage

ROOT = Path(__file__).resolve().parent.parent
BATCH_SIZE = 8


def build_model(pad_audio_to_s: float | None):
    connector = ConnectorConfig(kind="windowed_qformer", frames_per_window=17)
    return build(
        "openai/whisper-base",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        connector,
        pad_audio_to_s=pad_audio_to_s,
        prompt="plain",
    )


def published_way(manifest: Path, steps: int) -> float:
    """Return the median samples per second of the published loop's way."""
    model, processor = build_model(pad_audio_to_s=30.0)
    model.set_trainable({"connector"})
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    samples = load_manifest(manifest)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    times = []
    for step in range(steps + 1):
        started = time.perf_counter()
        chosen = [samples[i % len(samples)] for i in order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]]
        features = processor.feature_extractor([load_sample_audio(sample) for sample in chosen])["input_features"]
        batch = collate(
            [Example("Transcribe.", s.target, input_features=f) for s, f in zip(chosen, features, strict=True)],
            processor,
        )
        labels = batch.pop("labels")
        logits = model(**batch).logits  # every position, as the published loop does
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return BATCH_SIZE / statistics.median(times[1:])  # the first step warms up


def our_way(manifest: Path, steps: int) -> tuple[float, float]:
    """Return samples per second of a stage, without and with the filling of its cache."""
    model, processor = build_model(pad_audio_to_s=None)
    stage = Stage.model_validate(
        {
            "data": {manifest: 1},
            "max_steps": steps,
            "learning_rate": 1e-4,
            "per_device_train_batch_size": BATCH_SIZE,
            "save_steps": 10**6,
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = train_stage(
            model, processor, stage, name="align", seed=0, folder=folder / "align", cache=folder / "cache"
        )
    samples = steps * BATCH_SIZE
    return samples / (result.seconds - result.cache_seconds), samples / result.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, default=ROOT / "data" / "speech_train.jsonl")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--baseline-steps", type=int, default=5)
    arguments = parser.parse_args()

    published = published_way(arguments.manifest, arguments.baseline_steps)
    cached, with_filling = our_way(arguments.manifest, arguments.steps)
    print(
        json.dumps(
            {
                "published_samples_per_s": round(published, 3),
                "stapes_samples_per_s": round(cached, 3),
                "stapes_samples_per_s_with_cache_filling": round(with_filling, 3),
                "ratio": round(cached / published, 2),
                "ratio_with_cache_filling": round(with_filling / published, 2),
                "batch_size": BATCH_SIZE,
                "steps": arguments.steps,
                "baseline_steps": arguments.baseline_steps,
                "environment": environment(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
