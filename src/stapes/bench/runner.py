"""The process that measures one model and nothing else, so that memory peaks and caches are that model's alone.

    python -m stapes.bench.runner '{"folder": "runs/tiny/tune", "settings": {"audio_s": 10, "new_tokens": 16, …}}'

`bench_model` starts it and reads messages from a pipe (`--fd`); by hand, without `--fd`, they go to stdout, one JSON
document a line: `{"done": 3, "of": 23}` after each run, at last `{"result": …}`, or `{"error": …}` where the input is
at fault.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import errors
from ..assembly import file_bytes, load_model
from ..environment import environment
from ..errors import StapesError
from ..model import StapesForConditionalGeneration, StapesProcessor
from .latency import TimedRun, summarize_ms, time_answer, time_generate, time_prompt
from .memory import memory_kind, peak_bytes, reset_peak, used_bytes
from .protocols import BenchSettings, instruction_of, is_reduced, make_clip

GENERATE_CALLS = 3
"""Calls of plain `generate` that check the timed runs: their median is enough for that."""

Report = Callable[[int, int], None]


def measure(folder: Path, settings: BenchSettings, report: Report) -> dict[str, Any]:
    """Load a model folder, run it, and return what `bench.json` holds.

    Args:
        folder: a model folder.
        settings: what to measure, and how often.
        report: called with the number of steps done and in all, loading being the first.

    Raises:
        StapesError: if the folder or the audio cannot be used.
    """
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    clip, clip_name = make_clip(settings)

    memory: dict[str, Any] = {"kind": memory_kind(device), "files": file_bytes(folder)}
    memory["before_load"] = used_bytes(device)
    import_peak = peak_bytes(device)
    reset_peak(device)
    model, processor = load_model(folder, device=str(device))
    memory["load_peak"] = peak_bytes(device)
    # Loading leaves cycles behind; what they hold is not needed to run.
    gc.collect()
    if not reset_peak(device):
        memory["run_peak_includes_load"] = True
    runs, generate_s = _run(model, processor, clip, settings, report)
    memory["run_peak"] = peak_bytes(device)

    audio_s = len(clip) / processor.feature_extractor.sampling_rate
    latency_ms = _latency_ms(runs, generate_s, settings, processor)
    result = {
        "variant": folder.resolve().name,
        "protocol": settings.protocol,
        "audio": clip_name,
        "audio_s": audio_s,
        "batch_size": 1,
        "warmup": settings.warmup,
        "repeats": settings.repeats,
        "new_tokens": settings.new_tokens,
        "seed": settings.seed,
        "num_audio_tokens": runs[0].num_audio_tokens,
        "num_prompt_tokens": runs[0].num_prompt_tokens,
        "latency_ms": latency_ms,
        "rtf": {name: round(value / 1000 / audio_s, 5) for name, value in latency_ms["total"].items()},
        "memory_bytes": memory,
        "parameters": model.num_parameters_by_part(),
        "environment": environment(str(device), _dtype(model)),
    }
    if model.config.connector_config.ctc_weight:
        result["leaves_out_transcript_search"] = True
    if settings.protocol == "nota":
        peak = max(import_peak, memory["load_peak"], memory["run_peak"])
        result["nota"] = {
            "latency_s": round(latency_ms["total"]["mean"] / 1000, 4),
            "memory_gib": round(peak / 1024**3, 4),
            "memory_kind": memory["kind"],
            "reduced": is_reduced(settings),
        }
    return result


def _run(
    model: StapesForConditionalGeneration,
    processor: StapesProcessor,
    clip: np.ndarray,
    settings: BenchSettings,
    report: Report,
) -> tuple[list[TimedRun], list[float]]:
    """Answer the clip again and again; return the timed runs that count and the seconds of plain `generate`."""
    instruction = instruction_of(settings.protocol)
    num_runs = settings.warmup + settings.repeats
    num_generate = GENERATE_CALLS if settings.protocol == "stapes" else 0
    runs: list[TimedRun] = []
    generate_s: list[float] = []
    report(1, 1 + num_runs + num_generate)
    for step in range(num_runs + num_generate):
        if step < num_runs:
            runs.append(time_answer(model, processor, clip, instruction, settings.new_tokens))
        else:
            generate_s.append(time_generate(model, processor, clip, instruction, settings.new_tokens)[0])
        report(2 + step, 1 + num_runs + num_generate)
    return runs[settings.warmup :], generate_s


def _latency_ms(
    runs: list[TimedRun], generate_s: list[float], settings: BenchSettings, processor: StapesProcessor
) -> dict[str, dict[str, float]]:
    parts = {name: [run.seconds[name] for run in runs] for name in runs[0].seconds}
    if settings.protocol == "nota":
        # TTFT begins where the features are ready, and takes in the writing of the prompt, which `features` holds.
        instruction = instruction_of(settings.protocol)
        parts["prompt"] = [time_prompt(processor, instruction, run.num_audio_tokens) for run in runs]
        for name in ("ttft", "total"):
            parts[name] = [
                whole - features + prompt
                for whole, features, prompt in zip(parts[name], parts["features"], parts["prompt"], strict=True)
            ]
    if generate_s:
        parts["generate_total"] = generate_s
    return {name: summarize_ms(seconds) for name, seconds in parts.items()}


def _dtype(model: StapesForConditionalGeneration) -> str:
    dtype = str(model.dtype).removeprefix("torch.")
    return dtype if model.config.int8 is None else f"int8 and {dtype}"


def main() -> None:
    """Measure what the first argument describes; see the top of this file."""
    job = json.loads(sys.argv[1])
    settings = job["settings"]
    settings["audio"] = Path(settings["audio"]) if settings.get("audio") else None
    send = _sender()
    try:
        result = measure(
            Path(job["folder"]), BenchSettings(**settings), lambda done, of: send({"done": done, "of": of})
        )
    except StapesError as error:
        kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        send({"error": {"kind": kind, "message": str(error)}})
        sys.exit(1)
    send({"result": result})


def _sender() -> Callable[[Any], None]:
    if sys.argv[2:3] == ["--fd"]:
        connection = Connection(int(sys.argv[3]), readable=False)
        return lambda message: connection.send_bytes(json.dumps(message, allow_nan=False).encode())
    return lambda message: print(json.dumps(message, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
