"""What happens beside the optimiser's steps: losses on disk, checkpoints that are known to be whole."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

COMPLETE_MARK = "complete"
"""Written last into a checkpoint; one without it was cut off while being saved."""


class LossLog(TrainerCallback):
    """Append each logged loss to a JSONL file, and take back what a resumed run will log again."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage
        self._started = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the lines up to the step the run goes on from."""
        self._started = time.monotonic()
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            # A line cut off by a kill is not JSON; it belongs to a step that will be made again.
            kept = [line for line in lines if _step(line) <= state.global_step]
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

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
        line = {"stage": self.stage, "step": state.global_step}
        line |= {key: logs[key] for key in wanted if key in logs}
        line["seconds"] = round(time.monotonic() - self._started, 2)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


class CompleteMark(TrainerCallback):
    """Mark a checkpoint as whole once everything in it is written."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the mark; the Trainer calls this after its last file."""
        if state.is_world_process_zero:
            assert args.output_dir is not None
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE_MARK).touch()


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

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start at the step the run goes on from."""
        if state.is_world_process_zero:
            self._bar.start()
            self._task = self._bar.add_task("steps", total=state.max_steps, completed=state.global_step, loss="–")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move on."""
        if state.is_world_process_zero:
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
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        assert logs is not None
        self._bar.update(self._task, loss=f"{logs['loss']:.3f}")
        if not self._bar.console.is_terminal:
            self._bar.console.print(f"  step {state.global_step}/{state.max_steps}  loss {logs['loss']:.3f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def last_checkpoint(folder: Path) -> Path | None:
    """Find the newest whole checkpoint in `folder`, or None."""
    marks = folder.glob(f"checkpoint-*/{COMPLETE_MARK}")
    return max((mark.parent for mark in marks), key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")
