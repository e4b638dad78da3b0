"""Clips, a stage that trains on them in a second, and the parts of a recipe that does so through the program."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import (
    Trainer,
)

from stapes.model import StapesForConditionalGeneration, StapesProcessor
from stapes.recipe import Stage
from stapes.train.stage import StageResult, train_stage

Changes = dict[str, Any]


class Trained(NamedTuple):
    """What a stage left behind."""

    model: StapesForConditionalGeneration
    processor: StapesProcessor
    result: StageResult
    folder: Path

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained part, by name."""
        return load_file(self.folder / "trained.safetensors")

    @property
    def losses(self) -> list[dict[str, Any]]:
        """The lines of the loss log, without their time."""
        lines = [json.loads(line) for line in (self.folder / "losses.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="session", autouse=True)
def frozen_heap() -> Iterator[None]:
    """Keep the libraries' objects out of the garbage collection with which each training begins: half a second each."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory, speech_like: Callable[[float, int], np.ndarray]) -> Path:
    """A folder with the manifests `many.jsonl` (10 clips of 0.4 to 1.9 s), `few.jsonl` (3) and `valid.jsonl` (3)."""
    folder = tmp_path_factory.mktemp("clips")
    for number, (manifest, count) in enumerate((("many", 10), ("few", 3), ("valid", 3))):
        lines = []
        for index in range(count):
            name, duration_s = f"{manifest}{index}.wav", round(0.4 + 1.5 * index / count, 2)
            soundfile.write(folder / name, speech_like(duration_s, 100 * number + index), 16_000)
            target = " ".join(["word"] * (1 + index % 3)) + f" {index}"
            lines.append({"id": f"{manifest}{index}", "audio": name, "duration_s": duration_s, "target": target})
        (folder / f"{manifest}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def make_stage(clips: Path) -> Callable[..., Stage]:
    """Factory `(**changes) -> Stage` of 6 steps of 2 clips; `None` takes a key out."""

    def make(**changes: Any) -> Stage:
        settings: Changes = {
            "data": {clips / "many.jsonl": 3, clips / "few.jsonl": 1},
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "save_steps": 2,
            "logging_steps": 1,
            **changes,
        }
        return Stage.model_validate({key: value for key, value in settings.items() if value is not None})

    return make


@pytest.fixture
def train(
    make_stage: Callable[..., Stage], tmp_path: Path, tiny_model_and_processor: Callable
) -> Callable[..., Trained]:
    """Factory `(folder="run", kind="stacked_mlp", **changes of the stage) -> Trained`, always from the same weights."""

    def run(folder: str = "run", kind: str = "stacked_mlp", **changes: Any) -> Trained:
        model, processor = tiny_model_and_processor(kind)
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        stage = make_stage(**changes)
        result = train_stage(
            model, processor, stage, name="align", seed=3, folder=place, cache=tmp_path / "cache" / "features"
        )
        return Trained(model, processor, result, place)

    return run


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Function `(batches)`: press Ctrl-C when the next training has seen this many batches."""

    def after(batches: int) -> None:
        step, left = Trainer.training_step, batches

        def interrupted(*args: Any, **kwargs: Any) -> torch.Tensor:
            nonlocal left
            left -= 1
            if left < 0:
                monkeypatch.setattr(Trainer, "training_step", step)
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        monkeypatch.setattr(Trainer, "training_step", interrupted)

    return after
