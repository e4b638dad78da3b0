"""Shapes list the tensors that transformers, peft and our own connectors build; published shapes count as published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, WhisperConfig

from stapes.errors import WeightsError
from stapes.model import ConnectorConfig
from stapes.model.connectors import build_connector
from stapes.model.speech_encoder import SpeechEncoder
from stapes.plan.connector import read_connector
from stapes.plan.encoders import BeatsShape, EatShape, WhisperShape, read_sound_shape
from stapes.plan.llm import FAMILIES, LLMShape
from stapes.plan.published import PUBLISHED
from stapes.plan.shapes import Adapters, Quantization, Weight, count_parameters, stored_bytes
from stapes.recipe import StackedMLP, WindowedQFormer

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
EXTRA: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    },
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def sizes(module: torch.nn.Module) -> list[int]:
    return sorted(parameter.numel() for parameter in module.parameters())


def planned(weights: list[Weight]) -> list[int]:
    return sorted(weight.size for weight in weights if not weight.is_buffer)


def build_llm(model_type: str, **values: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = AutoConfig.for_model(model_type, **TINY, **EXTRA.get(model_type, {}), **values)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), config.to_dict()


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_an_llm_has_the_tensors_that_transformers_builds(model_type: str, tied: bool) -> None:
    model, config = build_llm(model_type, tie_word_embeddings=tied)
    assert planned(LLMShape.from_config(config, "x").weights()) == sizes(model)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_a_configuration_leaves_out_is_what_its_family_means(model_type: str) -> None:
    model, config = build_llm(model_type)
    left_out = ("tie_word_embeddings", "head_dim", "attention_bias", "mlp_bias", "qkv_bias")
    stated = {key: value for key, value in config.items() if key not in left_out or key in EXTRA.get(model_type, {})}
    assert planned(LLMShape.from_config(stated, "x").weights()) == sizes(model)


def test_experts_split_into_linears_hold_the_same_values() -> None:
    _, config = build_llm("olmoe")
    shape = LLMShape.from_config(config, "x")
    split = shape.weights(split_experts=True)
    assert count_parameters(split) == count_parameters(shape.weights())
    assert len([weight for weight in split if ".experts." in weight.name and weight.kind == "linear"]) == 2 * 4 * 3


def test_a_family_nobody_knows_is_refused_with_the_nearest() -> None:
    with pytest.raises(WeightsError, match=r"my/llm: .*`qwen4` model; nearest: qwen\d"):
        LLMShape.from_config({"model_type": "qwen4"}, "my/llm")


def test_quantised_checkpoints_say_how() -> None:
    def quantization(config: dict[str, Any]) -> Quantization | None:
        return LLMShape.from_config({**PUBLISHED["google/gemma-2-2b"], "quantization_config": config}, "x").quantization

    gptq = quantization({"quant_method": "gptq", "bits": 4, "group_size": 64})
    assert gptq == Quantization("gptq", group_size=64, double_quant=False, is_stored=True)
    with pytest.raises(WeightsError, match="stored by `awq`"):
        quantization({"quant_method": "awq", "bits": 4})


@pytest.mark.parametrize("mels", [80, 128])
def test_a_whisper_encoder_has_the_tensors_that_transformers_builds(mels: int) -> None:
    config = WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        num_mel_bins=mels,
        max_source_positions=40,
    )
    assert planned(WhisperShape.from_config(config.to_dict()).weights()) == sizes(SpeechEncoder(config))


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ({"kind": "windowed_qformer", "window_s": 0.34, "hidden_size": 48, "num_heads": 4, "num_layers": 2}, 0),
        ({"kind": "stacked_mlp", "stack": 5, "hidden_size": 64}, 1),
    ],
)
def test_a_connector_has_the_tensors_that_we_build(section: dict[str, Any], kind: int) -> None:
    parsed = (WindowedQFormer, StackedMLP)[kind].model_validate(section)
    shape = read_connector(parsed, 32, 64)
    config = ConnectorConfig(
        kind=section["kind"],
        frames_per_window=shape.frames_per_window,
        hidden_size=section["hidden_size"],
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    assert planned(shape.weights()) == sizes(build_connector(config, 32, 64))


def test_a_connector_counts_tokens_as_the_model_does() -> None:
    from stapes.model import num_audio_tokens

    for section in (
        WindowedQFormer.model_validate({"kind": "windowed_qformer", "tail": "drop", "queries_per_window": 2}),
        WindowedQFormer.model_validate({"kind": "windowed_qformer"}),
        StackedMLP.model_validate({"kind": "stacked_mlp", "stack": 7}),
    ):
        shape = read_connector(section, 32, 64)
        tail = section.tail if isinstance(section, WindowedQFormer) else "pad"
        queries = section.queries_per_window if isinstance(section, WindowedQFormer) else 1
        for frames in (10, 31, 1000, 3000):
            expected = num_audio_tokens(frames, shape.frames_per_window, queries, tail)
            assert shape.num_tokens(-(-frames // 2)) == expected


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("llama", ["q_proj", "v_proj"]),
        ("llama", "all-linear"),
        ("llama", r".*\.(gate|up)_proj"),
        ("llama", ["self_attn.q_proj", "model.layers.1.mlp.up_proj", "n.k_proj"]),
        ("qwen2_moe", ["o_proj", "shared_expert.gate_proj"]),
    ],
)
def test_adapters_sit_where_peft_puts_them(model_type: str, targets: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model, config = build_llm(model_type)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=targets), model)
    found = sorted(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    adapters = Adapters(4, tuple(targets) if isinstance(targets, list) else targets)
    weights = LLMShape.from_config(config, "x").weights()
    assert planned([pair for weight in weights if adapters.fits(weight) for pair in adapters.weights(weight)]) == found


@pytest.mark.parametrize("name", ["Qwen-MoE", "OLMoE", "GraniteMoE"])
def test_adapters_of_experts_are_as_large_as_pefts(name: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    from stapes.model.families import FAMILIES as KNOWN

    family = next(family for family in KNOWN if family.name == name)
    model, config = build_llm(family.model_types[0])
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj"], target_parameters=[*family.experts]), model)
    found = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" in name)
    adapters = Adapters(4, ("q_proj",), family.experts)
    weights = LLMShape.from_config(config, "x").weights()
    assert sum(pair.size for weight in weights if adapters.fits(weight) for pair in adapters.weights(weight)) == found


def test_sound_encoders_count_as_published() -> None:
    assert count_parameters(BeatsShape(num_classes=527).weights()) == 90_717_055
    assert BeatsShape().num_tokens(10) == 496
    assert BeatsShape().num_tokens(30) == 1496
    assert BeatsShape().num_tokens(1) == 48
    assert read_sound_shape({"model_type": "stapes_eat"}) == EatShape()
    assert read_sound_shape({"model_type": "whisper"}) is None


COUNTS = {
    "openai/whisper-large-v2": 636_784_640,
    "openai/whisper-large-v3-turbo": 636_968_960,
    "openai/whisper-base": 20_590_592,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "lmsys/vicuna-13b-v1.5": 13_015_864_320,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-it": 999_885_952,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "ibm-granite/granite-3.1-1b-a400m-instruct": 1_334_628_352,
}
"""Parameters as the Hub's model pages count them; of a Whisper those of its encoder."""


@pytest.mark.parametrize("name", COUNTS)
def test_published_shapes_count_as_published(name: str) -> None:
    config = PUBLISHED[name]
    is_whisper = config["model_type"] == "whisper"
    shape = WhisperShape.from_config(config) if is_whisper else LLMShape.from_config(config, name)
    assert count_parameters(shape.weights()) == COUNTS[name]


def test_every_published_shape_can_be_read() -> None:
    for name, config in PUBLISHED.items():
        if config["model_type"] == "whisper":
            assert WhisperShape.from_config(config).num_positions == 1500
        elif read_sound_shape(config) is None:
            assert LLMShape.from_config(config, name).width > 0


def test_bytes_of_quantised_weights() -> None:
    weight = Weight("x", (1024, 256), "linear")
    assert stored_bytes(weight, "float16") == [2 * 262_144]
    # 4 bits; 4096 scales of a byte, which have 16 scales of their own; two code tables; one mean.
    assert stored_bytes(weight, "float16", Quantization("nf4", is_stored=True)) == [131_072, 4096, 64, 64, 1024, 4]
    assert stored_bytes(weight, "float16", Quantization("nf4", double_quant=False)) == [131_072, 16_384, 64]
    gptq = Quantization("gptq", group_size=128, double_quant=False)
    assert stored_bytes(weight, "float16", gptq) == [131_072, 2 * 128 * 4, 2 * 1024 * 2, 256 * 4]
    assert stored_bytes(Weight("x", (8,)), "float32", gptq) == [32]
    # One group for all inputs.
    gptq = Quantization("gptq", group_size=-1, double_quant=False)
    assert stored_bytes(weight, "float16", gptq) == [131_072, 128 * 4, 1024 * 2, 256 * 4]
