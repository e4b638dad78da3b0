from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from stapes.errors import StapesError
from stapes.train.callbacks import CompleteMark, LossLog, ProgressBar, last_checkpoint, remove_torn_checkpoints


@pytest.fixture
def arguments(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path / "checkpoints"), use_cpu=True)


def at(step: int) -> TrainerState:
    return TrainerState(global_step=step, max_steps=10)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_losses_of_training_and_validation_are_written_and_nothing_else(
    arguments: TrainingArguments, tmp_path: Path
) -> None:
    log = LossLog(tmp_path / "losses.jsonl", "align")
    log.on_train_begin(arguments, at(0), TrainerControl())
    log.on_log(arguments, at(2), TrainerControl(), {"loss": 3.5, "grad_norm": 1.5, "learning_rate": 1e-3, "epoch": 0.2})
    log.on_log(arguments, at(2), TrainerControl(), {"eval_loss": 3.25, "eval_runtime": 1.0})
    log.on_log(arguments, at(2), TrainerControl(), {"train_runtime": 9.0})
    first, second = read(log.path)
    assert first.pop("seconds") >= 0
    assert first == {"stage": "align", "step": 2, "loss": 3.5, "learning_rate": 1e-3, "grad_norm": 1.5}
    assert second.pop("seconds") >= 0
    assert second == {"stage": "align", "step": 2, "eval_loss": 3.25}


def test_what_is_no_number_is_null(arguments: TrainingArguments, tmp_path: Path) -> None:
    log = LossLog(tmp_path / "losses.jsonl", "align")
    log.on_log(arguments, at(1), TrainerControl(), {"loss": 1.0, "grad_norm": float("inf")})
    assert read(log.path)[0]["grad_norm"] is None


def test_resuming_takes_back_what_will_be_logged_again(arguments: TrainingArguments, tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    lines = [{"stage": "align", "step": step, "loss": 1.0, "seconds": 10.0 * step} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "align", "st')
    log = LossLog(path, "align")
    log.on_train_begin(arguments, at(2), TrainerControl())
    assert read(path) == lines[:2]
    log.on_log(arguments, at(3), TrainerControl(), {"loss": 0.5})
    # The clock goes on from the last line that is kept.
    assert 20.0 <= read(path)[2]["seconds"] < 25.0


def test_a_checkpoint_is_marked_after_its_last_file(arguments: TrainingArguments, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-4").mkdir(parents=True)
    (checkpoints / "checkpoint-4" / "model.safetensors").write_bytes(b"weights")
    assert last_checkpoint(checkpoints, 1) is None
    CompleteMark().on_save(arguments, at(4), TrainerControl())
    assert last_checkpoint(checkpoints, 1) == checkpoints / "checkpoint-4"


def test_a_loss_is_logged_wherever_a_checkpoint_is_saved(arguments: TrainingArguments) -> None:
    for control, logs in (
        (TrainerControl(should_save=True), True),
        (TrainerControl(), False),
        (TrainerControl(should_log=True), True),
    ):
        CompleteMark().on_step_end(arguments, at(1), control)
        assert control.should_log is logs


def make_checkpoints(folder: Path, whole: dict[int, bool]) -> None:
    for step, complete in whole.items():
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        if complete:
            (folder / f"checkpoint-{step}" / "complete.json").write_text('{"num_processes": 2}')


def test_the_newest_whole_checkpoint_counts_by_number(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, {90: True, 100: True, 110: False})
    assert last_checkpoint(tmp_path, 2) == tmp_path / "checkpoint-100"
    remove_torn_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-100", "checkpoint-90"]
    assert last_checkpoint(tmp_path / "none", 1) is None


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, {100: True})
    with pytest.raises(StapesError, match=r"written by 2 process\(es\), this run has 1; go on with `accelerate launch"):
        last_checkpoint(tmp_path, 1)


def test_progress_goes_to_stderr(arguments: TrainingArguments, capfd: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar("align")
    state = TrainerState(global_step=3, max_steps=10, is_world_process_zero=True)
    bar.on_train_begin(arguments, state, TrainerControl())
    bar.on_log(arguments, state, TrainerControl(), {"loss": 1.25})
    bar.on_log(arguments, state, TrainerControl(), {"eval_loss": 9.0})
    bar.close()
    out, err = capfd.readouterr()
    assert out == ""
    assert "  step 3/10  loss 1.250\n" in err
    assert "9.0" not in err
