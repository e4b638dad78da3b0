"""The Trainer's arguments for a stage, and what is refused before any work is done."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from ..errors import RecipeError, StapesError
from ..model.nf4 import check_installed
from ..recipe import FixedClip, Stage
from .examples import waveform_effects
from .precision import choose_precision
from .processes import device_type

_KEY_INSTEAD = {
    "bf16": "precision",
    "bf16_full_eval": "precision",
    "fp16": "precision",
    "fp16_full_eval": "precision",
    "num_train_epochs": "max_steps",
    "data_seed": "seed",
    "save_strategy": "save_steps",
    "eval_strategy": "valid",
    "eval_steps": "save_steps",
    "logging_strategy": "logging_steps",
}

_BATCHES = "the batches are settled before training, so that it can be resumed"
_RESUMED = "an interrupted stage is resumed from its last whole checkpoint, always and exactly"
_INSIDE = "the model computes its own loss from its own embeddings"
_WHOLE = "each process holds the whole model; weights are not sharded"
_REFUSED = {
    "accelerator_config": _BATCHES,
    "auto_find_batch_size": _BATCHES,
    "dataloader_drop_last": _BATCHES,
    "length_column_name": _BATCHES,
    "train_sampling_strategy": _BATCHES,
    "remove_unused_columns": _BATCHES,
    "enable_jit_checkpoint": _RESUMED,
    "ignore_data_skip": _RESUMED,
    "restore_callback_states_from_checkpoint": _RESUMED,
    "resume_from_checkpoint": _RESUMED,
    "save_only_model": _RESUMED,
    "label_names": _INSIDE,
    "label_smoothing_factor": _INSIDE,
    "neftune_noise_alpha": _INSIDE,
    "prediction_loss_only": _INSIDE,
    "deepspeed": _WHOLE,
    "fsdp": _WHOLE,
    "fsdp_config": _WHOLE,
    "parallelism_config": _WHOLE,
    "logging_nan_inf_filter": "a loss that is no number ends the run",
    "push_to_hub": "upload the finished model folder",
    "use_cpu": "the device is the best one there is; `CUDA_VISIBLE_DEVICES=` hides GPUs",
}

_WRONG_VALUE = (TypeError, ValueError, ImportError)
"""What TrainingArguments raises."""


def check_trainer_keys(path: str, name: str, stage: Stage) -> None:
    """Refuse keys of `trainer` that cannot be set, on this machine or any other.

    Args:
        path: of the recipe, for the message.
        name: of the stage.

    Raises:
        RecipeError: naming the key: unknown to TrainingArguments, or at odds with how stages are trained.
    """
    where = f"{path}: train.{name}.trainer"
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    for key in stage.trainer:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise RecipeError(f"{where}.{key} is not a field of TrainingArguments{hint}")
        if key in _KEY_INSTEAD:
            raise RecipeError(f"{where}.{key}: use the recipe's `{_KEY_INSTEAD[key]}` instead")
        if key in _REFUSED:
            raise RecipeError(f"{where}.{key} cannot be set: {_REFUSED[key]}")


def check_stage(path: str, name: str, stage: Stage) -> None:
    """Refuse settings that a stage would stumble over later, on this machine.

    Args:
        path: of the recipe, for the message.
        name: of the stage.

    Raises:
        RecipeError: naming the key: unknown to TrainingArguments, at odds with how stages are trained, of a value that
            it cannot have, or in want of a package, a folder or a device that is not there.
    """
    where = f"{path}: train.{name}"
    check_trainer_keys(path, name, stage)
    least, limit = _least_checkpoints(stage), stage.trainer.get("save_total_limit")
    if limit is not None and limit < least:
        raise RecipeError(
            f"{where}.trainer.save_total_limit is {limit}; wanted at least {least}, because the last whole checkpoint "
            "must outlive the writing of the next"
        )
    if stage.quantization is not None:
        try:
            check_installed()
        except ValueError as error:
            raise RecipeError(f"{where}.quantization: {error}") from error
    _check_reports(f"{where}.trainer.report_to", stage.trainer.get("report_to"))
    try:
        _make_arguments(stage)
        if stage.augment is not None:
            waveform_effects(stage.augment)
    except StapesError as error:
        raise RecipeError(f"{where}: {error}") from error
    except _WRONG_VALUE as error:
        raise RecipeError(f"{where}.trainer{_find_wrong_key(stage)}: {error}") from error


def training_arguments(stage: Stage, *, name: str, seed: int, folder: Path, device: str) -> TrainingArguments:
    """Translate a stage into the Trainer's arguments; checkpoints go to `folder/checkpoints`.

    Raises:
        RecipeError: if the device cannot compute in the precision that is wanted.
        ValueError, TypeError: if a value under `trainer` is none that the Trainer takes.
    """
    precision = choose_precision(stage.precision, device)
    settings: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "project": folder.parent.name or "stapes",
        "run_name": name,
        "max_steps": stage.max_steps,
        "learning_rate": stage.learning_rate,
        "per_device_train_batch_size": stage.per_device_train_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps,
        "max_grad_norm": stage.clip.max_norm if isinstance(stage.clip, FixedClip) else 0.0,
        "seed": seed,
        "use_cpu": device == "cpu",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "save_strategy": "steps",
        "save_steps": stage.save_steps,
        "save_total_limit": _least_checkpoints(stage),
        "logging_steps": stage.logging_steps,
        # Else a loss that is no number would be logged as the mean of those before it.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if stage.valid else "no",
        "eval_steps": stage.save_steps,
        "label_names": ["labels"],
        "remove_unused_columns": False,
        "restore_callback_states_from_checkpoint": True,
        "report_to": "none",
    }
    return TrainingArguments(**{**settings, **stage.trainer})


def _make_arguments(stage: Stage) -> None:
    # The folder is made when training begins, not here.
    training_arguments(stage, name="", seed=0, folder=Path("unused"), device=device_type())


def _find_wrong_key(stage: Stage) -> str:
    """Tell which key under `trainer` is refused even alone, as `.key`; nothing if it is their combination."""
    for key, value in stage.trainer.items():
        try:
            _make_arguments(stage.model_copy(update={"trainer": {key: value}}))
        except _WRONG_VALUE:
            return f".{key}"
    return ""


def _least_checkpoints(stage: Stage) -> int:
    """One more than those worth having: the last, and the best if it is wanted; a kill may cut the next one off."""
    return 3 if stage.trainer.get("load_best_model_at_end") else 2


def _check_reports(where: str, report_to: str | list[str] | None) -> None:
    for name in [report_to] if isinstance(report_to, str) else report_to or ():
        if name in ("none", "all") or name in get_available_reporting_integrations():
            continue
        raise RecipeError(f"{where}: `{name}` is not installed, or no reporter; try: pip install {name}")
