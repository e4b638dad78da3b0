"""The planner against measurement: peak memory and latency of small models on this CPU.

    python benchmarks/planner.py [--threads 1] [--repeats 10] [--only NAME …] [--keep-calibration]

Measures the machine (`stapes plan --calibrate`), predicts each variant from its shapes, then builds and measures it
with `stapes bench`. Prints one JSON document: for each variant predicted, measured and error, in bytes and
milliseconds, and the load of the machine before and after, since what else runs changes every time below. Prompt
lengths are those of the measured runs. Variants named `random-…` have random weights of another shape.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stapes.assembly import build, save_model
from stapes.bench import BenchSettings, bench_model
from stapes.environment import environment
from stapes.model import ConnectorConfig, StapesConfig, StapesForConditionalGeneration
from stapes.plan import Workload, calibrate, find_device, plan_models, predict, read_calibration
from stapes.plan.configs import read_config
from stapes.plan.llm import LLMShape
from stapes.plan.model_plan import ModelPlan
from stapes.plan.published import PUBLISHED
from stapes.recipe import Recipe

BASE, TINY = "openai/whisper-base", "openai/whisper-tiny.en"
SMOLLM, QWEN = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct"
MLP: dict[str, Any] = {"kind": "stacked_mlp", "stack": 8, "hidden_size": 2048}
QFORMER: dict[str, Any] = {"kind": "windowed_qformer", "window_s": 0.34}
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
NEW_TOKENS = 16


@dataclass(frozen=True)
class Variant:
    """A model and a clip to hear with it; shapes other than the LLM's own come with random weights."""

    name: str
    speech_encoder: str = BASE
    llm: str = SMOLLM
    connector: dict[str, Any] = field(default_factory=lambda: MLP)
    audio_s: float = 10.0
    lora: bool = False
    int8: bool = False
    random: tuple[str, str] | None = None  # published shapes (speech encoder, LLM) of random weights


VARIANTS = (
    Variant("tiny.en-smollm-mlp-10s", TINY),
    Variant("base-smollm-mlp-3s", audio_s=3),
    Variant("base-smollm-mlp-10s"),
    Variant("base-smollm-mlp-30s", audio_s=30),
    Variant("base-smollm-qformer-10s", connector=QFORMER),
    Variant("base-smollm-mlp-lora-10s", lora=True),
    Variant("base-smollm-mlp-int8-10s", int8=True),
    Variant("tiny.en-smollm-qformer-int8-20s", TINY, connector=QFORMER, audio_s=20, int8=True),
    Variant("base-qwen-mlp-10s", llm=QWEN),
    Variant("random-small-smollm360-mlp-10s", random=("openai/whisper-small", "HuggingFaceTB/SmolLM2-360M")),
    Variant(
        "random-tiny-gemma270-qformer-10s", connector=QFORMER, random=("openai/whisper-tiny", "google/gemma-3-270m")
    ),
)


def connector_config(section: dict[str, Any]) -> ConnectorConfig:
    if section["kind"] == "stacked_mlp":
        return ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=2048)
    return ConnectorConfig(kind="windowed_qformer", frames_per_window=17)


def make(variant: Variant, folder: Path) -> None:
    """Build the model of a variant and save it whole."""
    import torch

    model, processor = build(variant.speech_encoder, variant.llm, connector_config(variant.connector))
    if variant.random is not None:
        torch.manual_seed(0)
        encoder, llm = (PUBLISHED[name] for name in variant.random)
        config = StapesConfig(
            speech_config=encoder,
            text_config={**llm, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
            connector_config=connector_config(variant.connector),
            audio_token_id=model.config.audio_token_id,
        )
        generation_config = model.generation_config
        model = StapesForConditionalGeneration(config).eval()
        model.generation_config = generation_config
    if variant.lora:
        model.add_lora(**LORA)
    save_model(model.eval(), processor, folder)
    if variant.int8:
        from stapes.compress import quantize

        quantize(folder, folder.with_name("int8"))


def plan_of(variant: Variant) -> ModelPlan:
    """Plan the variant from a recipe that names its shapes."""
    encoder, llm = variant.random or (variant.speech_encoder, variant.llm)
    stage: dict[str, Any] = {"data": {"none.jsonl": 1}, "max_steps": 1}
    if variant.lora:
        stage |= {"lora": LORA, "trainable": ["connector", "lora"]}
    recipe = Recipe.model_validate(
        {
            "name": variant.name,
            "model": {"speech_encoder": encoder, "llm": llm, "connector": variant.connector},
            "train": {"tune": stage},
            "compress": [{"kind": "quantize"}] if variant.int8 else [],
        }
    )
    plan = plan_models(recipe)[-1]
    # Random weights come with the tokenizer of the LLM they stand in for.
    tokenizer_length = LLMShape.from_config(read_config(variant.llm).values, variant.llm).tokenizer_length
    return replace(plan, llm=replace(plan.llm, tokenizer_length=tokenizer_length))


def compare(variant: Variant, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure a variant, predict it, and put both side by side."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "float"
        make(variant, folder)
        settings = BenchSettings(
            audio_s=variant.audio_s,
            new_tokens=NEW_TOKENS,
            warmup=2,
            repeats=arguments.repeats,
            num_threads=arguments.threads,
            device="cpu",
        )
        measured = bench_model(folder.with_name("int8") if variant.int8 else folder, settings)
    text_tokens = measured["num_prompt_tokens"] - measured["num_audio_tokens"]
    predicted = predict(
        plan_of(variant),
        find_device("cpu", arguments.threads),
        Workload(variant.audio_s, text_tokens, NEW_TOKENS),
        calibration=read_calibration(arguments.threads),
    )
    assert predicted.latency is not None
    assert predicted.plan.parameters()["total"] == measured["parameters"]["total"]
    latency = {name: cell["p50"] for name, cell in measured["latency_ms"].items()}
    stages = predicted.latency.stages
    pairs = {
        "run_peak_bytes": (predicted.memory.run_peak, measured["memory_bytes"]["run_peak"]),
        "load_peak_bytes": (predicted.memory.load_peak, measured["memory_bytes"]["load_peak"]),
        "ttft_ms": (predicted.latency.ttft, latency["ttft"]),
        "tpot_ms": (predicted.latency.tpot, latency["per_token"]),
        "total_ms": (predicted.latency.ttft + (NEW_TOKENS - 1) * predicted.latency.tpot, latency["total"]),
        **{f"{name}_ms": (stages[name], latency[name]) for name in ("features", "encoder", "connector", "prefill")},
    }
    return {
        "variant": variant.name,
        "load_average": round(os.getloadavg()[0], 2),
        **{
            name: {"predicted": round(guess, 2), "measured": round(truth, 2), "error_percent": percent(guess, truth)}
            for name, (guess, truth) in pairs.items()
        },
    }


def percent(guess: float, truth: float) -> float:
    return round(100 * (guess / truth - 1), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="names of variants")
    parser.add_argument("--keep-calibration", action="store_true", help="do not measure the machine again")
    arguments = parser.parse_args()
    load_before = os.getloadavg()
    if not arguments.keep_calibration:
        calibrate(arguments.threads)
    rows = []
    for variant in VARIANTS:
        if arguments.only and variant.name not in arguments.only:
            continue
        rows.append(compare(variant, arguments))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "variants": rows,
                "worst_error_percent": {
                    name: max((row[name]["error_percent"] for row in rows), key=abs)
                    for name in ("run_peak_bytes", "ttft_ms", "tpot_ms", "total_ms")
                },
                "threads": arguments.threads,
                "repeats": arguments.repeats,
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "environment": environment(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
