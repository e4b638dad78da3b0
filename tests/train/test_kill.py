"""Real processes, really killed, and several at once. Each takes seconds to start: the slow tier's business."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stapes.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Connector and optimiser state are some 60 MB, so that a checkpoint takes long enough to be hit while it is written.
RECIPE = """
name: killed
seed: 4
model:
  speech_encoder: {parts}/encoder
  llm: {parts}/llm
  connector: {{kind: stacked_mlp, stack: 8, hidden_size: 16384}}
train:
  align:
    data: {{{clips}/many.jsonl: 3, {clips}/few.jsonl: 1}}
    valid: [{clips}/valid.jsonl]
    max_steps: 12
    per_device_train_batch_size: 2
    save_steps: 3
    logging_steps: 2
    clip: {{kind: dynamic, percentile: 40, window: 5}}
    augment: {{gain: {{p: 0.5, db: [-6, 6]}}, noise: {{p: 0.5, snr_db: [0, 10]}}, spec_augment: {{}}, copies: 2}}
    trainer: {{lr_scheduler_type: cosine, warmup_steps: 2}}
  tune:
    data: {{{clips}/many.jsonl: 1}}
    trainable: [connector, lora]
    lora: {{r: 2, lora_alpha: 4, lora_dropout: 0.3}}
    max_steps: 6
    per_device_train_batch_size: 2
    save_steps: 2
    logging_steps: 1
bench: null
"""


@pytest.fixture
def recipe(parts: Path, clips: Path, tmp_path: Path) -> Path:
    path = tmp_path / "killed.yaml"
    path.write_text(RECIPE.format(parts=parts, clips=clips))
    return path


def run(*arguments: str | Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "STAPES_CACHE": str(out.with_name(f"{out.name}-cache"))},
    )


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    return run("-m", "stapes", "run", recipe, "--out", out, out=out)


def finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err


def kill_when(process: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    """Send SIGKILL as soon as `due`."""
    while not due():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def losses(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def logged(folder: Path) -> int:
    """The last step in a log, 0 before there is one; what a writer has half written does not count."""
    path = folder / "losses.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def test_killed_again_and_again_it_ends_with_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    finish(start(recipe, whole))
    align, checkpoints = out / "align.partial", out / "align.partial" / "checkpoints"

    # While features are stored, in the midst of training, while a checkpoint is written, in the next stage.
    features = out.with_name("out-cache") / "features"
    kill_when(start(recipe, out), lambda: len(list(features.rglob("*.npy"))) > 0)
    assert not checkpoints.exists()
    kill_when(start(recipe, out), lambda: logged(align) >= 4)
    assert (checkpoints / "checkpoint-3" / "complete.json").exists()
    torn = checkpoints / "checkpoint-9"
    kill_when(start(recipe, out), torn.exists)
    assert torn.exists()
    assert not (torn / "complete.json").exists()
    assert (checkpoints / "checkpoint-6" / "complete.json").exists()
    kill_when(start(recipe, out), lambda: logged(out / "tune.partial") >= 3)
    assert read_json(out / "align" / "step.json")["result"]["resumed_from"] == 6
    finish(start(recipe, out))
    assert read_json(out / "tune" / "step.json")["result"]["resumed_from"] >= 2

    for stage in ("align", "tune"):
        expected = load_file(whole / stage / "trained.safetensors")
        found = load_file(out / stage / "trained.safetensors")
        assert found.keys() == expected.keys()
        assert all(tensor.equal(found[name]) for name, tensor in expected.items())
        assert losses(out / stage) == losses(whole / stage)
    assert not list(out.rglob("*.partial"))
    assert not list(out.rglob("checkpoint-*"))


# One stage alone, as `stapes run` does it. No dropout, for which each process draws numbers of its own, and Adam's
# epsilon well above what rounding makes of a gradient that is next to none.
SCRIPT = """
import sys
from pathlib import Path

from stapes.assembly import build
from stapes.model import ConnectorConfig
from stapes.recipe import Stage
from stapes.train.stage import train_stage

parts, clips, out, batch_size = *map(Path, sys.argv[1:4]), int(sys.argv[4])
connector = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=64)
model, processor = build(str(parts / "encoder"), str(parts / "llm"), connector, seed=1)
stage = Stage.model_validate(
    {
        "data": {clips / "many.jsonl": 3, clips / "few.jsonl": 1},
        "valid": [clips / "valid.jsonl"],
        "trainable": ["connector", "lora"],
        "lora": {"r": 2, "lora_dropout": 0},
        "max_steps": 10,
        "save_steps": 4,
        "logging_steps": 1,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": 2,
        "clip": {"kind": "dynamic", "percentile": 40, "window": 5},
        "augment": {"gain": {"p": 0.5, "db": [-6, 6]}, "copies": 2},
        "trainer": {"adam_epsilon": 1e-4},
    }
)
out.mkdir(exist_ok=True)
train_stage(model, processor, stage, name="align", seed=4, folder=out, cache=out / "cache")
"""


def test_two_processes_train_like_one_with_twice_the_batch(parts: Path, clips: Path, tmp_path: Path) -> None:
    script, one, two = tmp_path / "script.py", tmp_path / "one", tmp_path / "two"
    script.write_text(SCRIPT)
    # `--cpu` would start one process whatever their number. Without a GPU those of `--multi_gpu` meet through gloo.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    finish(run(script, parts, clips, one, "4", out=one))
    finish(run(*launcher, script, parts, clips, two, "2", out=two))

    expected, found = (load_file(folder / "trained.safetensors") for folder in (one, two))
    assert found.keys() == expected.keys()
    furthest = max(float((tensor - found[name]).abs().max()) for name, tensor in expected.items())
    # Sums in another order, for 10 steps in which weights move by 1e-2.
    assert furthest < 1e-5
    for line, other in zip(losses(one), losses(two), strict=True):
        assert line.pop("stage") == other.pop("stage")
        assert other == pytest.approx(line, rel=1e-4)
    stored = [len(list((folder / "cache").rglob("*.npy"))) for folder in (one, two)]
    assert stored[0] == stored[1]
    results = [read_json(folder / "trained.json") for folder in (one, two)]
    # Each clip was encoded once, by one of the two.
    assert [result["encoded_clips"] for result in results] == stored
    assert results[1]["train_loss"] == pytest.approx(results[0]["train_loss"], rel=1e-4)
