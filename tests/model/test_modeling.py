"""The forward pass, its loss and gradients, what is frozen, adapters, and inputs that do not fit together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from stapes.data.collator import IGNORE, Example, collate
from stapes.model import StapesConfig, StapesForConditionalGeneration, StapesProcessor
from stapes.model.speech_encoder import SpeechEncoder

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]
Kind = Literal["windowed_qformer", "stacked_mlp"]

KINDS = pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp"])


def training_batch(processor: StapesProcessor, speech_like: Waveforms) -> dict[str, Tensor]:
    examples = [
        Example(
            "Transcribe the speech.",
            target,
            input_features=processor.feature_extractor([speech_like(duration_s, seed)])["input_features"][0],
        )
        for seed, (duration_s, target) in enumerate([(1.0, "yes"), (2.5, "perhaps not"), (0.3, "")])
    ]
    return collate(examples, processor)


# The forward pass


@KINDS
def test_shapes_and_gradients(kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    model, processor = tiny_model_and_processor(kind)
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"])
    outputs = model(**inputs)
    assert outputs.logits.shape == (*inputs["input_ids"].shape, 262)
    outputs.logits[:, -1].pow(2).sum().backward()
    # The last position sees all of the prompt, so every weight of every part has its share in it.
    without = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert without == ["speech_encoder.embed_positions.weight"]  # sinusoids, as in Whisper


@KINDS
def test_the_loss_is_that_of_the_answers_tokens(
    kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor(kind)
    batch = training_batch(processor, speech_like)
    with torch.no_grad():
        outputs = model(**batch)
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits.double()
        summed = model(**batch, num_items_in_batch=torch.tensor(50)).loss
    losses, predicted = [], []
    for row in range(3):
        for position in range(1, batch["labels"].shape[1]):
            label = int(batch["labels"][row, position])
            if label != IGNORE:
                predicted.append(logits[row, position - 1])
                losses.append(-torch.log_softmax(logits[row, position - 1], dim=-1)[label])
    # "yes", "perhaps not" and "" are 3, 11 and 0 bytes; each answer ends with its end symbol.
    assert len(losses) == 3 + 11 + 0 + 3
    assert outputs.loss.item() == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    assert summed.item() == pytest.approx(float(torch.stack(losses).sum()) / 50, abs=1e-5)
    # Only positions that predict something go through the head.
    torch.testing.assert_close(outputs.logits.double(), torch.stack(predicted), atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_of_the_last_position_alone(tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    model, processor = tiny_model_and_processor()
    inputs = processor.prepare([speech_like(1.0, 0)], ["Hi?"])
    last = model(**inputs, logits_to_keep=1).logits
    assert last.shape == (1, 1, 262)
    torch.testing.assert_close(last, model(**inputs).logits[:, -1:])


@torch.no_grad()
@KINDS
def test_stored_encoder_frames_do_as_well_as_features(
    kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor(kind)
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"])
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    frames, mask = model.encode(inputs["input_features"], inputs["input_features_mask"])
    expected = model(**inputs).logits
    assert torch.equal(model(**text, encoder_frames=frames, encoder_frames_mask=mask).logits, expected)
    # Without a mask all frames count.
    alone = processor.prepare([speech_like(3.0, 1)], ["And you?"])
    frames = model.encode(alone["input_features"])[0]
    assert torch.equal(model(input_ids=alone["input_ids"], encoder_frames=frames).logits, model(**alone).logits)


@torch.no_grad()
def test_audio_takes_the_place_of_its_tokens(tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    model, processor = tiny_model_and_processor()
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"])
    audio = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    assert audio.shape == (3 + 9, 64)
    ids = inputs["input_ids"]
    embeds = model.get_input_embeddings()(ids)
    placed = model.place_audio(ids, embeds, audio)
    is_audio = ids == processor.audio_token_id
    assert torch.equal(placed[is_audio], audio)
    assert torch.equal(placed[~is_audio], embeds[~is_audio])
    mask = inputs["attention_mask"]
    assert torch.equal(model(inputs_embeds=placed, attention_mask=mask).logits, model(**inputs).logits)


@torch.no_grad()
def test_without_audio_it_is_the_llm(tiny_model_and_processor: ModelFactory) -> None:
    model, processor = tiny_model_and_processor()
    ids = torch.tensor([processor.tokenizer("no audio here")["input_ids"]])
    assert torch.equal(model(input_ids=ids).logits, model.language_model(input_ids=ids).logits)


# Inputs that do not fit together


def test_another_number_of_audio_tokens_is_refused(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor()
    clips, instructions = [speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"]
    inputs = processor.prepare(clips, instructions)
    other = tiny_model_and_processor(tail="drop")[1].prepare(clips, instructions)
    with pytest.raises(
        ValueError,
        match=r"^the prompts hold 10 audio tokens but the audio gives 12; use the processor saved with this model$",
    ):
        model(**{**inputs, "input_ids": other["input_ids"], "attention_mask": other["attention_mask"]})


def test_clips_in_another_order_than_the_prompts_are_refused(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    """The total is right, but the second prompt would end with the first clip's last seconds."""
    model, processor = tiny_model_and_processor()
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"])
    inputs["input_features"] = inputs["input_features"].flip(0)
    inputs["input_features_mask"] = inputs["input_features_mask"].flip(0)
    with pytest.raises(
        ValueError,
        match=r"^the prompts hold \[3, 9\] audio tokens but the clips give \[9, 3\]; give clips and prompts in one",
    ):
        model(**inputs)


@torch.no_grad()
def test_a_prompt_may_hold_several_clips_or_none(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor()
    audio, clips = processor.audio_token, [speech_like(1.0, 0), speech_like(3.0, 1), speech_like(0.1, 2)]
    settings: Any = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    inputs = processor(text=[f"{audio} or {audio}?", "No audio.", f"And {audio}?"], audio=clips, text_kwargs=settings)
    logits = model(**inputs).logits
    last = processor(text=[f"And {audio}?"], audio=clips[2:], text_kwargs=settings)
    torch.testing.assert_close(logits[2, -1], model(**last).logits[0, -1], atol=1e-4, rtol=0)


def test_audio_tokens_without_audio_are_refused(tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    model, processor = tiny_model_and_processor()
    inputs = processor.prepare([speech_like(1.0, 0)], ["Hi?"])
    with pytest.raises(
        ValueError, match=r"^the prompts hold audio tokens but no audio is given; pass `input_features`"
    ):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match=r"^give input_ids or inputs_embeds$"):
        model()


@torch.no_grad()
def test_drafted_tokens_may_look_like_audio(tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    """Prompt lookup drafts what followed the same words earlier on: audio tokens, if those stood before the audio."""
    model, processor = tiny_model_and_processor()
    inputs = processor.prepare([speech_like(1.0, 0)], ["Hi?"])
    cache = model(**inputs, use_cache=True).cache
    drafted = torch.tensor([[5, processor.audio_token_id, 6]])
    assert model(input_ids=drafted, cache=cache, use_cache=True).logits.shape == (1, 3, 262)


# Frozen means frozen


@pytest.mark.parametrize(
    ("trainable", "in_training"),
    [
        ({"connector"}, {"connector"}),
        ({"connector", "lora"}, {"connector", "language_model"}),
        ({"lora"}, {"language_model"}),
        ({"speech_encoder", "connector", "language_model"}, {"speech_encoder", "connector", "language_model"}),
        (set(), set()),
    ],
)
def test_frozen_parts_have_no_gradient_and_stay_in_eval_mode(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms, trainable: set[str], in_training: set[str]
) -> None:
    model, processor = tiny_model_and_processor()
    model.add_lora(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    model.set_trainable(trainable)
    parts = {name: getattr(model, name) for name in ("speech_encoder", "connector", "language_model")}
    for _ in range(2):  # as the Trainer does, with an evaluation in between
        model.train()
        assert model.training
        for name, part in parts.items():
            assert {module.training for module in part.modules()} == {name in in_training}, name
        model.eval()
        assert not any(module.training for module in model.modules())
    model.train()
    if not trainable:
        return
    model(**training_batch(processor, speech_like)).loss.backward()
    learning = {
        "lora" if ".lora_" in name else name.partition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert learning == trainable


def test_whispers_position_table_is_never_learnt(tiny_model_and_processor: ModelFactory) -> None:
    model, _ = tiny_model_and_processor()
    model.set_trainable({"speech_encoder"})
    frozen = [n for n, p in model.named_parameters() if n.startswith("speech_encoder.") and not p.requires_grad]
    assert frozen == ["speech_encoder.embed_positions.weight"]


@pytest.mark.parametrize(("num_layers", "frozen_layers"), [(1, {"0"}), (2, set())])
def test_the_last_layers_of_the_encoder_alone_can_learn(
    tiny_model_and_processor: ModelFactory, num_layers: int, frozen_layers: set[str]
) -> None:
    model, _ = tiny_model_and_processor()
    model.set_trainable({"speech_encoder", "connector"}, speech_encoder_layers=num_layers)
    encoder = {name.removeprefix("speech_encoder."): p for name, p in model.named_parameters() if "speech_enc" in name}
    frozen = {name for name, parameter in encoder.items() if not parameter.requires_grad}
    assert {name.split(".")[0] for name in frozen} - {"layers"} == {"conv1", "conv2", "embed_positions"}
    assert {name.split(".")[1] for name in frozen if name.startswith("layers.")} == frozen_layers
    assert all(parameter.requires_grad for parameter in model.connector.parameters())


def test_an_encoder_has_only_so_many_layers(tiny_model_and_processor: ModelFactory) -> None:
    model, _ = tiny_model_and_processor()
    with pytest.raises(ValueError, match="`speech_encoder_layers` is 3, but the speech encoder has 2 layers"):
        model.set_trainable({"speech_encoder"}, speech_encoder_layers=3)


def test_set_trainable_in_the_midst_of_training(tiny_model_and_processor: ModelFactory) -> None:
    model, _ = tiny_model_and_processor()
    model.train()
    model.set_trainable({"connector"})
    assert (model.connector.training, model.speech_encoder.training, model.language_model.training) == (
        True,
        False,
        False,
    )
    model.set_trainable({"language_model"})
    assert (model.connector.training, model.speech_encoder.training, model.language_model.training) == (
        False,
        False,
        True,
    )


def test_a_frozen_encoder_drops_nothing_while_training(
    tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor()
    model.speech_encoder.dropout = 0.5
    inputs = processor.prepare([speech_like(1.0, 0)], ["Hi?"])
    expected = model.encode(inputs["input_features"])[0]
    model.set_trainable({"connector"})
    model.train()
    assert torch.equal(model.encode(inputs["input_features"])[0], expected)
    model.set_trainable({"speech_encoder"})
    assert not torch.equal(model.encode(inputs["input_features"])[0], expected)


@KINDS
def test_gradient_checkpointing_changes_no_gradient(
    kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, processor = tiny_model_and_processor(kind)
        model.add_lora(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
        model.set_trainable({"connector", "lora"})
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.activation_checkpointing_enable()
            layers = cast(Any, model.language_model).model.layers
            assert [(layer.gradient_checkpointing, layer.training) for layer in layers] == [(True, True)] * 2
        model(**training_batch(processor, speech_like)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


# Parts and adapters


def test_parts_that_are_given_stay_as_they_are(tiny_model_and_processor: ModelFactory) -> None:
    model, _ = tiny_model_and_processor()
    encoder = SpeechEncoder(model.config.speech_config)
    language_model = AutoModelForCausalLM.from_config(model.config.text_config)
    expected = copy.deepcopy({"e": encoder.state_dict(), "l": language_model.state_dict()})
    config = cast(StapesConfig, model.config)
    joined = StapesForConditionalGeneration(config, speech_encoder=encoder, language_model=language_model)
    assert joined.speech_encoder is encoder
    assert joined.language_model is language_model
    for part, state in (("e", encoder.state_dict()), ("l", language_model.state_dict())):
        assert [name for name, tensor in state.items() if not torch.equal(tensor, expected[part][name])] == []


def test_transformers_finds_the_parts(tiny_model_and_processor: ModelFactory) -> None:
    model, _ = tiny_model_and_processor()
    llm: Any = model.language_model
    assert model.get_encoder("audio") is model.speech_encoder
    assert model.get_decoder() is llm.model
    assert model.get_input_embeddings() is llm.model.embed_tokens
    assert model.get_output_embeddings() is llm.lm_head
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    embeddings = nn.Embedding(262, 64)
    model.set_input_embeddings(embeddings)
    assert llm.model.embed_tokens is embeddings


@torch.no_grad()
def test_fresh_adapters_change_nothing(tiny_model_and_processor: ModelFactory, speech_like: Waveforms) -> None:
    model, processor = tiny_model_and_processor()
    inputs = processor.prepare([speech_like(1.0, 0)], ["Hi?"])
    expected = model(**inputs).logits
    model.add_lora(r=2, lora_alpha=4, target_modules=["v_proj", "q_proj"])
    assert torch.equal(model(**inputs).logits, expected)
    assert [name for name, _ in model.lora_layers()] == [
        f"language_model.model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_proj", "v_proj")
    ]
    assert model.config.lora == {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    with pytest.raises(ValueError, match=r"^the LLM has LoRA adapters already; merge them first"):
        model.add_lora(r=4)


def test_parameters_are_counted_by_part(tiny_model_and_processor: ModelFactory) -> None:
    model, _ = tiny_model_and_processor("stacked_mlp")
    # Encoder, width 32: convolutions 80·32·3 + 32 and 32·32·3 + 32, 1500 positions; per layer two norms of 64,
    # attention 4·32·32 + 3·32 (keys have no bias), MLP 2·32·64 + 64 + 32; a last norm.
    encoder = (80 * 32 * 3 + 32) + (32 * 32 * 3 + 32) + 1500 * 32 + 2 * (128 + 4 * 1024 + 96 + 4096 + 96) + 64
    connector = 256 + 256 * 64 + 32 + 32 * 64 + 64
    # LLM, width 64, keys and values half as wide; embeddings count once, though the head is tied to them.
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    llm = 262 * 64 + 2 * layer + 64
    expected = {"speech_encoder": encoder, "connector": connector, "language_model": llm, "lora": 0}
    assert model.num_parameters_by_part() == {**expected, "total": sum(expected.values())}
    model.add_lora(r=2, target_modules=["q_proj"])
    expected["lora"] = 2 * 2 * (64 + 64)
    assert model.num_parameters_by_part() == {**expected, "total": sum(expected.values())}


@torch.no_grad()
@KINDS
def test_attention_implementations_agree(
    kind: Kind, tiny_model_and_processor: ModelFactory, speech_like: Waveforms
) -> None:
    model, processor = tiny_model_and_processor(kind)
    inputs = processor.prepare([speech_like(1.0, 0), speech_like(3.0, 1)], ["Hi?", "And you?"])
    assert model.config._attn_implementation == "sdpa"
    expected = model(**inputs).logits
    model.set_attn_implementation("eager")
    parts = (model.speech_encoder, model.language_model)
    assert [part.config._attn_implementation for part in parts] == ["eager", "eager"]
    torch.testing.assert_close(model(**inputs).logits[:, -1], expected[:, -1], atol=1e-4, rtol=0)
