"""Operations are those that torch counts in the real model; bytes and audio tokens follow from shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from stapes.plan.connector import MLPShape, QFormerShape
from stapes.plan.encoders import BeatsShape, EatShape, SoundShape, WhisperShape
from stapes.plan.llm import LLMShape
from stapes.plan.model_plan import ModelPlan
from stapes.plan.own import Workload
from stapes.plan.published import PUBLISHED
from stapes.plan.shapes import Adapters, Quantization
from stapes.plan.work import Attention, Linear, Stage, plan_stages

LENGTH = 80


def plan_of(model: Any, kind: str) -> ModelPlan:
    """Plan the tiny model of conftest from its configuration."""
    connector = model.config.connector_config
    return ModelPlan(
        recipe="tiny",
        variant="tune",
        speech=WhisperShape.from_config(model.config.speech_config.to_dict()),
        sound=None,
        connector=QFormerShape(32, 64, 17, 1, "pad", 32, 1, 2, 64)
        if kind == "windowed_qformer"
        else MLPShape(32, 64, connector.frames_per_window, connector.hidden_size),
        llm=LLMShape.from_config(model.config.text_config.to_dict(), "tiny"),
    )


def count(call: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def products(stage: Stage) -> int:
    """Operations of matrix products; torch does not count its CPU kernel for attention, nor pointwise work."""
    return sum(2 * op.rows * op.inputs * op.outputs * op.times for op in stage.ops if isinstance(op, Linear))


@pytest.mark.parametrize("kind", ["windowed_qformer", "stacked_mlp"])
def test_operations_are_those_of_the_real_model(kind: str, tiny_model_and_processor: Any) -> None:
    model, _ = tiny_model_and_processor(kind)
    model.requires_grad_(requires_grad=False)
    counted = {}
    with torch.no_grad():
        encode = lambda: model.encode(torch.randn(1, 80, 1000), torch.ones(1, 1000, dtype=torch.long))  # noqa: E731
        counted["encoder"], (frames, mask) = count(encode)
        counted["connector"], audio = count(lambda: model.connect(frames, mask))
        text = model.get_input_embeddings()(torch.zeros(1, LENGTH - len(audio), dtype=torch.long))
        prompt = torch.cat([text, audio[None]], dim=1)
        counted["prefill"], output = count(lambda: model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1))
        token = torch.zeros(1, 1, dtype=torch.long)
        step = lambda: model(input_ids=token, cache=output.cache, use_cache=True, logits_to_keep=1)  # noqa: E731
        counted["per_token"], _ = count(step)
    plan = plan_of(model, kind)
    assert plan.num_audio_tokens(10) == len(audio)
    stages = plan_stages(plan, Workload(10, LENGTH - len(audio), 1))
    if kind == "windowed_qformer":
        # The Q-Former writes its attention out, as products that torch does count.
        written_out = sum(
            4 * op.queries * op.keys * op.heads * op.head_width for op in stages[1].ops if isinstance(op, Attention)
        )
        counted["connector"] -= written_out * (counted["connector"] > products(stages[1]))
    assert {stage.name: products(stage) for stage in stages} == counted


def test_attention_and_pointwise_work_count_too(tiny_model_and_processor: Any) -> None:
    plan = plan_of(tiny_model_and_processor("stacked_mlp")[0], "stacked_mlp")
    encoder = plan_stages(plan, Workload(10, 20, 1))[0]
    attention = 2 * 4 * 500 * 500 * 32  # two layers, 500 frames, scores and mixing
    pointwise = 1000 * 32 + 500 * 32 + 2 * (2 * 500 * 32 + 500 * 64 + 2 * 500 * 32)
    assert encoder.flops() == products(encoder) + attention + pointwise


def test_a_step_moves_every_weight_once() -> None:
    llm = LLMShape.from_config(PUBLISHED["HuggingFaceTB/SmolLM2-135M"], "x")
    plan = ModelPlan(
        "x", "y", WhisperShape.from_config(PUBLISHED["openai/whisper-base"]), None, MLPShape(512, 576, 8, 2048), llm
    )
    work = Workload(10, 30, 1)
    step = plan_stages(plan, work)[3]
    weights = 134_515_008 - 61 * 576  # norms are read too, but not as weights of a product
    float_bytes = step.moved_bytes("float32", None)
    assert weights * 4 < float_bytes < weights * 4 * 1.03
    assert float_bytes == 2 * step.moved_bytes("float16", None)
    small = replace(plan, quantization=Quantization("nf4"))
    head = 49_152 * 576
    step = plan_stages(small, work)[3]
    moved = step.moved_bytes("float16", small.quantization)
    assert head * 2 + (weights - head) // 2 < moved < (head * 2 + (weights - head) // 2) * 1.08


def test_work_follows_the_clip_and_blocks_of_30_s_do_not_see_each_other() -> None:
    plan = ModelPlan(
        "x",
        "y",
        WhisperShape.from_config(PUBLISHED["openai/whisper-tiny"]),
        None,
        MLPShape(384, 576, 8, 2048),
        LLMShape.from_config(PUBLISHED["HuggingFaceTB/SmolLM2-135M"], "x"),
    )

    def encoder(audio_s: float, of: ModelPlan = plan) -> int:
        return plan_stages(of, Workload(audio_s, 30, 1))[0].flops()

    assert encoder(90) == 3 * encoder(30)
    assert encoder(30) > 3.2 * encoder(10)  # attention grows with the square
    padded = replace(plan, pad_audio_to_s=30.0)
    assert encoder(10, padded) == encoder(30)
    assert padded.num_audio_tokens(10) == plan.num_audio_tokens(30) == 188


def test_heads_that_share_keys_and_values_read_them_once() -> None:
    llm = LLMShape.from_config(PUBLISHED["HuggingFaceTB/SmolLM2-135M"], "x")
    whisper = WhisperShape.from_config(PUBLISHED["openai/whisper-base"])
    plan = ModelPlan("x", "y", whisper, None, MLPShape(512, 576, 8, 2048), llm)
    step = plan_stages(plan, Workload(10, 30, 1))[3]
    (attention,) = (op for op in step.ops if isinstance(op, Attention))
    alone = Stage("per_token", (attention,), ())
    context = 63 + 30 + 1
    # 9 heads of queries and of what comes out, 3 of keys and of values, of 64 each, in 30 layers.
    assert alone.moved_bytes("float16", None) == 30 * 2 * (2 * 9 * 64 + 2 * context * 3 * 64)
    assert alone.flops() == 30 * 4 * context * 9 * 64


def test_a_step_attends_to_half_of_the_answer(tiny_model_and_processor: Any) -> None:
    plan = plan_of(tiny_model_and_processor("stacked_mlp")[0], "stacked_mlp")
    step = plan_stages(plan, Workload(10, 20, 16))[3]
    assert [op.keys for op in step.ops if isinstance(op, Attention)] == [63 + 20 + 8]


def test_audio_tokens_a_second() -> None:
    llm = LLMShape.from_config(PUBLISHED["HuggingFaceTB/SmolLM2-135M"], "x")
    whisper = WhisperShape.from_config(PUBLISHED["openai/whisper-base"])
    mlp = ModelPlan("x", "y", whisper, None, MLPShape(512, 576, 8, 2048), llm)
    assert mlp.audio_tokens_per_s == 6.25
    salmonn = replace(mlp, sound=BeatsShape(), connector=QFormerShape(1280, 576, 17, 2, "drop", 768, 2, 12, 3072))
    assert salmonn.audio_tokens_per_s == pytest.approx(2 * 50 / 17)
    assert salmonn.num_frames(10) == 500
    assert salmonn.num_audio_tokens(30) == 2 * 88


def test_the_speech_encoders_frames_count(tiny_model_and_processor: Any) -> None:
    """EAT makes 56 frames of a second where Whisper makes 50: one window more, of which the model has none."""
    model, processor = tiny_model_and_processor(sound="eat")
    with torch.no_grad():
        audio = model.get_audio_features(**processor.feature_extractor(np.zeros(16_000, np.float32)))
    connector = QFormerShape(32 + 24, 64, 17, 1, "pad", 32, 1, 2, 64)
    plan = replace(plan_of(model, "windowed_qformer"), sound=EatShape(), connector=connector)
    assert plan.num_audio_tokens(1) == len(audio) == 3
    stacked = replace(plan, connector=MLPShape(32 + 24, 64, 5, 64))
    assert (stacked.num_frames(10), stacked.num_audio_tokens(10)) == (500, 100)
    assert [stacked.num_feature_frames(audio_s) for audio_s in (1.12, 1.13, 1.139)] == [112, 113, 113]


@pytest.mark.parametrize(
    ("name", "shape", "frames"), [("beats", BeatsShape(), [1504, 1488]), ("eat", EatShape(), [1504, 1496])]
)
def test_a_sound_encoder_works_in_the_blocks_of_the_real_model(
    tiny_model_and_processor: Any, name: str, shape: SoundShape, frames: list[int]
) -> None:
    model, processor = tiny_model_and_processor(sound=name)
    encoded: list[int] = []
    model.sound_encoder.patch_embedding.register_forward_hook(lambda _, __, made: encoded.append(made[0, 0].numel()))
    with torch.no_grad():
        model.encode(**processor.feature_extractor(np.zeros(60 * 16_000, np.float32)))
    plan = replace(plan_of(model, "windowed_qformer"), sound=shape)
    encoder = plan_stages(plan, Workload(60, 20, 1))[0]
    planned = [op for op in encoder.ops if isinstance(op, Attention) and op.heads == shape.num_heads]
    assert [op.queries for op in planned] == [op.keys for op in planned] == encoded == frames
    assert {op.times for op in planned} == {shape.num_layers}


def test_adapters_and_sound_encoders_are_work() -> None:
    llm = LLMShape.from_config(PUBLISHED["HuggingFaceTB/SmolLM2-135M"], "x")
    whisper = WhisperShape.from_config(PUBLISHED["openai/whisper-base"])
    plan = ModelPlan("x", "y", whisper, None, MLPShape(512, 576, 8, 2048), llm)
    adapted = replace(plan, adapters=Adapters(8, ("q_proj", "v_proj")))
    before, after = (plan_stages(p, Workload(10, 30, 1))[3] for p in (plan, adapted))
    assert products(after) - products(before) == 30 * 2 * 8 * (576 + 576 + 576 + 192)
    assert dict(after.layers)["adapter"] == 60
    in_one_layer = replace(plan, adapters=Adapters(8, ("layers.1.mlp.up_proj",)))
    once = plan_stages(in_one_layer, Workload(10, 30, 1))[3]
    assert products(once) - products(before) == 2 * 8 * (576 + 1536)
    heard = replace(plan, sound=BeatsShape(), connector=MLPShape(512 + 768, 576, 8, 2048))
    assert plan_stages(heard, Workload(10, 30, 1))[0].flops() > plan_stages(plan, Workload(10, 30, 1))[0].flops() * 3


def test_experts_that_are_met_are_read_once() -> None:
    llm = LLMShape.from_config(PUBLISHED["allenai/OLMoE-1B-7B-0924"], "x")
    whisper = WhisperShape.from_config(PUBLISHED["openai/whisper-base"])
    plan = ModelPlan("x", "y", whisper, None, MLPShape(512, 2048, 8, 2048), llm)
    step = plan_stages(plan, Workload(10, 30, 1))[3]
    active = 50_304 * 2048 + 16 * (4 * 2048 * 2048 + 64 * 2048 + 8 * 3 * 2048 * 1024)
    assert products(step) == 2 * active
