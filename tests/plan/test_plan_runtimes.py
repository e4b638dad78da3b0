"""Which runtimes a shape reaches, and the change that would let it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stapes.plan.connector import MLPShape, QFormerShape
from stapes.plan.encoders import BeatsShape, WhisperShape
from stapes.plan.llm import LLMShape
from stapes.plan.model_plan import ModelPlan
from stapes.plan.published import PUBLISHED
from stapes.plan.runtimes import Runtime, find_runtimes
from stapes.plan.shapes import Adapters, Quantization


def mlp(stack: int) -> ModelPlan:
    return ModelPlan(
        "r",
        "tune",
        WhisperShape.from_config(PUBLISHED["openai/whisper-base"]),
        None,
        MLPShape(512, 576, stack, 2048),
        LLMShape.from_config(PUBLISHED["HuggingFaceTB/SmolLM2-135M"], "x"),
    )


def runtime(plan: ModelPlan, name: str) -> Runtime:
    return next(runtime for runtime in find_runtimes(plan) if runtime.name == name)


@pytest.mark.parametrize("stack", [5, 10])
def test_llama_cpp_takes_the_stacks_that_were_seen_to_work(stack: int) -> None:
    found = runtime(mlp(stack), "llama.cpp")
    assert found.verdict == "partly"
    assert found.how is not None
    assert f"projector `ultravox`, stack {stack}" in found.how
    assert found.why_not is not None
    assert "norm_out" in found.why_not


def test_llama_cpp_aborts_with_stack_8_and_others_were_not_tried() -> None:
    eight, seven = (runtime(mlp(stack), "llama.cpp") for stack in (8, 7))
    assert eight.verdict == seven.verdict == "no"
    assert eight.why_not == "its `ultravox` projector aborts with stack 8; use 5 or 10"
    assert seven.why_not is not None
    assert "not tried with stack 7" in seven.why_not


def test_llama_cpp_has_no_graph_for_a_q_former_or_two_encoders() -> None:
    plan = replace(mlp(5), sound=BeatsShape(), connector=QFormerShape(1280, 576, 17, 1, "pad", 768, 2, 12, 3072))
    found = runtime(plan, "llama.cpp")
    assert found.verdict == "no"
    assert found.why_not is not None
    assert "two encoders" in found.why_not
    assert "Q-Former over Whisper" in found.why_not


@pytest.mark.parametrize("name", ["ONNX Runtime", "OpenVINO"])
def test_what_is_exported(name: str) -> None:
    assert runtime(mlp(8), name).verdict == "yes"
    adapted = runtime(replace(mlp(8), adapters=Adapters(8, ("q_proj",))), name)
    assert adapted.how is not None
    assert "merge" in adapted.how
    assert runtime(replace(mlp(8), int8_skip=()), name).verdict == "no"
    assert runtime(replace(mlp(8), quantization=Quantization("nf4")), name).verdict == "no"
    experts = LLMShape.from_config(PUBLISHED["allenai/OLMoE-1B-7B-0924"], "x")
    assert runtime(replace(mlp(8), llm=experts), name).verdict == "partly"


def test_pytorch_runs_everything_that_we_read() -> None:
    nf4, gptq = (replace(mlp(8), quantization=Quantization(kind, is_stored=True)) for kind in ("nf4", "gptq"))
    assert {runtime(plan, "PyTorch").verdict for plan in (mlp(8), replace(mlp(8), int8_skip=()), nf4)} == {"yes"}
    assert runtime(gptq, "PyTorch") == Runtime(
        "PyTorch",
        "no",
        why_not="weights stored by GPTQ are not read; take the LLM in full precision, and `quantization` in a stage",
    )
