"""Measure this machine's CPU once: `python -m stapes.plan.probing THREADS` prints one JSON document.

A process of its own, because it also measures what a process costs before any weight is loaded. Nothing here knows a
model that is planned: weights are random, and too many to stay in the caches, as they are in a model.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .connector import MLPShape
from .encoders import FEATURE_FRAMES_PER_S, WhisperShape
from .llm import LLMShape
from .model_plan import ModelPlan
from .own import Workload
from .probe_models import DEPTHS, FRAMES, MIDDLE_FRAMES, WIDTH, middle_models, tiny_models
from .rates import Calibration
from .work import LayerKind, StageName, plan_stages

ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1536]
SHAPES = [(192, 576), (576, 576), (512, 2048), (896, 4864), (2048, 8192)]
"""(inputs, outputs) of linears, smallest weight first."""

_CACHE_BYTES = 128 * 1024**2
_LEAST_S = 0.15
_LEAST_RUNS = 5
_TEXT_TOKENS = 32


def probe(num_threads: int) -> dict[str, Any]:
    """Measure what `Calibration` holds, the environment aside."""
    memory, models = _measure_process(num_threads)
    import torch

    # torch means to drop its quantised tensors; the measurement uses them as long as our int8 layers do.
    warnings.filterwarnings("ignore", message=r"(?s).*quantized tensor creation functions")
    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        weights = _map_weights(Path(scratch) / "weights")
        # Twice, minutes apart: what something else disturbed the first time it will hardly disturb again.
        models |= middle_models(weights)
        rates: dict[str, Any] = _faster(*[_measure_operations(weights) for _ in range(2)])
        calls = _faster(*[_measure_calls(models) for _ in range(2)])
    calibration = Calibration(
        num_threads=num_threads,
        linear_rows=ROWS,
        linear_sizes=[inputs * outputs for inputs, outputs in SHAPES],
        layers={"encoder": 0.0, "decoder": 0.0, "step": 0.0, **calls["layers"]},
        calls={"encoder": 0.0, "prefill": 0.0, "per_token": 0.0, **calls["calls"]},
        environment={},
        **rates,
        **memory,
    )
    return asdict(_with_overheads(calibration, calls["middle"]))


def _measure_operations(weights: Any) -> dict[str, Any]:
    dispatch = _seconds(_linear_calls(weights, 8, 8, 1, "float"))
    linears = {
        storage: [[_net(_linear_calls(weights, *shape, rows, storage), dispatch) for shape in SHAPES] for rows in ROWS]
        for storage in ("float", "int8")
    }
    return {
        "linears": linears,
        "attention": _measure_attention(),
        "pointwise": _measure_pointwise(),
        "features": list(_measure_features()),
    }


def _faster(first: Any, second: Any) -> Any:
    """Merge two measurements of the same things: of each time the shorter."""
    if isinstance(first, dict):
        return {key: _faster(first[key], second[key]) for key in first}
    if isinstance(first, list):
        return [_faster(one, other) for one, other in zip(first, second, strict=True)]
    return min(first, second)


def _map_weights(path: Path) -> Any:
    """Return random float32 values that are mapped from a file, as a model's weights are: their pages are small."""
    import torch

    size = _CACHE_BYTES // 4
    torch.randn(size).mul_(0.02).numpy().tofile(path)  # small enough for deep models to stay finite
    return torch.from_file(str(path), size=size)


def _seconds(call: Callable[[], Any]) -> float:
    """Time a call: the lower quartile of at least five, and of at least 0.15 s of them.

    Other work on the machine only ever adds time; the quartile keeps some of it out where the median would not.
    """
    call()
    taken: list[float] = []
    while len(taken) < _LEAST_RUNS or sum(taken) < _LEAST_S:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 4]


def _net(call: Callable[[], Any], dispatch: float) -> float:
    """Time a call beyond what calling anything takes; never nothing, as logarithms are taken of it."""
    return max(_seconds(call) - dispatch, dispatch / 100)


def _linear_calls(values: Any, inputs: int, outputs: int, rows: int, storage: str) -> Callable[[], Any]:
    """Return a call that multiplies with another of `values`' weights each time, so that none is in the caches."""
    import torch

    size = inputs * outputs
    different = max(1, min(256, len(values) // size))
    weights = [values[start * size : (start + 1) * size].view(outputs, inputs) for start in range(different)]
    if storage == "int8":
        # A quarter of the bytes: four times as many of them fill the caches as much.
        weights = [_pack(weight) for _ in range(4) for weight in weights]
    frames = torch.randn(rows, inputs)
    turns = itertools.cycle(weights)
    if storage == "float":
        return lambda: torch.nn.functional.linear(frames, next(turns))
    return lambda: _multiply_int8(frames, next(turns))


def _pack(weight: Any) -> Any:
    import torch

    scales, zeros = torch.full((len(weight),), 0.01), torch.zeros(len(weight), dtype=torch.int64)
    return torch.ops.quantized.linear_prepack(torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8), None)


def _multiply_int8(rows: Any, packed: Any) -> Any:
    """Multiply as our int8 layers do: each row as two digits, both through the kernel."""
    import torch

    peaks = rows.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30)
    digits = rows.new_empty(2, *rows.shape)
    fine = torch.mul(rows, 64 / peaks, out=digits[1])
    coarse = torch.round(fine, out=digits[0])
    fine.sub_(coarse).mul_(128).round_()
    kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    products = kernel(digits.flatten(0, 1), 1.0, 64, packed).view(2, len(rows), -1)
    return torch.add(products[1], products[0], alpha=128).mul_(peaks.mul_(1 / (64 * 128)))


def _measure_attention() -> list[list[float]]:
    import torch

    measured = []
    for length in (64, 256, 512, 1500):
        states = torch.randn(1, 8, length, 64)
        seconds = _seconds(lambda s=states: torch.nn.functional.scaled_dot_product_attention(s, s, s))
        measured.append([float(length * length * 8 * 64), seconds])
    return measured


def _measure_pointwise() -> dict[str, float]:
    import torch
    from torch import nn

    values, others = torch.randn(500, 2048), torch.randn(500, 2048)
    norm = nn.LayerNorm(2048)
    weight = torch.randn(2048)

    def rms_norm() -> torch.Tensor:
        # As transformers writes it: a pass for each line.
        variance = values.pow(2).mean(-1, keepdim=True)
        return weight * (values * torch.rsqrt(variance + 1e-6))

    calls: dict[str, Callable[[], Any]] = {
        "norm": lambda: norm(values),
        "rms_norm": rms_norm,
        "gelu": lambda: nn.functional.gelu(values),
        "gated": lambda: nn.functional.silu(values) * others,
        "add": lambda: values + others,
    }
    return {kind: _seconds(call) / values.numel() for kind, call in calls.items()}


def _measure_process(num_threads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Import what answering imports, build tiny models, answer with them, and read the resident set.

    Returns:
        `process_bytes` and `token_bytes`; the tiny models.
    """
    import psutil
    import torch
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(num_threads)
    process = psutil.Process()
    models = tiny_models()
    with torch.inference_mode():
        models["llm_2"](inputs_embeds=torch.zeros(1, 8, 64))
        models["whisper"](torch.zeros(1, 80, FRAMES))
        _measure_features(seconds=1)
    before = process.memory_info().rss
    tokens = 50_000
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(tokens))
    taken = process.memory_info().rss - before
    del tokenizer
    return {"process_bytes": before, "token_bytes": taken / tokens}, models


def _tokenizer(size: int) -> Any:
    """Build a byte-pair tokenizer of about `size` tokens, each made by one merge, from its JSON as a file would be."""
    from tokenizers import Tokenizer

    letters = [chr(ord("a") + i) for i in range(26)]
    words = list(letters)
    merges: list[tuple[str, str]] = []
    for word in words:
        if len(words) >= size:
            break
        for letter in letters:
            merges.append((word, letter))
            words.append(word + letter)
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": [list(m) for m in merges]}
    return Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def _middle_plan(depth: int) -> ModelPlan:
    """Plan what `_middle_models` builds."""
    return ModelPlan(
        recipe="probe",
        variant="middle",
        speech=WhisperShape(WIDTH, depth, 8, 4 * WIDTH, 80, MIDDLE_FRAMES // 2),
        sound=None,
        connector=MLPShape(WIDTH, WIDTH, 8, WIDTH),
        llm=LLMShape("llama", WIDTH, depth, 8, 8, WIDTH // 8, 3 * WIDTH, 64, 64, tied=False),
    )


def _with_overheads(calibration: Calibration, middle: dict[str, list[float]]) -> Calibration:
    """Tell what a layer and a call take beyond their operations, from the times of models of two depths."""
    work = Workload(MIDDLE_FRAMES / FEATURE_FRAMES_PER_S, _TEXT_TOKENS, 1)
    few, many = ({stage.name: stage for stage in plan_stages(_middle_plan(depth), work)} for depth in DEPTHS)
    layers, calls = dict(calibration.layers), dict(calibration.calls)
    kinds: dict[StageName, LayerKind] = {"encoder": "encoder", "prefill": "decoder", "per_token": "step"}
    for name, kind in kinds.items():
        beyond = [
            seconds - sum(calibration.op_seconds(op) for op in stage.ops)
            for seconds, stage in zip(middle[name], (few[name], many[name]), strict=True)
        ]
        calls[name], layers[kind] = _line(DEPTHS[0], beyond[0], DEPTHS[1], beyond[1])
    return replace(calibration, layers=layers, calls=calls)


def _measure_calls(models: dict[str, Any]) -> dict[str, Any]:
    """Time models: those in the middle whole, tiny ones for what a layer of theirs costs."""
    import torch

    tiny, middle = torch.zeros(1, 16, 64), torch.zeros(1, MIDDLE_FRAMES // 16 + _TEXT_TOKENS, WIDTH)
    queries, windows = torch.zeros(4, 1, 64), torch.zeros(4, 17, 64)

    def prefill(name: str, prompt: Any) -> float:
        return _seconds(lambda: models[name](inputs_embeds=prompt, use_cache=True, logits_to_keep=1))

    def step(name: str, prompt: Any) -> float:
        cache = models[name](inputs_embeds=prompt, use_cache=True).cache
        token = prompt[:, :1]
        return _seconds(lambda: models[name](inputs_embeds=token, cache=cache, use_cache=True, logits_to_keep=1))

    def encode(name: str) -> float:
        features = torch.zeros(1, 80, MIDDLE_FRAMES)
        return _seconds(lambda: models[name](features))

    def query(name: str) -> float:
        return _seconds(lambda: models[name](query_embeds=queries, encoder_hidden_states=windows))

    with torch.inference_mode():
        # Two adapters a layer, over ten layers and two, in a prefill and in a step.
        slopes = [
            _line(2, timed(f"{kind}_2", tiny), 10, timed(f"{kind}_10", tiny))[1]
            for kind in ("adapted", "llm")
            for timed in (prefill, step)
        ]
        adapter = max(0.0, (slopes[0] + slopes[1] - slopes[2] - slopes[3]) / 4)
        connector_call, qformer_layer = _line(1, query("qformer_1"), 5, query("qformer_5"))
        return {
            "middle": {
                "encoder": [encode(f"middle_whisper_{depth}") for depth in DEPTHS],
                "prefill": [prefill(f"middle_llm_{depth}", middle) for depth in DEPTHS],
                "per_token": [step(f"middle_llm_{depth}", middle) for depth in DEPTHS],
            },
            "layers": {"qformer": qformer_layer, "adapter": adapter},
            "calls": {"connector": connector_call},
        }


def _line(few: int, few_s: float, many: int, many_s: float) -> tuple[float, float]:
    """Return where the line through two points begins, at least 0, and how steep it is."""
    slope = max(0.0, (many_s - few_s) / (many - few))
    return max(0.0, few_s - few * slope), slope


def _measure_features(seconds: float | None = None) -> tuple[float, float]:
    """Tell what log-mel features cost: a call, and a second of audio."""
    import numpy as np
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()

    def extract(length_s: float) -> float:
        clip = np.random.default_rng(0).standard_normal(round(16_000 * length_s)).astype(np.float32)
        keywords = {"sampling_rate": 16_000, "padding": "do_not_pad", "truncation": False, "return_tensors": "pt"}
        return _seconds(lambda: extractor(clip, **keywords))

    if seconds is not None:
        return extract(seconds), 0.0
    return _line(5, extract(5), 20, extract(20))


if __name__ == "__main__":
    print(json.dumps(probe(int(sys.argv[1])), allow_nan=False))
