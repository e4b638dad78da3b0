"""One stage of training: freeze, add adapters, run the Trainer, write the trained part."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from ..assembly import TRAINED_FILE, part_of, save_model
from ..data.mixture import MixtureBatchSampler
from ..data.sample import load_manifest, sample_duration_s
from ..errors import StapesError
from ..files import read_json, write_json
from ..model import CTCCompressor, StapesForConditionalGeneration, StapesProcessor
from ..model.nf4 import compute_in
from ..recipe import DynamicClip, Stage
from .adapters import give_4bit_weights, give_adapters
from .arguments import check_stage, training_arguments
from .callbacks import CompleteMark, LossLog, ProgressBar, checkpoint_step, last_checkpoint, remove_torn_checkpoints
from .clipping import DynamicClipping
from .examples import Examples
from .features import FeatureCache, encoder_identity
from .hearing import check_heard, check_spoken, collator, known_alone, teacher_of_phones
from .precision import Precision, choose_attention, choose_precision, torch_dtype
from .processes import device_type, this_process
from .trainee import Trainee
from .trainer import StageTrainer

__all__ = ["RESULT_FILE", "StageResult", "check_stage", "train_stage"]

RESULT_FILE = "trained.json"
"""Holds a `StageResult`; written once the trained part is complete, before checkpoints are deleted."""


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a stage cost.

    Attributes:
        steps: optimiser steps, those before an interruption included.
        resumed_from: the step this run of the program began with; 0 if it began at the start.
        seconds: wall time of this run of the program, feature cache included.
        cache_seconds: the part of it that went into encoding clips for the cache.
        encoded_clips: clips that all processes together encoded into the cache.
        trainable_parameters: how many numbers learnt.
        train_loss: mean loss over all steps, those before an interruption included.
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

    Checkpoints go to `folder/checkpoints`; training goes on from the last whole one and ends with the weights it would
    have had without the interruption. A folder that is finished is only loaded.

    Args:
        stage: what learns, on what, for how long.
        name: of the stage, for logs.
        seed: of data order, augmentation, adapters and dropout.
        folder: where the trained part, configuration, processor, `losses.jsonl` and maybe `tensorboard/` end up.
        cache: where encoder output is kept, shared by all stages and runs.

    Raises:
        ManifestError, AudioError: if data cannot be read.
        StapesError: if the stage does not fit the model, the machine or an interrupted run, or its loss is no number.
    """
    started = time.monotonic()
    arguments = _one_device_arguments(stage, name, seed, folder)
    _prepare_parts(model, processor, stage, name, seed, arguments.device)
    if (folder / RESULT_FILE).exists():
        return _load_finished(model, folder)
    sampler, train_set, valid_set = _load_data(model, processor, stage, name, seed, cache)
    encoded, cache_seconds = _fill_cache(model, sampler, train_set, valid_set)
    trainer = StageTrainer(
        model=Trainee(model, stage.objective),
        args=arguments,
        train_dataset=train_set,
        eval_dataset=valid_set if stage.valid else None,
        data_collator=collator(model, processor, stage.objective),
        callbacks=[CompleteMark(), LossLog(folder / "losses.jsonl", name)],
    )
    trainer.sampler, trainer.valid_draws = sampler, valid_set.draws()
    if isinstance(stage.clip, DynamicClip):
        trainer.add_callback(DynamicClipping(stage.clip.percentile, stage.clip.window))
    resumed_from = _run(trainer, name, folder)
    result = StageResult(
        steps=trainer.state.global_step,
        resumed_from=resumed_from,
        seconds=round(time.monotonic() - started, 2),
        cache_seconds=cache_seconds,
        encoded_clips=encoded,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        train_loss=round(_mean_loss(trainer.state.log_history), 4),
    )
    if trainer.is_world_process_zero():
        save_model(model.eval(), processor, folder, trained_only=True)
        write_json(folder / RESULT_FILE, dataclasses.asdict(result))
        shutil.rmtree(folder / "checkpoints")
    this_process().wait_for_everyone()
    return result


def _one_device_arguments(stage: Stage, name: str, seed: int, folder: Path) -> TrainingArguments:
    """Make the Trainer's arguments, and refuse to spread one process over several GPUs."""
    arguments = training_arguments(stage, name=name, seed=seed, folder=folder, device=device_type())
    if arguments.n_gpu > 1:
        raise StapesError(
            f"{arguments.n_gpu} GPUs are there for one process; start with `accelerate launch --multi_gpu`, or let it "
            "see one (`CUDA_VISIBLE_DEVICES=0`)"
        )
    return arguments


def _note_trained(model: StapesForConditionalGeneration, stage: Stage) -> None:
    """Note in the model's configuration what is no longer as it came: saved are these weights alone."""
    before, config = set(model.config.trained_parts or ()), model.config
    if "speech_encoder" in stage.trainable:
        wanted = [stage.speech_encoder_layers]
        if "speech_encoder" in before:
            wanted.append(config.trained_speech_layers)
        config.trained_speech_layers = None if None in wanted else max(number for number in wanted if number)
    config.trained_parts = sorted({*before, *stage.trainable})


def _prepare_parts(
    model: StapesForConditionalGeneration,
    processor: StapesProcessor,
    stage: Stage,
    name: str,
    seed: int,
    device: torch.device,
) -> None:
    """Add adapters if the stage asks for new ones, let only its parts learn, and fit the rest to the device."""
    if stage.quantization is not None:
        give_4bit_weights(model, stage.quantization, name)
    if stage.lora is not None:
        give_adapters(model, processor, stage.lora, name, seed)
    try:
        model.set_trainable(set(stage.trainable), stage.speech_encoder_layers)
    except ValueError as error:
        raise StapesError(f"stage `{name}`: {error}") from error
    if stage.objective != "answer" and not isinstance(model.connector, CTCCompressor):
        kind = model.config.connector_config.kind
        raise StapesError(f"stage `{name}`: `objective: {stage.objective}` teaches a ctc_compressor, not a {kind}")
    if isinstance(model.connector, CTCCompressor) and "connector" in stage.trainable:
        # The LLM's loss reaches what CTC hears through posteriors alone, which pulls pieces away from what was said.
        try:
            model.connector.let_learn(stage.objective)
        except ValueError as error:
            raise StapesError(f"stage `{name}`: {error}") from error
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise StapesError(f"stage `{name}`: nothing learns, the model has no {' or '.join(stage.trainable)}")
    _note_trained(model, stage)
    precision: Precision = choose_precision(stage.precision, device.type)
    compute_in(model.language_model, torch_dtype(precision))
    # What learns is kept in float32, and what learnt before, which is saved again; autocast casts it where that is
    # safe. A whole LLM that learnt before is not: it would take twice the memory.
    exact = {"connector", *(model.config.trained_parts or ())} - {"language_model"}
    for parameter_name, parameter in model.named_parameters():
        # Weights in 4 bits are whole numbers.
        if not parameter.is_floating_point():
            continue
        keep = parameter.requires_grad or part_of(parameter_name) in exact
        parameter.data = parameter.data.to(torch.float32 if keep else torch_dtype(precision))
    if choose_attention(precision, device.type) == "flash_attention_2":
        # The connector's windows are too short to gain by it; transformers' own default everywhere else is SDPA.
        for part in (model.speech_encoder, model.language_model):
            if part._supports_flash_attn:
                part.set_attn_implementation("flash_attention_2")
    cast(nn.Module, model).to(device)


def _load_finished(model: StapesForConditionalGeneration, folder: Path) -> StageResult:
    """Take what an earlier run finished before it was cut off."""
    model.load_state_dict(load_file(folder / TRAINED_FILE), strict=False)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    model.eval()
    return StageResult(**read_json(folder / RESULT_FILE))


def _load_data(
    model: StapesForConditionalGeneration, processor: StapesProcessor, stage: Stage, name: str, seed: int, cache: Path
) -> tuple[MixtureBatchSampler, Examples, Examples]:
    """Make the order of training samples, the training examples and the validation examples."""
    corpora = [load_manifest(path) for path in stage.data]
    valid = [load_manifest(path) for path in stage.valid]
    if stage.objective != "answer":
        check_heard(stage, name, [*corpora, *valid])
    if words := teacher_of_phones(model, processor, stage, name):
        check_spoken(words, stage, name, corpora)
        valid = known_alone(words, list(zip(stage.valid, valid, strict=True)))
        if stage.valid and not any(valid):
            raise StapesError(
                f"train.{name}.valid: every sample holds words that `words` lack; none is left to measure"
            )
    sampler = MixtureBatchSampler(
        [[sample_duration_s(sample) for sample in corpus] for corpus in corpora],
        weights=list(stage.data.values()),
        batch_size=stage.per_device_train_batch_size,
        accumulation_steps=stage.gradient_accumulation_steps,
        world_size=this_process().num_processes,
        num_steps=stage.max_steps,
        seed=seed,
    )
    features = None
    if stage.feature_cache and not {"speech_encoder", "sound_encoder"} & {*stage.trainable}:
        features = FeatureCache(cache / encoder_identity(model, processor.feature_extractor))
    train_set = Examples(corpora, processor, seed, stage.augment, features)
    return sampler, train_set, Examples(valid, processor, seed, cache=features, train=False)


def _fill_cache(
    model: StapesForConditionalGeneration, sampler: MixtureBatchSampler, train_set: Examples, valid_set: Examples
) -> tuple[int, float]:
    """Encode what the stage will need and the cache does not hold; count clips of all processes, and seconds."""
    if train_set.cache is None:
        return 0, 0.0
    started = time.monotonic()
    state = this_process()
    share = (state.process_index, state.num_processes)
    encoded = train_set.cache.fill(model, train_set, (draw for batch in sampler for draw in batch), share)
    encoded += train_set.cache.fill(model, valid_set, valid_set.draws(), share)
    # Each process needs what the others encode: this waits for them, too.
    return sum(gather_object([encoded])), round(time.monotonic() - started, 2)


def _run(trainer: StageTrainer, name: str, folder: Path) -> int:
    """Train to the end, from the last whole checkpoint if there is one; return the step it went on from."""
    # Both print to stdout, which is for results.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise StapesError("stapes trains data-parallel only; use `accelerate launch` without DeepSpeed or FSDP")
    checkpoint = last_checkpoint(folder / "checkpoints", trainer.args.world_size)
    resumed_from = checkpoint_step(checkpoint) if checkpoint else 0
    this_process().wait_for_everyone()
    if trainer.is_world_process_zero():
        remove_torn_checkpoints(folder / "checkpoints")
    _place_tensorboard(trainer, folder / "tensorboard", resumed_from)
    # Otherwise validated and logged a second time.
    trainer.args.eval_on_start = trainer.args.eval_on_start and checkpoint is None
    bar = ProgressBar(name)
    trainer.add_callback(bar)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.close()
    return resumed_from


def _place_tensorboard(trainer: StageTrainer, folder: Path, resumed_from: int) -> None:
    """Let TensorBoard write beside the losses, not into the folder of checkpoints, which is deleted."""
    if trainer.pop_callback(TensorBoardCallback) is None or not trainer.is_world_process_zero():
        return
    from torch.utils.tensorboard import SummaryWriter

    purge_step = resumed_from + 1 if resumed_from else None
    trainer.add_callback(TensorBoardCallback(SummaryWriter(str(folder), purge_step=purge_step)))


def _mean_loss(history: list[dict[str, Any]]) -> float:
    """Average the logged losses, each the mean of the steps since the one before."""
    total, steps = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - steps)
            steps = entry["step"]
    return total / steps
