"""Memory and time of our own model: what a prediction consists of, on a GPU and on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from stapes.plan import Calibration, find_device, plan_models, predict
from stapes.plan.allocator import GIB, MIB
from stapes.plan.connector import MLPShape
from stapes.plan.encoders import BeatsShape
from stapes.plan.model_plan import ModelPlan
from stapes.plan.own import Workload, activation_peak, weight_bytes
from stapes.plan.predicting import default_workload
from stapes.plan.shapes import DType, Quantization
from stapes.recipe import Recipe

WORK = Workload(10, 30, 16)
CALIBRATION = Calibration(
    num_threads=2,
    linears={"float": [[1e-5, 1e-3], [1e-3, 1e-1]], "int8": [[1e-5, 5e-4], [5e-4, 5e-2]]},
    linear_rows=[1, 1000],
    linear_sizes=[10_000, 1_000_000],
    attention=[(1e6, 1e-4), (1e9, 1e-1)],
    pointwise=dict.fromkeys(("norm", "rms_norm", "gelu", "gated", "add"), 1e-9),
    layers={"encoder": 1e-4, "decoder": 2e-4, "step": 2e-4, "qformer": 1e-4, "adapter": 1e-5},
    calls={"encoder": 1e-3, "connector": 1e-3, "prefill": 1e-3, "per_token": 1e-3},
    features=(0.002, 0.001),
    process_bytes=400 * MIB,
    token_bytes=1000.0,
    environment={},
)


def plan(encoder: str, llm: str, **changes: Any) -> ModelPlan:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {
                "speech_encoder": encoder,
                "llm": llm,
                "connector": {"kind": "stacked_mlp", "stack": 8, "hidden_size": 2048},
                **changes.get("model", {}),
            },
            "train": {"align": {"data": {"none.jsonl": 1}, "max_steps": 1, **changes.get("align", {})}},
            "compress": changes.get("compress", []),
        }
    )
    return plan_models(recipe)[-1]


# As from files in float32, whatever those that this machine may hold are in.
TINY = replace(plan("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"), converted=())


def test_a_gpu_holds_weights_and_little_else() -> None:
    predicted = predict(TINY, find_device("v100-32gb"), WORK)
    memory = predicted.memory
    assert memory.kind == "cuda"
    assert sum(memory.by_part.values()) == memory.peak
    assert memory.by_part["language_model"] == 4 * 134_515_008
    assert memory.by_part["speech_encoder"] == 4 * 20_590_592
    assert memory.load_peak < memory.peak < memory.load_peak + 40 * MIB
    assert memory.kv_cache == 2 * 30 * 192 * (63 + 30 + 16) * 4


def test_the_cache_counts_among_what_an_answer_takes() -> None:
    short, long = (activation_peak(TINY, Workload(0.5, 1000, tokens), "float32") for tokens in (16, 1016))
    assert long.by_part["kv_cache"] - short.by_part["kv_cache"] == 1000 * 2 * 30 * 192 * 4
    assert long.total > short.total


def test_half_precision_halves_weights_on_a_gpu() -> None:
    full, half = (weight_bytes(TINY, dtype) for dtype in ("float32", "float16"))
    assert {part: 2 * size for part, size in half.items()} == full
    device = find_device("v100-32gb")
    peaks = [predict(TINY, device, WORK, dtype=dtype).memory.peak for dtype in ("float32", "float16")]
    assert peaks[1] < 0.56 * peaks[0]


def test_what_is_in_reach_of_the_published_recipe() -> None:
    """fp16 encoders with SDPA and no load peak: 2.43 GiB for 1B nf4 and 1.89 for Qwen 0.5B nf4."""
    nf4: dict[str, Any] = {
        "align": {
            "quantization": {"bits": 4, "kind": "nf4"},
            "trainable": ["connector", "lora"],
            "lora": {"r": 8, "target_modules": "all-linear"},
        },
        "model": {
            "sound_encoder": "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2",
            "connector": {"kind": "windowed_qformer", "tail": "drop"},
            "pad_audio_to_s": 30,
        },
    }
    device = find_device("v100-32gb")
    for llm, gib in (("meta-llama/Llama-3.2-1B-Instruct", 2.43), ("Qwen/Qwen2.5-0.5B-Instruct", 1.89)):
        model = plan("openai/whisper-large-v3-turbo", llm, **nf4)
        predicted = predict(model, device, WORK, dtype="float16").memory.peak / GIB
        assert predicted == pytest.approx(gib, rel=0.05)


def test_dropped_layers_are_loaded_first() -> None:
    device, half = find_device("v100-32gb"), TINY.with_dropped(0.5)
    assert half.dropped_layers == (3, 15)
    whole, dropped = (predict(model, device, WORK).memory for model in (TINY, half))
    assert dropped.load_peak == whole.load_peak == dropped.peak
    assert dropped.at == "load: weights"
    assert dropped.by_part["language_model"] == 4 * 134_515_008
    assert sum(dropped.by_part.values()) == dropped.peak
    gone = 4 * (TINY.parameters()["total"] - half.without_dropped().parameters()["total"])
    # Activations find room where the layers were: less is wasted.
    assert 0 <= whole.run_peak - dropped.run_peak - gone <= whole.by_part["allocator_waste"]
    # On a CPU what is converted is there before layers go; what is mapped is not read.
    cpu, converted = find_device("cpu", 2), ("speech_encoder", "language_model")
    models = [replace(model, converted=converted) for model in (TINY, half)]
    whole, dropped = (predict(model, cpu, WORK, calibration=CALIBRATION).memory for model in models)
    assert dropped.load_peak == whole.load_peak == dropped.peak
    assert whole.run_peak - dropped.run_peak == gone


def test_a_long_clips_sound_is_encoded_in_blocks() -> None:
    """Beyond 30.08 s the biases of BEATs' attention grow no more, only what is kept of all frames."""
    model = replace(TINY, sound=BeatsShape(), connector=MLPShape(512 + 768, 576, 8, 2048))
    one, two = (activation_peak(model, Workload(audio_s, 30, 16), "float32") for audio_s in (60, 120))
    assert one.phase == two.phase == "run: encoder"
    # Bias and a layer's own, residual, normed, and wide before and after its GELU: of one block.
    block = 2 * 12 * 1504**2 + 3 * 1504 * 768 + 2 * 1504 * 3072
    # Features, and the frames of both encoders: of the whole clip.
    assert one.total == 4 * (block + 6000 * 80 + 3000 * 512 + 2992 * 768)
    assert two.total == 4 * (block + 12_000 * 80 + 6000 * 512 + 5992 * 768)


def test_four_bits_widen_one_linear_at_a_time() -> None:
    small = replace(TINY, quantization=Quantization("nf4"))
    assert activation_peak(small, WORK, "float32").total > activation_peak(TINY, WORK, "float32").total - MIB
    assert weight_bytes(small, "float16")["language_model"] < 0.5 * weight_bytes(TINY, "float16")["language_model"]


def test_a_cpu_counts_the_process_and_what_is_read() -> None:
    memory = predict(TINY, find_device("cpu", 2), WORK, calibration=CALIBRATION).memory
    assert memory.kind == "rss"
    assert memory.by_part["process"] == 400 * MIB
    assert memory.by_part["tokenizer"] == 1000 * TINY.llm.tokenizer_length
    assert memory.by_part["language_model"] == 4 * 134_515_008
    assert sum(memory.by_part.values()) == memory.run_peak == memory.peak
    assert memory.load_peak == 400 * MIB + memory.by_part["tokenizer"]  # weights are mapped, not read
    assert memory.missing is None


def test_a_table_whose_head_is_another_tensor_is_hardly_read() -> None:
    untied = replace(TINY, llm=replace(TINY.llm, tied=False))
    memory = predict(untied, find_device("cpu", 2), WORK, calibration=CALIBRATION).memory
    assert untied.parameters()["language_model"] == 134_515_008 + 49_152 * 576
    assert memory.by_part["language_model"] == 4 * 134_515_008
    # Read from 16 bits it is no page of a file, but memory of its own.
    converted = replace(untied, converted=("language_model",))
    all_of_it = predict(converted, find_device("cpu", 2), WORK, calibration=CALIBRATION).memory
    assert all_of_it.run_peak - memory.run_peak == 4 * 49_152 * 576
    assert all_of_it.load_peak - memory.load_peak == 6 * (134_515_008 + 49_152 * 576)


def test_int8_is_there_as_stored_and_as_the_kernel_wants_it() -> None:
    int8 = plan("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct", compress=[{"kind": "quantize"}])
    memory = predict(int8, find_device("cpu", 2), WORK, calibration=CALIBRATION).memory
    linears = 134_515_008 - 61 * 576
    assert memory.by_part["language_model"] == pytest.approx(2 * linears, rel=0.02)
    # Packing the head takes a copy of it.
    assert memory.by_part["activations"] == 49_152 * 576
    assert weight_bytes(int8, "float32")["language_model"] == pytest.approx(linears, rel=0.02)


def test_conversion_at_load_is_a_peak_of_its_own() -> None:
    converted = replace(TINY, converted=("language_model",))
    memory = predict(converted, find_device("cpu", 2), WORK, calibration=CALIBRATION).memory
    assert memory.load_peak == 400 * MIB + memory.by_part["tokenizer"] + 6 * 134_515_008
    assert memory.peak == memory.load_peak
    assert memory.at == "load: conversion to float32"
    assert memory.by_part == {
        "process": 400 * MIB,
        "tokenizer": 1000 * TINY.llm.tokenizer_length,
        "language_model": 4 * 134_515_008,
        "load copies": 2 * 134_515_008,
    }
    assert sum(memory.by_part.values()) == memory.peak


def test_a_cpu_loads_in_float32_what_it_then_quantises_to_4_bits() -> None:
    """A stage's LLM is read whole before its bits are made again; one that is stored in 4 bits is not."""
    small = replace(TINY, quantization=Quantization("nf4"))
    cpu, base = find_device("cpu", 2), 400 * MIB + 1000 * TINY.llm.tokenizer_length
    linears = 134_515_008 - 61 * 576 - 49_152 * 576
    scales = linears // 64
    # A code of 16 floats and one mean for each of the 7 linears of 30 layers, and a scale for 256 scales.
    packed = linears // 2 + scales + 30 * 7 * (16 + 1) * 4
    packed += 4 * 30 * (2 * 21 + 2 * 7 + 3 * 54)
    # Pages of the file, and what becomes of them.
    memory = predict(small, cpu, WORK, calibration=CALIBRATION).memory
    assert memory.load_peak == base + 4 * linears + packed
    assert memory.by_part["file pages"] == 4 * linears
    assert sum(memory.by_part.values()) == memory.run_peak == memory.peak
    stored = replace(TINY, quantization=Quantization("nf4", is_stored=True))
    as_stored = predict(stored, cpu, WORK, calibration=CALIBRATION).memory
    assert as_stored.load_peak == base
    codes = 30 * 7 * 256 * 4  # which a file has for each linear
    assert memory.run_peak - as_stored.run_peak == 4 * linears - codes
    # Read from 16 bits all of it is there in float32 and as it lies in the file, before anything is quantised.
    converted = replace(small, converted=("language_model",))
    memory = predict(converted, cpu, WORK, calibration=CALIBRATION).memory
    assert memory.load_peak == base + 6 * 134_515_008
    assert memory.at == "load: conversion to float32"
    # Stored in 4 bits, only the rest of it is converted.
    memory = predict(replace(stored, converted=("language_model",)), cpu, WORK, calibration=CALIBRATION).memory
    assert memory.load_peak == base + 6 * (134_515_008 - linears) + packed + codes


def test_without_a_calibration_a_cpu_has_no_times_and_says_what_is_missing() -> None:
    predicted = predict(TINY, find_device("cpu", 2), WORK)
    assert predicted.latency is None
    assert predicted.no_latency is not None
    assert "--calibrate" in predicted.no_latency
    assert predicted.memory.missing is not None
    assert predicted.memory.by_part["process"] == 0


def test_a_cpu_computes_in_float32_whatever_is_asked_for() -> None:
    device = find_device("cpu", 2)
    full, half = (
        predict(TINY, device, WORK, dtype=dtype, calibration=CALIBRATION).to_dict() for dtype in ("float32", "float16")
    )
    assert half["dtype"] == "float32"
    assert half == full


def test_times_add_up() -> None:
    latency = predict(TINY, find_device("cpu", 2), WORK, calibration=CALIBRATION).latency
    assert latency is not None
    stages = latency.stages
    assert set(stages) == {"features", "encoder", "connector", "prefill", "per_token"}
    assert stages["features"] == pytest.approx(1000 * (0.002 + 10 * 0.001))
    assert latency.ttft == pytest.approx(sum(stages.values()) - stages["per_token"])
    assert latency.tpot == stages["per_token"]


def test_int8_takes_less_time_where_its_rates_are_higher() -> None:
    int8 = plan("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct", compress=[{"kind": "quantize"}])
    device = find_device("cpu", 2)
    fast, slow = (predict(model, device, WORK, calibration=CALIBRATION).latency for model in (int8, TINY))
    assert fast is not None
    assert slow is not None
    assert 0.45 < fast.tpot / slow.tpot < 0.75


def test_four_bits_have_no_fast_kernel_on_a_cpu() -> None:
    small = replace(TINY, quantization=Quantization("nf4"))
    predicted = predict(small, find_device("cpu", 2), WORK, calibration=CALIBRATION)
    assert predicted.latency is None
    assert predicted.no_latency is not None
    assert "4-bit" in predicted.no_latency


def test_a_gpu_is_bound_by_launches_memory_or_arithmetic() -> None:
    """A small LLM's step is launches; a large one's reads its weights; a long clip on a slow GPU computes."""
    v100, t4 = find_device("v100-32gb"), find_device("t4-16gb")
    large = plan("openai/whisper-large-v2", "meta-llama/Llama-3.2-3B-Instruct")

    def step(model: ModelPlan, dtype: DType) -> float:
        latency = predict(model, v100, WORK, dtype=dtype).latency
        assert latency is not None
        return latency.tpot

    assert step(TINY, "float32") == pytest.approx(1000 * 10e-6 * (20 + 36 * 30))
    assert step(large, "float32") == pytest.approx(4 * 3_212_749_824 / 900e9 * 1000, rel=0.02)
    latency = predict(large, t4, Workload(30, 30, 1)).latency
    assert latency is not None
    assert latency.stages["encoder"] == pytest.approx(2_257e9 / 8.1e12 * 1000, rel=0.03)


@pytest.mark.parametrize("name", ["v100-32gb", "t4-16gb", "l4-24gb", "a10-24gb", "a100-40gb", "h100-80gb"])
def test_gpus_before_ampere_have_no_tensor_cores_for_bfloat16(name: str) -> None:
    large = plan("openai/whisper-large-v2", "meta-llama/Llama-3.2-3B-Instruct")
    device, work = find_device(name), Workload(30, 30, 1)
    times: dict[DType, float] = {}
    for dtype in ("float32", "float16", "bfloat16"):
        latency = predict(large, device, work, dtype=dtype).latency
        assert latency is not None
        times[dtype] = latency.stages["encoder"]
        is_emulated = dtype == "bfloat16" and name in ("v100-32gb", "t4-16gb")
        assert ("no tensor cores for bfloat16" in latency.source) == is_emulated
    assert times["float16"] < times["float32"]
    assert times["bfloat16"] == times["float32" if name in ("v100-32gb", "t4-16gb") else "float16"]


def test_everything_is_json() -> None:
    for predicted in (
        predict(TINY, find_device("cpu", 2), WORK, calibration=CALIBRATION),
        predict(TINY, find_device("h100-80gb"), WORK, protocol="nota"),
    ):
        values = json.loads(json.dumps(predicted.to_dict(), allow_nan=False))
        assert values["memory_bytes"]["peak_gib"] == round(predicted.memory.peak / GIB, 4)
        assert values["num_audio_tokens"] == (188 if predicted.protocol == "nota" else 63)


def test_the_text_of_a_prompt_is_estimated() -> None:
    assert default_workload(10, 16, "plain") == Workload(10, 26, 16)
    assert default_workload(10, 16, "chat") == Workload(10, 30, 16)
    chat = "<|im_start|>user\n{audio}\n{instruction}<|im_end|>\n<|im_start|>assistant\n"
    assert default_workload(10, 16, chat).text_tokens == 3 + 5 + 10
