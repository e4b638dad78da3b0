"""What happens beside the optimiser's steps: losses on disk, checkpoints that are known to be whole."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import StapesError
from ..files import read_json, write_json, write_text
from .processes import this_process

COMPLETE_MARK = "complete.json"
"""Written last into a checkpoint; one without it was cut off while being saved."""


class LossLog(TrainerCallback):
    """Append each logged loss to a JSONL file, and take back what a resumed run will log again.

    `seconds` is the time that went into the steps up to a line; what an interruption lost does not count. A value that
    is not finite (a gradient that overflows in fp16) is null.

    Args:
        path: the file.
        stage: name of the stage, for each line.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage
        self._started = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the lines up to the step the run goes on from."""
        if not state.is_world_process_zero:
            return
        lines = [_parse(line) for line in self.path.read_text("utf-8").splitlines()] if self.path.exists() else []
        # A line cut off by a kill is None; it belongs to a step that will be made again.
        kept = [line for line in lines if line is not None and line["step"] <= state.global_step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._started = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write training losses and validation losses."""
        logs = logs or {}
        if not state.is_world_process_zero or not {"loss", "eval_loss"} & logs.keys():
            return
        wanted = ("loss", "eval_loss", "learning_rate", "grad_norm", "clip_value")
        line: dict[str, Any] = {"stage": self.stage, "step": state.global_step}
        line |= {key: logs[key] if math.isfinite(logs[key]) else None for key in wanted if key in logs}
        line["seconds"] = round(time.monotonic() - self._started, 2)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


class CompleteMark(TrainerCallback):
    """Mark a checkpoint as whole once everything in it is written, by all processes and to the disk."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log wherever a checkpoint is saved: the loss summed up since the last log is not part of a checkpoint."""
        control.should_log |= control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the mark; the Trainer calls this after its last file."""
        processes = this_process()
        # Each process writes its random state into the folder.
        processes.wait_for_everyone()
        if state.is_world_process_zero:
            assert args.output_dir is not None
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for path in checkpoint.iterdir():
                _sync(path)
            write_json(checkpoint / COMPLETE_MARK, {"num_processes": processes.num_processes})


class ProgressBar(TrainerCallback):
    """Show steps, loss and time left on stderr, where the Trainer's own bar and its prints to stdout are not wanted."""

    def __init__(self, stage: str) -> None:
        self._bar = Progress(
            TextColumn(stage),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start at the step the run goes on from."""
        if state.is_world_process_zero:
            self._bar.start()
            self._task = self._bar.add_task("steps", total=state.max_steps, completed=state.global_step, loss="–")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move on."""
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the last loss; where stderr is a file, which shows no bar, print a line."""
        if self._task is None or logs is None or "loss" not in logs:
            return
        self._bar.update(self._task, loss=f"{logs['loss']:.3f}")
        if not self._bar.console.is_terminal:
            self._bar.console.print(f"  step {state.global_step}/{state.max_steps}  loss {logs['loss']:.3f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the bar as it stands."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; for a run that ends in an error."""
        if self._task is not None:
            self._bar.stop()


def last_checkpoint(folder: Path, num_processes: int) -> Path | None:
    """Find the newest whole checkpoint in `folder`, or None.

    Raises:
        StapesError: if another number of processes wrote it: samples, and with them the weights, would come out other
            than without the interruption.
    """
    marks = folder.glob(f"checkpoint-*/{COMPLETE_MARK}")
    checkpoint = max((mark.parent for mark in marks), key=checkpoint_step, default=None)
    if checkpoint is None:
        return None
    wrote = read_json(checkpoint / COMPLETE_MARK)["num_processes"]
    if wrote != num_processes:
        raise StapesError(
            f"{checkpoint} was written by {wrote} process(es), this run has {num_processes}; go on with "
            f"`accelerate launch --num_processes {wrote}`, or remove {folder} to begin the stage anew"
        )
    return checkpoint


def checkpoint_step(checkpoint: Path) -> int:
    """Tell at which step a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def remove_torn_checkpoints(folder: Path) -> None:
    """Delete checkpoints that were cut off while being saved or deleted: they only take up disk."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / COMPLETE_MARK).exists():
            shutil.rmtree(checkpoint)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
