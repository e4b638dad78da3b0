"""One stage of training: freeze, add adapters, run the Trainer, write the trained part."""

from __future__ import annotations

import dataclasses
import difflib
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from ..assembly import save_model
from ..data.collator import Example, collate, collate_ctc
from ..data.mixture import Draw, MixtureBatchSampler
from ..data.sample import Sample, load_manifest, sample_duration_s, transcript_of
from ..errors import ManifestError, RecipeError
from ..model import CTCVocabulary, StapesForConditionalGeneration, StapesProcessor
from ..recipe import DynamicClip, FixedClip, Stage
from .callbacks import CompleteMark, LossLog, ProgressBar, last_checkpoint
from .clipping import DynamicClipping
from .examples import Examples
from .features import FeatureCache, encoder_identity
from .precision import choose_precision, torch_dtype
from .trainee import Trainee


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a stage cost.

    Attributes:
        steps: optimiser steps, those before an interruption included.
        resumed_from: the step this run of the program began with; 0 if it began at the start.
        seconds: wall time of this run of the program, feature cache included.
        cache_seconds: the part of it that went into encoding clips for the cache.
        encoded_clips: clips that were encoded into the cache.
        trainable_parameters: how many numbers learnt.
        train_loss: mean loss over the steps of this run.
    """

    steps: int
    resumed_from: int
    seconds: float
    cache_seconds: float
    encoded_clips: int
    trainable_parameters: int
    train_loss: float


def train_stage(
    model: StapesForConditionalGeneration,
    processor: StapesProcessor,
    stage: Stage,
    *,
    name: str,
    seed: int,
    folder: Path,
    cache: Path,
) -> StageResult:
    """Train `model` in place and write its trained part to `folder`.

    Checkpoints go to `folder/checkpoints`; if there are any, training goes on from the last whole one, and ends with
    the weights it would have had without the interruption.

    Args:
        stage: what learns, on what, for how long.
        name: of the stage, for the loss log.
        seed: of data order, augmentation and dropout.
        folder: working folder; `trained.safetensors`, configuration, processor and `losses.jsonl` end up there.
        cache: where encoder output is kept, shared by all stages and runs.

    Raises:
        ManifestError, AudioError: if data cannot be read.
    """
    started = time.monotonic()
    state = PartialState()
    corpora = [load_manifest(path) for path in stage.data]
    valid = [load_manifest(path) for path in stage.valid]
    _refuse_unheard([*corpora, *valid], stage, name)
    _prepare_parts(model, stage, seed, choose_precision(stage.precision, state.device.type))
    model.to(state.device)

    sampler = MixtureBatchSampler(
        [[sample_duration_s(sample) for sample in corpus] for corpus in corpora],
        weights=list(stage.data.values()),
        batch_size=stage.per_device_train_batch_size,
        accumulation_steps=stage.gradient_accumulation_steps,
        world_size=state.num_processes,
        num_steps=stage.max_steps,
        seed=seed,
    )
    feature_cache = None
    if stage.feature_cache and "speech_encoder" not in stage.trainable:
        feature_cache = FeatureCache(cache / encoder_identity(model, processor.feature_extractor))
    train_set = Examples(corpora, processor, seed, stage.augment, feature_cache)
    valid_set = Examples(valid, processor, seed, cache=feature_cache, train=False)
    valid_draws = [Draw(corpus, index, 0) for corpus, samples in enumerate(valid) for index in range(len(samples))]
    encoded = 0
    if feature_cache is not None:
        share = (state.process_index, state.num_processes)
        encoded = feature_cache.fill(model, train_set, (draw for batch in sampler for draw in batch), share)
        encoded += feature_cache.fill(model, valid_set, valid_draws, share)
        state.wait_for_everyone()
    cache_seconds = time.monotonic() - started

    trainer = StageTrainer(
        model=Trainee(model, stage.objective),
        args=_training_arguments(stage, seed, folder / "checkpoints", state.device.type),
        train_dataset=train_set,
        eval_dataset=valid_set if valid_draws else None,
        data_collator=_collator(model, processor, stage.objective),
        callbacks=[CompleteMark(), ProgressBar(name)],
    )
    # Both print to stdout, which is for results.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.sampler, trainer.valid_draws = sampler, valid_draws
    if isinstance(stage.clip, DynamicClip):
        trainer.add_callback(DynamicClipping(stage.clip.percentile, stage.clip.window))
    # Last, so that it sees what the others add to the logs.
    trainer.add_callback(LossLog(folder / "losses.jsonl", name))
    checkpoint = last_checkpoint(folder / "checkpoints")
    resumed_from = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    if trainer.is_world_process_zero():
        save_model(model.eval(), processor, folder, trained_only=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    state.wait_for_everyone()
    return StageResult(
        steps=stage.max_steps,
        resumed_from=resumed_from,
        seconds=round(time.monotonic() - started, 2),
        cache_seconds=round(cache_seconds, 2),
        encoded_clips=encoded,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        train_loss=round(result.training_loss, 4),
    )


class StageTrainer(Trainer):
    """The Trainer, fed by our mixture: batches of like length in an order that can be resumed."""

    sampler: MixtureBatchSampler
    valid_draws: Sequence[Draw]

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader over the mixture's batches."""
        return self._loader(self.train_dataset, self.sampler)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Return the loader over the validation samples, in order."""
        size = self.args.per_device_eval_batch_size
        draws = list(self.valid_draws)
        batches = [draws[start : start + size] for start in range(0, len(draws), size)]
        return self._loader(self.eval_dataset, batches)

    def _loader(self, dataset: Any, batches: Any) -> DataLoader:
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )
        return self.accelerator.prepare(loader)


def check_stage(path: str, name: str, stage: Stage) -> None:
    """Refuse keys of `trainer` that TrainingArguments does not have, and data that is not there.

    Args:
        path: of the recipe, for the message.
        name: of the stage.

    Raises:
        RecipeError: naming the key and the nearest known one.
    """
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    for key in stage.trainer:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise RecipeError(f"{path}: train.{name}.trainer.{key} is not a field of TrainingArguments{hint}")


def _collator(
    model: StapesForConditionalGeneration, processor: StapesProcessor, objective: Literal["answer", "ctc"]
) -> Callable[[Sequence[Example]], dict[str, Tensor]]:
    match objective:
        case "answer":
            return partial(collate, processor=processor)
        case "ctc":
            return partial(
                collate_ctc, vocabulary=CTCVocabulary(processor.tokenizer, model.config.connector_config.ctc_merges)
            )
        case _:
            assert_never(objective)


def _refuse_unheard(corpora: Sequence[Sequence[Sample]], stage: Stage, name: str) -> None:
    """Raise if CTC is to learn from a sample of which it is not known what is said in it."""
    if stage.objective != "ctc":
        return
    for path, samples in zip((*stage.data, *stage.valid), corpora, strict=True):
        for sample in samples:
            if transcript_of(sample) is None:
                raise ManifestError(
                    f"{path}: sample `{sample.id}` is for {sample.task} and does not tell what is said; stage `{name}` "
                    "with `objective: ctc` learns from samples for asr and audiocaption"
                )


def _prepare_parts(model: StapesForConditionalGeneration, stage: Stage, seed: int, precision: Any) -> None:
    """Add adapters if the stage asks for new ones, and let only its parts learn."""
    if stage.lora is not None and model.config.lora is None:
        settings = stage.lora.model_dump()
        if not isinstance(settings["target_modules"], str):
            settings["target_modules"] = list(settings["target_modules"])
        torch.manual_seed(seed)
        model.add_lora(**settings)
    model.set_trainable(set(stage.trainable))
    model.config.trained_parts = sorted({*(model.config.trained_parts or ()), *stage.trainable})
    for parameter in model.parameters():
        # What learns is kept in float32; autocast casts it where that is safe.
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else torch_dtype(precision))


def _training_arguments(stage: Stage, seed: int, output_dir: Path, device: str) -> TrainingArguments:
    precision = choose_precision(stage.precision, device)
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": stage.max_steps,
        "learning_rate": stage.learning_rate,
        "per_device_train_batch_size": stage.per_device_train_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps,
        "max_grad_norm": stage.clip.max_norm if isinstance(stage.clip, FixedClip) else 0.0,
        "seed": seed,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "save_strategy": "steps",
        "save_steps": stage.save_steps,
        # One older checkpoint stays, in case a kill cuts the newest one off while it is written.
        "save_total_limit": 2,
        "logging_steps": stage.logging_steps,
        "eval_strategy": "steps" if stage.valid else "no",
        "eval_steps": stage.save_steps,
        "prediction_loss_only": True,
        "label_names": ["labels"],
        "remove_unused_columns": False,
        "restore_callback_states_from_checkpoint": True,
        "report_to": "none",
    }
    return TrainingArguments(**{**settings, **stage.trainer})
