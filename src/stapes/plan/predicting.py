"""What a model takes on a device: memory, time, and where the figures come from."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from .allocator import GIB
from .devices import GPU, LAUNCH_S, Device
from .encoders import WHISPER_WINDOW_S
from .model_plan import ModelPlan, describe_parts
from .nota import AUDIO_S, PROMPT_TOKENS, predict_nota_memory
from .own import Workload, activation_peak, replay_gpu, stored_sizes, weight_bytes
from .rates import Calibration
from .runtimes import describe_runtimes
from .shapes import DTYPE_BYTES, DType
from .work import plan_stages

Protocol = Literal["stapes", "nota"]
_SPECIAL = re.compile(r"<\|[^|]*\|>")
_NOTA_TIMES = "the published times are another thing: their clock does not wait for the GPU"


@dataclass(frozen=True)
class MemoryPrediction:
    """Peak memory, in bytes.

    Attributes:
        kind: `cuda` (blocks of PyTorch's allocator), `rss` (resident set of the process), or `nota` (the published
            column: blocks of the published implementation since its process began).
        peak: the larger of both.
        load_peak, run_peak: while loading, and after it.
        at: what was going on at the peak.
        by_part: what it was taken by then; adds up to `peak`.
        kv_cache: keys and values at the end of the answer.
        activations: the most that inputs, activations and cache take at once, weights apart.
        missing: what the figures leave out, and how to have it; None if nothing.
    """

    kind: Literal["cuda", "rss", "nota"]
    peak: int
    load_peak: int
    run_peak: int
    at: str
    by_part: dict[str, int]
    kv_cache: int
    activations: int
    missing: str | None = None


@dataclass(frozen=True)
class LatencyPrediction:
    """Time of one answer, in milliseconds.

    Attributes:
        stages: `features`, `encoder`, `connector`, `prefill`, `per_token`, as in bench.json.
        ttft: time to the first token.
        tpot: time of each token after it.
        source: where the rates come from, and what that means.
    """

    stages: dict[str, float]
    ttft: float
    tpot: float
    source: str


@dataclass(frozen=True)
class Prediction:
    """One variant of a recipe on one device; `no_latency` says why there is none."""

    plan: ModelPlan
    device: Device
    protocol: Protocol
    dtype: DType
    work: Workload
    memory: MemoryPrediction
    latency: LatencyPrediction | None
    no_latency: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything that was predicted, JSON-ready."""
        plan, work, memory = self.plan, self.work, self.memory
        stages = plan_stages(plan, work)
        return {
            "recipe": plan.recipe,
            "variant": plan.variant,
            "protocol": self.protocol,
            "device": self.device.name,
            "dtype": self.dtype,
            "parts": describe_parts(plan),
            "sources": dict(plan.sources),
            "audio_s": work.audio_s,
            "text_tokens": work.text_tokens,
            "new_tokens": work.new_tokens,
            "num_audio_tokens": plan.num_audio_tokens(work.audio_s),
            "audio_tokens_per_s": round(plan.audio_tokens_per_s, 4),
            "parameters": plan.without_dropped().parameters(),
            "weight_bytes": weight_bytes(plan, "float32", "float16")
            if self.protocol == "nota"
            else weight_bytes(plan, self.dtype),
            "kv_cache_bytes": memory.kv_cache,
            "activation_bytes": memory.activations,
            "memory_bytes": {
                "kind": memory.kind,
                "peak": memory.peak,
                "peak_gib": round(memory.peak / GIB, 4),
                "load_peak": memory.load_peak,
                "run_peak": memory.run_peak,
                "at": memory.at,
                "by_part": memory.by_part,
                "missing": memory.missing,
            },
            "work": {
                stage.name: {
                    "flops": stage.flops(),
                    "moved_bytes": stage.moved_bytes(self.dtype, plan.quantization),
                }
                for stage in stages
            },
            "latency_ms": None if self.latency is None else _latency_dict(self.latency),
            "no_latency": self.no_latency,
            "runtimes": describe_runtimes(plan),
        }


def predict(
    plan: ModelPlan,
    device: Device,
    work: Workload,
    *,
    protocol: Protocol = "stapes",
    dtype: DType = "float32",
    calibration: Calibration | None = None,
) -> Prediction:
    """Predict what a model takes.

    Args:
        plan: the model.
        device: where it runs.
        work: one answer.
        protocol: `nota` predicts the memory column of the published implementation, which pads every clip to 30 s
            and computes in fp16; it has its own workload and dtypes, whatever is given.
        dtype: of weights that are not quantised, on a GPU; a CPU computes in float32, whatever is given.
        calibration: of this machine's CPU; without it times and the process's own memory stay out.
    """
    if protocol == "nota":
        assert isinstance(device, GPU)
        dtype = "float16"
        plan = replace(plan, pad_audio_to_s=WHISPER_WINDOW_S)
        work = Workload(AUDIO_S, PROMPT_TOKENS, 1)
        memory = _nota_memory(plan, device)
    elif isinstance(device, GPU):
        memory = _gpu_memory(plan, device, work, dtype)
    else:
        dtype = "float32"
        memory = _cpu_memory(plan, work, calibration)
    latency, no_latency = None, None
    if isinstance(device, GPU):
        latency = _gpu_latency(plan, device, work, dtype)
        if protocol == "nota":
            latency = replace(latency, source=f"{latency.source}; {_NOTA_TIMES}")
    elif calibration is None:
        no_latency = "this machine's rates are not known; `stapes plan --calibrate` measures them once"
    elif plan.quantization is not None:
        no_latency = "a CPU has no fast kernel for 4-bit linears: they save memory there, not time"
    else:
        latency = _cpu_latency(plan, work, calibration)
    return Prediction(plan, device, protocol, dtype, work, memory, latency, no_latency)


def _nota_memory(plan: ModelPlan, device: GPU) -> MemoryPrediction:
    predicted = predict_nota_memory(plan, device.workspace_bytes)
    length = plan.connector.num_tokens(plan.speech.num_positions) + PROMPT_TOKENS + 1
    by_part = {**predicted.peak.by_part, "allocator_waste": predicted.peak.waste}
    return MemoryPrediction(
        kind="nota",
        peak=predicted.peak.total,
        load_peak=predicted.load_peak,
        run_peak=predicted.run_peak,
        at=predicted.peak.phase,
        by_part=by_part,
        kv_cache=plan.without_dropped().llm.kv_cache_bytes(length, 2),
        activations=predicted.activations,
    )


def _gpu_memory(plan: ModelPlan, device: GPU, work: Workload, dtype: DType) -> MemoryPrediction:
    peak, load_peak, run_peak = replay_gpu(plan, work, dtype, device.workspace_bytes)
    return MemoryPrediction(
        kind="cuda",
        peak=peak.total,
        load_peak=load_peak,
        run_peak=run_peak,
        at=peak.phase,
        by_part={**peak.by_part, "allocator_waste": peak.waste},
        kv_cache=_kv_cache(plan, work, dtype),
        activations=activation_peak(plan, work, dtype).total,
    )


def _cpu_memory(plan: ModelPlan, work: Workload, calibration: Calibration | None) -> MemoryPrediction:
    """Predict the resident set: weights are mapped from their file, and pages count once something reads them."""
    tokenizer = round(calibration.token_bytes * plan.llm.tokenizer_length) if calibration else 0
    process = calibration.process_bytes if calibration else 0
    resident, packing = _resident_weights(plan.without_dropped())
    activations = activation_peak(plan, work, "float32").total
    base = {"process": process, "tokenizer": tokenizer}
    loading = _loading_weights(plan)
    load = {**base, **loading}
    # What was read to be quantised is no copy that goes.
    pages = {part: size for part, size in loading.items() if part == "file pages"}
    run = {**base, **resident, "activations": max(activations, packing), **pages}
    load_peak, run_peak = sum(load.values()), sum(run.values())
    is_quantised = _is_quantised_at_load(plan) and "language_model" not in plan.converted
    at_load = "load: quantisation to 4 bits" if is_quantised else "load: conversion to float32"
    missing = None
    if calibration is None:
        missing = "the process itself and its tokenizer; `stapes plan --calibrate` measures them once"
    return MemoryPrediction(
        kind="rss",
        peak=max(load_peak, run_peak),
        load_peak=load_peak,
        run_peak=run_peak,
        at=at_load if load_peak > run_peak else "run",
        by_part=load if load_peak > run_peak else run,
        kv_cache=_kv_cache(plan, work, "float32"),
        activations=activations,
        missing=missing,
    )


def _resident_weights(plan: ModelPlan) -> tuple[dict[str, int], int]:
    """Sum the bytes of weights that an answer reads, by part, and what packing the largest int8 weight takes besides.

    Of an embedding table only the prompt's rows are read, unless the head is the same tensor or the table is a copy,
    converted from 16 bits. An int8 weight is there twice: as it lies in the file, and in the kernel's own order, into
    which it is packed through one more copy.
    """
    resident: dict[str, int] = {}
    packing = 0
    for part, weights in plan.weights().items():
        is_all_read = plan.llm.tied or part in plan.converted
        read = [weight for weight in weights if weight.kind != "embedding" or is_all_read]
        packed = [weight.size for weight in read if plan.is_int8(part, weight)]
        packing = max([packing, *packed])
        resident[part] = sum(sum(stored_sizes(plan, part, weight, "float32")) for weight in read) + sum(packed)
    return resident, packing


def _loading_weights(plan: ModelPlan) -> dict[str, int]:
    """Sum the bytes of weights that loading reads or makes, at the moment when they are most: by part, and besides.

    What is converted exists twice for a while: as it is read from its file, in 16 bits, and in float32. An LLM that is
    quantised while it is loaded is in float32 first, all of it if it is converted. Else each linear is read from its
    file, whose pages stay: what is not quantised keeps the file mapped.
    """
    loading: dict[str, int] = {}
    copies = pages = 0
    for part, weights in plan.weights().items():
        for weight in weights:
            is_4_bit = part == "language_model" and plan.quantization is not None and weight.kind == "linear"
            is_made = is_4_bit and _is_quantised_at_load(plan)
            size, whole = sum(stored_sizes(plan, part, weight, "float32")), 4 * weight.size
            if part in plan.converted and (is_made or not is_4_bit):
                loading[part] = loading.get(part, 0) + whole
                copies += whole // 2
            elif part in plan.converted or is_made:
                loading[part] = loading.get(part, 0) + size
                pages += whole if is_made else 0
    return {**loading, "load copies": copies, **({"file pages": pages} if pages else {})}


def _is_quantised_at_load(plan: ModelPlan) -> bool:
    return plan.quantization is not None and not plan.quantization.is_stored


def _kv_cache(plan: ModelPlan, work: Workload, dtype: DType) -> int:
    length = plan.num_audio_tokens(work.audio_s) + work.text_tokens + work.new_tokens
    return plan.without_dropped().llm.kv_cache_bytes(length, DTYPE_BYTES[dtype])


def _gpu_latency(plan: ModelPlan, device: GPU, work: Workload, dtype: DType) -> LatencyPrediction:
    stages = {
        stage.name: 1000 * device.stage_seconds(stage, dtype, stage.moved_bytes(dtype, plan.quantization))
        for stage in plan_stages(plan, work)
    }
    ttft = stages["encoder"] + stages["connector"] + stages["prefill"]
    source = (
        f"stated rates ({device.source}) and {1e6 * LAUNCH_S:.0f} µs assumed for the launch of each kernel, whichever "
        "is slowest; never measured, and without features"
    )
    if dtype == "bfloat16" and not device.has_bfloat16:
        source += "; it has no tensor cores for bfloat16, which counts as float32 and may take longer"
    return LatencyPrediction(stages, ttft, stages["per_token"], source)


def _cpu_latency(plan: ModelPlan, work: Workload, calibration: Calibration) -> LatencyPrediction:
    stages = {"features": 1000 * calibration.features_seconds(max(work.audio_s, plan.pad_audio_to_s or 0))}
    stages |= {stage.name: 1000 * calibration.stage_seconds(stage) for stage in plan_stages(plan, work)}
    ttft = sum(stages[name] for name in ("features", "encoder", "connector", "prefill"))
    source = f"rates measured on this machine with {calibration.num_threads} threads"
    return LatencyPrediction(stages, ttft, stages["per_token"], source)


def _latency_dict(latency: LatencyPrediction) -> dict[str, Any]:
    stages = {name: round(value, 3) for name, value in latency.stages.items()}
    return {**stages, "ttft": round(latency.ttft, 3), "tpot": round(latency.tpot, 3), "source": latency.source}


def default_workload(audio_s: float, new_tokens: int, prompt: str) -> Workload:
    """Describe one answer to the asr instruction; tokens of the prompt's text are estimated.

    The estimate: a token for each `<|…|>`, and one for four other characters; a chat template adds about 20.
    """
    instruction_tokens = 10
    match prompt:
        case "plain":
            return Workload(audio_s, PROMPT_TOKENS, new_tokens)
        case "chat":
            return Workload(audio_s, instruction_tokens + 20, new_tokens)
    template = prompt.replace("{audio}", "").replace("{instruction}", "")
    specials = len(_SPECIAL.findall(template))
    letters = len(_SPECIAL.sub("", template))
    return Workload(audio_s, specials + -(-letters // 4) + instruction_tokens, new_tokens)
