"""Measure this machine's CPU once: `python -m stapes.plan.probing THREADS` prints one JSON document.

A process of its own, because it also measures what a process costs before any weight is loaded. Nothing here knows a
model that is planned: weights are random, and too many to stay in the caches, as they are in a model.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1536]
SHAPES = [(192, 576), (576, 576), (512, 2048), (896, 4864), (2048, 8192)]
"""(inputs, outputs) of linears, smallest weight first."""

_CACHE_BYTES = 128 * 1024**2
_LEAST_S = 0.15
_LEAST_RUNS = 5
_FRAMES = 32


def probe(num_threads: int) -> dict[str, Any]:
    """Measure what `Calibration` holds, the environment aside."""
    memory, models = _measure_process(num_threads)
    import torch

    # torch means to drop its quantised tensors; the measurement uses them as long as our int8 layers do.
    warnings.filterwarnings("ignore", message=r"(?s).*quantized tensor creation functions")
    with torch.inference_mode():
        dispatch = _seconds(_linear_calls(8, 8, 1, "float"))
        linears = {
            storage: [[_net(_linear_calls(*shape, rows, storage), dispatch) for shape in SHAPES] for rows in ROWS]
            for storage in ("float", "int8")
        }
        return {
            "num_threads": num_threads,
            "linears": linears,
            "linear_rows": ROWS,
            "linear_sizes": [inputs * outputs for inputs, outputs in SHAPES],
            "attention": _measure_attention(),
            "pointwise": _measure_pointwise(),
            **_measure_layers(models),
            "features": _measure_features(),
            **memory,
        }


def _seconds(call: Callable[[], Any]) -> float:
    """Time a call: the median of at least five, and of at least 0.15 s of them."""
    call()
    taken: list[float] = []
    while len(taken) < _LEAST_RUNS or sum(taken) < _LEAST_S:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _net(call: Callable[[], Any], dispatch: float) -> float:
    """Time a call beyond what calling anything takes; never nothing, as logarithms are taken of it."""
    return max(_seconds(call) - dispatch, dispatch / 100)


def _linear_calls(inputs: int, outputs: int, rows: int, storage: str) -> Callable[[], Any]:
    """Return a call that multiplies with another weight each time, so that none is in the caches."""
    import torch

    copies = max(1, min(256, _CACHE_BYTES // (inputs * outputs * (4 if storage == "float" else 1))))
    frames = torch.randn(rows, inputs)
    weights = [torch.randn(outputs, inputs) for _ in range(copies)]
    turns = itertools.cycle([_pack(weight) for weight in weights] if storage == "int8" else weights)
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


def _measure_attention() -> list[tuple[float, float]]:
    import torch

    measured = []
    for length in (64, 256, 512, 1500):
        states = torch.randn(1, 8, length, 64)
        seconds = _seconds(lambda s=states: torch.nn.functional.scaled_dot_product_attention(s, s, s))
        measured.append((float(length * length * 8 * 64), seconds))
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


def _measure_process(num_threads: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Import what answering imports, build tiny models, answer with them, and read the resident set.

    Returns:
        `process_bytes` and `token_bytes`; the tiny models.
    """
    import psutil
    import torch
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(num_threads)
    process = psutil.Process()
    models = {f"llm_{layers}": _tiny_llm(layers) for layers in (2, 10)}
    models |= {f"adapted_{layers}": _adapt(_tiny_llm(layers)) for layers in (2, 10)}
    models |= {f"whisper_{layers}": _tiny_whisper(layers) for layers in (2, 10)}
    models |= {f"qformer_{layers}": _tiny_qformer(layers) for layers in (1, 5)}
    with torch.inference_mode():
        models["llm_2"](inputs_embeds=torch.zeros(1, 8, 64))
        models["whisper_2"](torch.zeros(1, 80, _FRAMES))
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


def _tiny_llm(num_layers: int) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()


def _adapt(model: Any) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), model)
    return model.eval()


def _tiny_whisper(num_layers: int) -> Any:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=64,
        encoder_layers=num_layers,
        encoder_attention_heads=2,
        encoder_ffn_dim=128,
        max_source_positions=_FRAMES // 2,
    )
    return WhisperEncoder(config).eval()


def _tiny_qformer(num_layers: int) -> Any:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    config = Blip2QFormerConfig(
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=128,
        cross_attention_frequency=1,
        encoder_hidden_size=64,
    )
    return Blip2QFormerModel(config).eval()


def _measure_layers(models: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Tell what a layer costs however narrow, and a call without layers, from models of two depths."""
    import torch

    prompt, frames = torch.zeros(1, 16, 64), torch.zeros(1, 80, _FRAMES)
    token = torch.zeros(1, 1, dtype=torch.long)
    queries, windows = torch.zeros(4, 1, 64), torch.zeros(4, 17, 64)

    def prefill(name: str) -> float:
        return _seconds(lambda: models[name](inputs_embeds=prompt, use_cache=True, logits_to_keep=1))

    def step(name: str) -> float:
        cache = models[name](inputs_embeds=prompt, use_cache=True).cache
        return _seconds(lambda: models[name](input_ids=token, cache=cache, use_cache=True, logits_to_keep=1))

    def encode(name: str) -> float:
        return _seconds(lambda: models[name](frames))

    def query(name: str) -> float:
        return _seconds(lambda: models[name](query_embeds=queries, encoder_hidden_states=windows))

    prefill_call, prefill_layer = _line(2, prefill("llm_2"), 10, prefill("llm_10"))
    step_call, step_layer = _line(2, step("llm_2"), 10, step("llm_10"))
    adapted = [_line(2, timed("adapted_2"), 10, timed("adapted_10"))[1] for timed in (prefill, step)]
    adapter = max(0.0, (sum(adapted) - prefill_layer - step_layer) / 2 / 2)  # two adapters a layer, measured twice
    encoder_call, encoder_layer = _line(2, encode("whisper_2"), 10, encode("whisper_10"))
    connector_call, qformer_layer = _line(1, query("qformer_1"), 5, query("qformer_5"))
    return {
        "layers": {
            "encoder": encoder_layer,
            "decoder": (prefill_layer + step_layer) / 2,
            "qformer": qformer_layer,
            "adapter": adapter,
        },
        "calls": {
            "encoder": encoder_call,
            "connector": connector_call,
            "prefill": prefill_call,
            "per_token": step_call,
        },
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
