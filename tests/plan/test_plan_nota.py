"""The published memory column, row by row, and what it consists of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stapes.plan import find_device, plan_models, predict
from stapes.plan.allocator import GIB, MIB
from stapes.plan.devices import GPU
from stapes.plan.model_plan import ModelPlan
from stapes.plan.nota import predict_nota_memory
from stapes.plan.own import Workload
from stapes.recipe import Recipe

BEATS = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2"
TWO = ["q_proj", "v_proj"]
SEVEN = [*TWO, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
V2, TURBO = "openai/whisper-large-v2", "openai/whisper-large-v3-turbo"
LLAMA_1B, LLAMA_3B = "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"


def salmonn(
    llm: str, encoder: str = V2, sound: str | None = BEATS, targets: list[str] = TWO, nf4: bool = False
) -> ModelPlan:
    stage: dict[str, Any] = {
        "data": {"none.jsonl": 1},
        "max_steps": 1,
        "trainable": ["connector", "lora"],
        "lora": {"r": 8, "lora_alpha": 32, "target_modules": targets},
    }
    if nf4:
        stage["quantization"] = {"bits": 4, "kind": "nf4"}
    recipe = Recipe.model_validate(
        {
            "name": "salmonn",
            "model": {
                "speech_encoder": encoder,
                "sound_encoder": sound,
                "llm": llm,
                "connector": {"kind": "windowed_qformer", "window_s": 0.34, "tail": "drop"},
            },
            "train": {"tune": stage},
        }
    )
    return plan_models(recipe)[0]


def memory_gib(plan: ModelPlan, device: str = "v100-32gb") -> float:
    gpu = find_device(device)
    assert isinstance(gpu, GPU)
    return predict_nota_memory(plan, gpu.workspace_bytes).peak.total / GIB


ROWS = {
    "base": (salmonn(LLAMA_3B), 9.1761, "run: Whisper"),
    "turbo, seven targets": (salmonn(LLAMA_3B, TURBO, targets=SEVEN), 9.2139, "run: Whisper"),
    "no sound encoder": (salmonn(LLAMA_3B, sound=None, targets=SEVEN), 8.8462, "run: Whisper"),
    "1B nf4": (salmonn(LLAMA_1B, TURBO, targets=SEVEN, nf4=True), 4.0938, "run: Whisper"),
    "1B nf4, stored": (
        salmonn("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", TURBO, targets=SEVEN),
        4.0938,
        "run: Whisper",
    ),
    "3B nf4": (salmonn(LLAMA_3B, TURBO, targets=SEVEN, nf4=True), 5.8511, "load: resize_token_embeddings"),
    "3B nf4, stored": (
        salmonn("unsloth/Llama-3.2-3B-Instruct-bnb-4bit", TURBO, targets=SEVEN),
        5.8511,
        "load: resize_token_embeddings",
    ),
    "gemma GPTQ": (salmonn("shuyuej/gemma-2-2b-it-GPTQ", TURBO), 5.3169, "run: Whisper"),
    "7B": (salmonn("lmsys/vicuna-7b-v1.5"), 15.750, "run: Whisper"),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_published_row_is_met(row: str) -> None:
    plan, published, phase = ROWS[row]
    predicted = predict_nota_memory(plan, 8_519_680)
    assert predicted.peak.total / GIB == pytest.approx(published, rel=0.002)
    assert predicted.peak.phase == phase


def test_dropped_layers_are_loaded_first() -> None:
    """The published 5.87 of a pruned model is the peak of loading the whole one; its authors' code knows H100s."""
    plan = salmonn(LLAMA_3B, nf4=True).with_dropped(0.3)
    assert plan.dropped_layers == (10, 8)
    assert memory_gib(plan, "h100-80gb") == pytest.approx(5.87, rel=0.002)
    assert memory_gib(plan) == pytest.approx(5.87, rel=0.006)
    predicted = predict_nota_memory(plan, 8_519_680)
    assert predicted.load_peak == predicted.peak.total
    memory = predict(plan, find_device("h100-80gb"), Workload(10, 30, 16), protocol="nota").memory
    assert memory.kv_cache == 2 * (28 - 8) * 1024 * (88 + 26 + 1) * 2
    # Whisper without 10 of 32 layers and an LLM without 8 of 28 run in less.
    assert predicted.run_peak < predict_nota_memory(salmonn(LLAMA_3B, nf4=True), 8_519_680).run_peak - 800 * MIB


def test_an_eat_done_right_costs_what_a_beats_costs() -> None:
    """The published 10.9199 measures 4,609 tokens in written-out attention."""
    eat = memory_gib(salmonn(LLAMA_3B, TURBO, "EAT-base_epoch30_pt", SEVEN))
    beats = memory_gib(salmonn(LLAMA_3B, TURBO, BEATS, SEVEN))
    assert beats - 0.05 < eat < beats


def test_the_parts_of_the_base_row() -> None:
    prediction = predict(ROWS["base"][0], find_device("v100-32gb"), Workload(10, 30, 16), protocol="nota")
    parts = prediction.memory.by_part
    assert sum(parts.values()) == prediction.memory.peak
    # fp16 with one row more for [PAD]; adapters, encoders and Q-Former in float32.
    assert parts["language_model"] == 2 * (3_212_749_824 + 3072)
    assert parts["lora"] == 4 * 28 * 8 * (3072 + 3072 + 3072 + 1024)
    assert parts["speech_encoder"] == 4 * 636_784_640
    assert parts["sound_encoder"] == 4 * 90_717_055 + 4 * 768 * 48 * 128  # and the weight-norm kernel
    assert parts["workspace"] == 8_519_680
    scores, frame = 20 * 1500 * 1500, 1500 * 1280
    # Softmax in float and its half; residual, norm; query, key, value; their mixture; the convolutions' output.
    assert parts["activations"] == scores * (4 + 2) + frame * (4 + 4 + 3 * 2 + 2 + 2)
    # fc1 and fc2 of each layer: 25 MiB in a block of 26.
    assert parts["allocator_waste"] > 64 * MIB


def test_what_an_answer_takes_beside_weights_whatever_the_peak_is() -> None:
    device, work = find_device("v100-32gb"), Workload(10, 30, 16)
    found = {row: predict(ROWS[row][0], device, work, protocol="nota").memory for row in ("base", "3B nf4")}
    scores, frame = 20 * 1500 * 1500, 1500 * 1280
    inputs = {"base": 80, "3B nf4": 128}  # mel bins: large-v2, turbo
    for row, memory in found.items():
        assert memory.activations == (
            scores * (4 + 2) + frame * (4 + 4 + 3 * 2 + 2 + 2) + inputs[row] * 3000 * 4 + 10 * 16_000 * (8 + 1)
        ), row


def test_a_table_longer_than_the_tokenizer_is_cut_and_loads_without_copies() -> None:
    plan = salmonn("Qwen/Qwen2.5-0.5B-Instruct", nf4=True)
    predicted = predict_nota_memory(plan, 8_519_680)
    assert predicted.peak.phase == "run: Whisper"
    assert predicted.load_peak < predicted.run_peak
    full = replace(plan, llm=replace(plan.llm, tokenizer_length=151_936))
    grown = predict_nota_memory(full, 8_519_680).peak.by_part["language_model"]
    assert grown - predicted.peak.by_part["language_model"] == 2 * 896 * (151_937 - 151_666)


def test_an_untied_head_is_resized_too() -> None:
    predicted = predict_nota_memory(salmonn("meta-llama/Meta-Llama-3-8B", nf4=True), 8_519_680)
    table = 128_256 * 4096
    assert predicted.peak.phase == "load: resize_token_embeddings"
    # Two tables in fp16, the new one beside the old, and two float32 copies of one.
    assert predicted.peak.by_part["load copies"] == 2 * 4 * table + 4 * 4096 + 2 * 4 * 4096**2
    assert predicted.peak.by_part["language_model"] > 3 * 2 * table


def test_a_small_whisper_leaves_the_peak_small() -> None:
    predicted = predict_nota_memory(salmonn("HuggingFaceTB/SmolLM2-135M", "openai/whisper-tiny", None), 8_519_680)
    assert predicted.peak.by_part["activations"] < 6 * 1500 * 1500 * 6 + 20 * MIB
