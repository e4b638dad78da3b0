"""Run folders as a run leaves them: texts scored, losses logged and JSON written by the program's own functions."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from transformers import TrainerControl, TrainerState, TrainingArguments

from stapes.data.sample import Task
from stapes.environment import environment
from stapes.evaluate.score import Prediction, compare, score_predictions
from stapes.files import write_json
from stapes.train.callbacks import LossLog

VARIANTS = ("tune", "merge_lora", "quantize")
SENTENCES = (
    "You are now muted.",
    "I am sorry, that's not a valid extension. Please try again.",
    "The party you are calling is busy",
    "Please enter the conference number, followed by the pound key.",
    "Good morning",
    "Your call is important to us",
)
CAPTIONS = ("a drum is hit", "a bell rings twice", "a synthesiser plays a low note")
TASKS: tuple[tuple[Task, tuple[str, ...], str], ...] = (
    ("asr", SENTENCES, "Transcribe the speech."),
    ("audiocaption", CAPTIONS, "Describe the sound."),
    ("qa", ("yes", "no"), "Do you hear a drum?"),
)
COSTS: dict[str, dict[str, Any]] = {
    "tune": {"files": 614e6, "ttft": 412.0, "per_token": 38.2, "lora": 460_000, "peak": 1490e6},
    "merge_lora": {"files": 612e6, "ttft": 398.0, "per_token": 31.9, "lora": 0, "peak": 1480e6},
    "quantize": {"files": 241e6, "ttft": 287.0, "per_token": 19.4, "lora": 0, "peak": 880e6},
}
RECIPE = """\
name: tiny
seed: 0
train:
  align: {max_steps: 120}
  tune: {max_steps: 60}
compress:
- {kind: merge_lora}
- {kind: quantize}
evaluate: {data: [test.jsonl]}
bench: {audio_s: 10.0}
"""


def make_environment(seconds: int = 0, **changes: Any) -> dict[str, Any]:
    """Circumstances as they are written, but the same on every machine."""
    fixed = {
        "device_name": "Some CPU @ 2.0GHz",
        "num_threads": 2,
        "num_cores": 2,
        "memory_bytes": 8 * 2**30,
        "os": "Linux-6.1",
        "python": "3.11.9",
        "versions": {"stapes": "0.1.0", "torch": "2.13.0"},
        "git_sha": "0123456789ab",
        "date": f"2026-01-02T03:04:{seconds:02d}+00:00",
    }
    return {**environment(), **fixed, **changes}


def make_bench(variant: str, **changes: Any) -> dict[str, Any]:
    """A `bench.json` of rounded figures."""
    cost = COSTS[variant]
    parts = {"features": 0.03, "encoder": 0.45, "connector": 0.02, "prefill": 0.5}
    latency_ms = {name: cost["ttft"] * share for name, share in parts.items()}
    latency_ms |= {"per_token": cost["per_token"], "ttft": cost["ttft"], "total": cost["ttft"] + 15 * cost["per_token"]}
    parameters = {"speech_encoder": 20_600_000, "connector": 5_000_000, "language_model": 134_500_000}
    parameters["lora"] = cost["lora"]
    return {
        "variant": variant,
        "protocol": "stapes",
        "audio": "speech-shaped noise",
        "audio_s": 10.0,
        "batch_size": 1,
        "warmup": 2,
        "repeats": 10,
        "new_tokens": 16,
        "seed": 0,
        "num_audio_tokens": 63,
        "num_prompt_tokens": 85,
        "latency_ms": {name: {"p50": ms, "p95": 1.1 * ms, "mean": ms} for name, ms in latency_ms.items()},
        "rtf": {"p50": latency_ms["total"] / 10_000, "p95": latency_ms["total"] / 9_000},
        "memory_bytes": {
            "kind": "rss",
            "files": cost["files"],
            "before_load": 310e6,
            "load_peak": cost["peak"] - 80e6,
            "run_peak": cost["peak"],
        },
        "parameters": {**parameters, "total": sum(parameters.values())},
        "environment": make_environment(40),
        **changes,
    }


def make_predictions(folder: Path, damage: float, seed: int, samples: int = 12) -> list[Prediction]:
    """Answers to `samples` clips a task; `damage` is the share of words and answers that are wrong."""
    rng = random.Random(seed)
    audio = folder / "audio"
    audio.mkdir(exist_ok=True)
    made: list[Prediction] = []
    for number in range(samples):
        path = audio / f"{number}.wav"
        if not path.exists():
            noise = np.random.default_rng(number).uniform(-0.3, 0.3, 4_000 + 800 * number)
            soundfile.write(path, noise, 16_000)
        for task, targets, prompt in TASKS:
            target = targets[number % len(targets)]
            words = [rng.choice(("the", "drum", "now")) if rng.random() < damage else word for word in target.split()]
            made.append(
                Prediction(
                    id=f"{task}-{number}",
                    task=task,
                    audio=str(path),
                    prompt=prompt,
                    target=target,
                    text=" ".join(words),
                    num_tokens=len(words) + 1,
                    truncated=False,
                )
            )
    return made


def write_eval(folder: Path, variant: str, predictions: Sequence[Prediction], **changes: Any) -> dict[str, Any]:
    """Score predictions as `stapes eval` does and write both files into a run folder."""
    baseline = [json.loads(line) for line in _read(folder / "eval/tune/predictions.jsonl")]
    paired = {} if variant == "tune" else {"paired": compare(predictions, baseline, against="tune", seed=0)}
    scores = {
        "variant": variant,
        "manifests": ["data/test.jsonl"],
        "limit": None,
        "n": len(predictions),
        "seed": 0,
        "max_new_tokens": 48,
        "tasks": score_predictions(predictions, seed=0),
        **paired,
        "batch_size": 8,
        "seconds": 81.0,
        "num_resumed": 0,
        "environment": make_environment(20),
        **changes,
    }
    out = folder / "eval" / variant
    write_json(out / "scores.json", scores)
    (out / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in predictions))
    return scores


def write_losses(folder: Path, stage: str, steps: int, start: float, tmp: Path) -> None:
    """Log a stage's losses with the callback that training uses."""
    folder.mkdir(parents=True, exist_ok=True)
    log = LossLog(folder / "losses.jsonl", stage)
    arguments, control = TrainingArguments(output_dir=str(tmp)), TrainerControl()
    for step in range(10, steps + 1, 10):
        state = TrainerState(global_step=step)
        loss = 1.5 + start * 0.97**step
        log.on_log(arguments, state, control, {"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3})
        if step % 30 == 0:
            log.on_log(arguments, state, control, {"eval_loss": loss + 0.2})


def write_run(folder: Path, *, seed: int = 0, damages: Sequence[float] = (0.25, 0.25, 0.4), start: float = 4.0) -> Path:
    """Write a finished run of three variants."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    write_json(folder / "environment.json", {**make_environment(), "seed": 0})
    seconds = 0
    measured = [f"{part}/{name}" for part in ("eval", "bench") for name in VARIANTS]
    for step in ("data_check", "align", *VARIANTS, *measured):
        seconds += 2
        mark = {"step": step, "fingerprint": "f00d", "complete": True, "seconds": 12.5, "result": {"steps": 120}}
        write_json(folder / step / "step.json", {**mark, "environment": make_environment(seconds)})
    write_losses(folder / "align", "align", 120, start, folder)
    write_losses(folder / "tune", "tune", 60, start / 3, folder)
    for variant, damage in zip(VARIANTS, damages, strict=True):
        write_eval(folder, variant, make_predictions(folder, damage, seed))
        write_json(folder / "bench" / variant / "bench.json", make_bench(variant))
    return folder


def _read(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
