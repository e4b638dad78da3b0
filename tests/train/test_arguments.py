from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import SchedulerType

from stapes.errors import RecipeError
from stapes.recipe import Stage
from stapes.train.arguments import check_stage, training_arguments

MakeStage = Callable[..., Stage]


def test_a_stage_becomes_the_trainers_arguments(make_stage: MakeStage, clips: Path) -> None:
    stage = make_stage(
        valid=[clips / "valid.jsonl"],
        learning_rate=0.25,
        gradient_accumulation_steps=3,
        clip={"kind": "fixed", "max_norm": 0.5},
        trainer={"warmup_steps": 2, "lr_scheduler_type": "cosine"},
    )
    made = training_arguments(stage, name="align", seed=7, folder=Path("runs/small/align.partial"), device="cpu")
    assert (made.max_steps, made.learning_rate, made.gradient_accumulation_steps) == (6, 0.25, 3)
    assert (made.max_grad_norm, made.seed, made.warmup_steps) == (0.5, 7, 2)
    assert made.lr_scheduler_type == SchedulerType.COSINE
    assert (made.save_steps, made.eval_steps, made.save_total_limit) == (2, 2, 2)
    assert (made.project, made.run_name, made.report_to) == ("small", "align", [])
    assert (made.bf16, made.fp16, made.logging_nan_inf_filter) == (False, False, False)
    assert Path(made.output_dir or "") == Path("runs/small/align.partial/checkpoints")


def test_dynamic_clipping_keeps_the_trainer_from_clipping(make_stage: MakeStage) -> None:
    stage = make_stage(clip={"kind": "dynamic"})
    assert training_arguments(stage, name="a", seed=0, folder=Path("x"), device="cpu").max_grad_norm == 0


def test_bf16_trains_on_a_cpu_if_asked_for(make_stage: MakeStage) -> None:
    made = training_arguments(make_stage(precision="bf16"), name="a", seed=0, folder=Path("x"), device="cpu")
    assert made.mixed_precision == "bf16"


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"warmup_step": 3}, "warmup_step is not a field of TrainingArguments; did you mean `warmup_steps`?"),
        ({"zzz": 3}, "zzz is not a field of TrainingArguments"),
        ({"bf16": True}, "bf16: use the recipe's `precision` instead"),
        ({"eval_steps": 5}, "eval_steps: use the recipe's `save_steps` instead"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor cannot be set: the model computes its own loss"),
        ({"ignore_data_skip": True}, "ignore_data_skip cannot be set: an interrupted stage is resumed"),
        ({"fsdp": "full_shard"}, "fsdp cannot be set: each process holds the whole model"),
        ({"save_total_limit": 1}, "save_total_limit is 1; wanted at least 2"),
    ],
)
def test_keys_that_are_refused(make_stage: MakeStage, trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        check_stage("some.yaml", "align", make_stage(trainer=trainer))
    assert str(refused.value).startswith(f"some.yaml: train.align.trainer.{message}")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: cosin is not a valid SchedulerType"),
        ({"weight_decay": 0.1, "warmup_steps": -1}, r"warmup_steps: .* >= 0"),
        ({"weight_decay": 0.1, "warmup_steps": "ten"}, "warmup_steps: '<' not supported"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: .* the save and eval strategy to match"),
    ],
)
def test_values_that_the_trainer_refuses(make_stage: MakeStage, trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"^some\.yaml: train\.align\.trainer\.{message}"):
        check_stage("some.yaml", "align", make_stage(trainer=trainer))


def test_the_best_checkpoint_needs_a_place_of_its_own(make_stage: MakeStage, clips: Path) -> None:
    best = {"valid": [clips / "valid.jsonl"], "trainer": {"load_best_model_at_end": True}}
    check_stage("some.yaml", "align", make_stage(**best))
    with pytest.raises(RecipeError, match="save_total_limit is 2; wanted at least 3"):
        check_stage("some.yaml", "align", make_stage(**{**best, "trainer": {**best["trainer"], "save_total_limit": 2}}))


def test_precision_that_this_machine_lacks(make_stage: MakeStage) -> None:
    with pytest.raises(RecipeError, match=r"^some\.yaml: train\.tune: precision fp16 needs a GPU"):
        check_stage("some.yaml", "tune", make_stage(precision="fp16"))


def test_augmentation_that_lacks_its_folder(make_stage: MakeStage, tmp_path: Path) -> None:
    noise = {"noise": {"p": 1, "snr_db": [0, 10], "folder": tmp_path / "none"}}
    with pytest.raises(RecipeError, match=r"^some\.yaml: train\.tune: .*none"):
        check_stage("some.yaml", "tune", make_stage(augment=noise))


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_reporter_that_is_not_installed(make_stage: MakeStage, name: str) -> None:
    if find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(RecipeError, match=rf"report_to: `{name}` is not installed.* pip install {name}$"):
        check_stage("some.yaml", "align", make_stage(trainer={"report_to": name}))


def test_a_reporter_that_is_none(make_stage: MakeStage) -> None:
    with pytest.raises(RecipeError, match="`tensorbord` is not installed, or no reporter"):
        check_stage("some.yaml", "align", make_stage(trainer={"report_to": ["tensorbord"]}))


def test_a_good_stage_passes_and_writes_nothing(
    make_stage: MakeStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_stage("some.yaml", "align", make_stage(trainer={"weight_decay": 0.1, "report_to": "none"}))
    assert list(tmp_path.iterdir()) == []
