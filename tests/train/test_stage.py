from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import Trainer

from stapes.assembly import part_of
from stapes.data.collator import IGNORE, Example, collate
from stapes.data.sample import load_manifest, load_sample_audio
from stapes.errors import StapesError
from stapes.recipe import Stage
from stapes.train.stage import train_stage

Train = Callable[..., Any]

LORA = {"trainable": ["connector", "lora"], "lora": {"r": 2, "lora_alpha": 4, "lora_dropout": 0.3}}
# r · (in + out), for q_proj (64 → 64) and v_proj (64 → 32) in both layers.
LORA_PARAMETERS = 2 * 2 * (64 + 64 + 64 + 32)
AUGMENT = {"gain": {"p": 0.5, "db": [-6, 6]}, "noise": {"p": 0.5, "snr_db": [0, 10]}, "spec_augment": {}, "copies": 3}
# All that has a state: dropout in connector and adapters, clipping, augmentation, schedule, accumulation, validation.
EVERYTHING: dict[str, Any] = {
    **LORA,
    "kind": "windowed_qformer",
    "clip": {"kind": "dynamic", "percentile": 40, "window": 3},
    "augment": AUGMENT,
    "gradient_accumulation_steps": 2,
    "save_steps": 2,
    "logging_steps": 3,
    "trainer": {"lr_scheduler_type": "cosine", "warmup_steps": 2},
}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(tensor.equal(second[name]) for name, tensor in first.items())


def furthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((tensor - second[name]).abs().max()) for name, tensor in first.items())


# --- what learns and what does not ---


@pytest.mark.parametrize(
    "trainable",
    [
        ["connector"],
        ["lora"],
        ["connector", "lora"],
        ["speech_encoder"],
        ["language_model"],
        ["speech_encoder", "connector", "language_model", "lora"],
    ],
    ids="+".join,
)
def test_the_named_parts_learn_and_the_rest_is_frozen(
    trainable: list[str], make_stage: Callable[..., Stage], tmp_path: Path, tiny_model_and_processor: Callable
) -> None:
    model, processor = tiny_model_and_processor("windowed_qformer")
    stage = make_stage(
        trainable=trainable, lora=LORA["lora"] if "lora" in trainable else None, feature_cache=False, max_steps=2
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes: dict[str, set[bool]] = {}
    for part in ("speech_encoder", "connector", "language_model"):

        def note(module: torch.nn.Module, _: Any, part: str = part) -> None:
            if torch.is_grad_enabled():
                modes.setdefault(part, set()).add(module.training)

        getattr(model, part).register_forward_pre_hook(note)
    with_gradient: set[str] = set()

    def note_gradients(*_: Any) -> None:
        with_gradient.update(part_of(name) for name, own in model.named_parameters() if own.grad is not None)

    hook = register_optimizer_step_pre_hook(note_gradients)
    train_stage(model, processor, stage, name="a", seed=0, folder=tmp_path, cache=tmp_path)
    hook.remove()

    assert with_gradient == set(trainable)
    learning = {"language_model" if part == "lora" else part for part in trainable}
    assert modes == {part: {part in learning} for part in modes}
    assert len(modes) == 3
    assert not model.training
    changed = {
        part_of(name) for name, tensor in model.state_dict().items() if not tensor.equal(before.get(name, tensor))
    }
    assert changed == set(trainable) - {"lora"}
    saved = load_file(tmp_path / "trained.safetensors")
    assert {part_of(name) for name in saved} == {"connector", *trainable}
    if "lora" in trainable:
        # B begins at zero.
        assert all(tensor.any() for name, tensor in saved.items() if "lora_B" in name)


def test_a_checkpoint_holds_what_learns_and_nothing_else(train: Train, interrupt: Train, tmp_path: Path) -> None:
    interrupt(5)
    with pytest.raises(KeyboardInterrupt):
        train(**LORA)
    tensors = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert {part_of(name) for name in tensors} == {"connector", "lora"}
    learning = sum(tensor.numel() for tensor in tensors.values())
    assert learning == 18_784 + LORA_PARAMETERS
    assert train(**LORA).result.trainable_parameters == learning


def test_a_later_stage_goes_on_with_the_adapters_that_are_there(
    make_stage: Callable[..., Stage], tmp_path: Path, tiny_model_and_processor: Callable
) -> None:
    model, processor = tiny_model_and_processor("stacked_mlp")
    settings = {"seed": 0, "cache": tmp_path / "cache"}
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    train_stage(model, processor, make_stage(**LORA), name="first", folder=tmp_path / "first", **settings)
    train_stage(model, processor, make_stage(**LORA), name="second", folder=tmp_path / "second", **settings)
    assert model.config.trained_parts == ["connector", "lora"]
    first, second = (load_file(tmp_path / name / "trained.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    other = make_stage(**{**LORA, "lora": {"r": 4}})
    with pytest.raises(StapesError, match=r"stage `third` asks for adapters with .*'r': 4.* some with .*'r': 2"):
        train_stage(model, processor, other, name="third", folder=tmp_path / "third", **settings)


def test_a_stage_in_which_nothing_can_learn_is_refused(train: Train) -> None:
    with pytest.raises(StapesError, match="stage `align`: nothing learns, the model has no lora"):
        train(trainable=["lora"])


# --- the same training by other ways ---


@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_accumulating_4_batches_of_1_is_1_batch_of_4(train: Train, optimizer: str) -> None:
    # Adam divides by the gradient's own size: with its usual epsilon rounding decides where gradients are next to none.
    trainer = {"optim": optimizer, "lr_scheduler_type": "constant", "adam_epsilon": 1e-4}
    settings = {"trainer": trainer, "learning_rate": 1e-3, "max_steps": 3, "feature_cache": False}
    whole = train("whole", per_device_train_batch_size=4, **settings)
    split = train("split", per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings)
    assert furthest(whole.tensors, split.tensors) < 1e-6
    assert [line["loss"] for line in split.losses] == pytest.approx([line["loss"] for line in whole.losses], rel=1e-5)


def test_stored_features_train_like_fresh_ones(train: Train) -> None:
    settings = {"trainer": {"optim": "sgd", "lr_scheduler_type": "constant"}, "learning_rate": 1e-2}
    fresh, stored = train("fresh", feature_cache=False, **settings), train("stored", **settings)
    untrained = train("untrained", **{**settings, "learning_rate": 1e-12})
    way = furthest(fresh.tensors, untrained.tensors)
    # float16 rounds each frame by up to 1/2048 of its size.
    assert furthest(fresh.tensors, stored.tensors) < 5e-3 * way
    assert (fresh.result.encoded_clips, stored.result.encoded_clips) == (0, 12)
    assert fresh.result.cache_seconds == 0
    assert stored.result.cache_seconds > 0


def test_activation_checkpointing_changes_nothing(train: Train) -> None:
    plain = train("plain", **LORA)
    lighter = train("lighter", **LORA, trainer={"activation_checkpointing": True})
    assert same(plain.tensors, lighter.tensors)
    layers = [trained.model.language_model.get_decoder().layers[0] for trained in (plain, lighter)]
    assert [layer.gradient_checkpointing for layer in layers] == [False, True]


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_training_in_bf16_keeps_what_learns_in_float32(train: Train) -> None:
    trained = train(precision="bf16", **LORA)
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in trained.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert {tensor.dtype for tensor in trained.tensors.values()} == {torch.float32}
    assert [line["loss"] for line in trained.losses] == pytest.approx(
        [line["loss"] for line in train("fp32", **LORA).losses], rel=0.02
    )


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_what_an_earlier_stage_taught_is_not_rounded_by_a_later_one(
    make_stage: Callable[..., Stage], tmp_path: Path, tiny_model_and_processor: Callable
) -> None:
    model, processor = tiny_model_and_processor("stacked_mlp")
    settings: dict[str, Any] = {"seed": 0, "cache": tmp_path / "cache"}
    tune = make_stage(trainable=["speech_encoder"], speech_encoder_layers=1, precision="bf16", max_steps=2)
    for name, stage in {"tune": tune, "answer": make_stage(**LORA, precision="bf16", max_steps=2)}.items():
        (tmp_path / name).mkdir()
        train_stage(model, processor, stage, name=name, folder=tmp_path / name, **settings)
    tuned, answered = (load_file(tmp_path / name / "trained.safetensors") for name in ("tune", "answer"))
    encoder = {name for name in tuned if name.startswith("speech_encoder.")}
    assert {name.split(".")[1] for name in encoder} == {"layers", "layer_norm"}
    assert {name for name in answered if name.startswith("speech_encoder.")} == encoder
    assert all(tuned[name].equal(answered[name]) for name in encoder)
    assert (model.config.trained_parts, model.config.trained_speech_layers) == (
        ["connector", "lora", "speech_encoder"],
        1,
    )


# --- interrupted and resumed ---


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("batches", [3, 9])
def test_an_interrupted_stage_ends_as_one_that_was_not(
    cached: bool, batches: int, train: Train, interrupt: Train, clips: Path
) -> None:
    settings = {**EVERYTHING, "feature_cache": cached, "valid": [clips / "valid.jsonl"]}
    whole = train("whole", **settings)
    interrupt(batches)
    with pytest.raises(KeyboardInterrupt):
        train("parts", **settings)
    resumed = train("parts", **settings)
    # Batch 3 belongs to step 2, before the first checkpoint; batch 9 to step 5.
    assert resumed.result.resumed_from == {3: 0, 9: 4}[batches]
    assert same(whole.tensors, resumed.tensors)
    assert whole.losses == resumed.losses
    assert (resumed.result.steps, resumed.result.train_loss) == (6, whole.result.train_loss)


def test_each_step_is_logged_once(train: Train, interrupt: Train, clips: Path) -> None:
    interrupt(9)
    settings = {**EVERYTHING, "valid": [clips / "valid.jsonl"], "trainer": {"eval_on_start": True}}
    with pytest.raises(KeyboardInterrupt):
        train(**settings)
    resumed = train(**settings)
    logged = [(line["step"], "loss" in line) for line in resumed.losses]
    # Every third step, and wherever a checkpoint is saved, so that no sum of losses is lost.
    assert logged == [
        (0, False),
        *[(2, True), (2, False), (3, True)],
        *[(4, True), (4, False), (6, True), (6, False)],
    ]
    losses = [line for line in resumed.losses if "loss" in line]
    assert all({"learning_rate", "grad_norm", "clip_value"} < line.keys() for line in losses)
    # 2 steps, 1 step, 1 step, 2 steps.
    mean = sum(line["loss"] * steps for line, steps in zip(losses, (2, 1, 1, 2), strict=True)) / 6
    assert resumed.result.train_loss == pytest.approx(mean, abs=1e-4)


def test_the_limit_of_dynamic_clipping_goes_on(train: Train, interrupt: Train) -> None:
    """Worked out from the logged norms: the 40th percentile of the last three."""
    interrupt(9)
    settings = {**EVERYTHING, "logging_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        train(**settings)
    lines = train(**settings).losses
    norms = [line["grad_norm"] for line in lines]
    for step, line in enumerate(lines):
        last = sorted(norms[max(0, step - 2) : step + 1])
        place = 0.4 * (len(last) - 1)
        low = int(place)
        high = min(low + 1, len(last) - 1)
        assert line["clip_value"] == pytest.approx(last[low] + (place - low) * (last[high] - last[low]), rel=1e-5)


def test_the_best_weights_survive_an_interruption(train: Train, interrupt: Train, clips: Path) -> None:
    settings = {
        "valid": [clips / "valid.jsonl"],
        "learning_rate": 10.0,  # so large that the last weights are not the best
        "max_steps": 8,
        "save_steps": 1,
        "trainer": {"load_best_model_at_end": True, "lr_scheduler_type": "constant", "optim": "sgd"},
    }
    whole = train("whole", **settings)
    interrupt(7)
    with pytest.raises(KeyboardInterrupt):
        train("parts", **settings)
    resumed = train("parts", **settings)
    assert resumed.result.resumed_from == 7
    assert same(whole.tensors, resumed.tensors)
    best = min((line["eval_loss"], line["step"]) for line in whole.losses if "eval_loss" in line)
    assert best[1] < 6
    assert validation_loss(resumed, clips) == pytest.approx(best[0], rel=1e-4)


def test_a_finished_folder_is_loaded_and_not_trained_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train()
    assert not (tmp_path / "run" / "checkpoints").exists()
    # A kill while they were deleted may leave some, without their marks.
    (tmp_path / "run" / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    monkeypatch.setattr(Trainer, "training_step", None)
    again = train()
    assert again.result == trained.result
    assert not (tmp_path / "run" / "checkpoints").exists()
    state = again.model.state_dict()
    assert same(trained.tensors, {name: state[name] for name in trained.tensors})


def test_a_failure_while_the_result_is_written_costs_no_step(train: Train, tmp_path: Path) -> None:
    whole = train("whole")
    obstacle = tmp_path / "run" / "trained.safetensors"
    obstacle.mkdir(parents=True)
    with pytest.raises(Exception, match="directory"):
        train()
    obstacle.rmdir()
    resumed = train()
    assert (resumed.result.resumed_from, resumed.result.steps) == (6, 6)
    assert resumed.result.train_loss == whole.result.train_loss
    assert same(whole.tensors, resumed.tensors)


def test_a_checkpoint_that_could_not_be_written_whole_is_not_resumed_from(train: Train, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk; it lies between the weights' size and the optimiser's."""
    whole = train("whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):
            train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    torn = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    assert (torn / "model.safetensors").exists()
    assert not (torn / "complete.json").exists()
    resumed = train()
    assert resumed.result.resumed_from == 0
    assert same(whole.tensors, resumed.tensors)
    assert whole.losses == resumed.losses


# --- losses ---


def validation_loss(trained: Any, clips: Path) -> float:
    """Compute it clip by clip: the mean over all target tokens."""
    total, count = 0.0, 0
    for sample in load_manifest(clips / "valid.jsonl"):
        waveform = load_sample_audio(sample)
        features = trained.processor.feature_extractor([waveform])["input_features"][0]
        example = Example("Transcribe the speech.", sample.target, input_features=features)
        batch = collate([example], trained.processor)
        num_tokens = int((batch["labels"] != IGNORE).sum())
        with torch.no_grad():
            total += trained.model(**batch).loss.item() * num_tokens
        count += num_tokens
    return total / count


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_batches(
    batch_size: int, train: Train, clips: Path
) -> None:
    trained = train(valid=[clips / "valid.jsonl"], trainer={"per_device_eval_batch_size": batch_size})
    assert [line["step"] for line in trained.losses if "eval_loss" in line] == [2, 4, 6]
    # float16 in the cache: 3 digits.
    assert trained.losses[-1]["eval_loss"] == pytest.approx(validation_loss(trained, clips), rel=1e-3)


def test_validating_leaves_training_as_it_is(train: Train, clips: Path) -> None:
    settings = {**EVERYTHING, "logging_steps": 1}
    plain, validated = train("plain", **settings), train("validated", **settings, valid=[clips / "valid.jsonl"])
    assert plain.losses == [line for line in validated.losses if "loss" in line]


def test_a_loss_that_is_no_number_ends_the_run(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StapesError, match=r"stage `align`: (loss|grad_norm) is (nan|inf) at step \d; use a lower"):
        train(learning_rate=1e30, save_steps=1)
    marks = sorted((tmp_path / "run" / "checkpoints").glob("*/complete.json"))
    for mark in marks:
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(mark.with_name("model.safetensors")).values())


def test_losses_go_to_tensorboard_beside_the_log(train: Train, interrupt: Train) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = {"trainer": {"report_to": "tensorboard"}, "clip": {"kind": "dynamic"}, "logging_steps": 1}
    interrupt(3)
    with pytest.raises(KeyboardInterrupt):
        train(**settings)
    trained = train(**settings)
    events = event_accumulator.EventAccumulator(str(trained.folder / "tensorboard")).Reload()
    for tag, key in (("train/loss", "loss"), ("train/clip_value", "clip_value")):
        seen = [(event.step, event.value) for event in events.Scalars(tag)]
        assert seen == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in trained.losses]
