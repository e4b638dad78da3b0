from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest

from stapes.bench import NOTA, BenchSettings, bench_model
from stapes.bench.runner import measure
from stapes.errors import ModelFolderError, StapesError

SETTINGS = BenchSettings(audio_s=1.0, new_tokens=4, warmup=1, repeats=3, seed=5, num_threads=1)
PARTS = ["features", "encoder", "connector", "prefill", "per_token", "ttft", "total"]


@pytest.fixture(scope="module")
def measured(tiny_model_folder, tmp_path_factory):
    """One measurement for several tests: starting a process takes seconds. (result, bench.json, progress)."""
    path, progress = tmp_path_factory.mktemp("bench") / "new" / "bench.json", []
    result = bench_model(tiny_model_folder, SETTINGS, out_path=path, on_progress=lambda *step: progress.append(step))
    return result, path, progress


def test_result_is_what_the_design_promises(measured):
    result, path, progress = measured
    assert json.loads(path.read_text()) == result
    assert progress == [(step, 8) for step in range(1, 9)]  # loading, 1 + 3 runs, 3 calls of generate
    # 1 s: 50 encoder frames, 3 windows of 17; the tiny tokenizer has a token a byte.
    prompt = "<user\n...\nTranscribe the speech.>\n<assistant\n"  # <, > and . for start, end and audio token
    assert {key: result[key] for key in list(result)[:11]} == {
        "variant": "tiny",
        "protocol": "stapes",
        "audio": "speech-shaped noise",
        "audio_s": 1.0,
        "batch_size": 1,
        "warmup": 1,
        "repeats": 3,
        "new_tokens": 4,
        "seed": 5,
        "num_audio_tokens": 3,
        "num_prompt_tokens": len(prompt),
    }
    assert list(result)[11:] == ["latency_ms", "rtf", "memory_bytes", "parameters", "environment"]
    assert list(result["latency_ms"]) == [*PARTS, "generate_total"]
    assert all(0 < part["p50"] <= part["p95"] for part in result["latency_ms"].values())
    # 1 s of audio: seconds of work are the real-time factor.
    assert result["rtf"]["p50"] == pytest.approx(result["latency_ms"]["total"]["p50"] / 1000, abs=1e-5)
    assert result["parameters"]["total"] == 181_824
    assert (result["environment"]["num_threads"], result["environment"]["dtype"]) == (1, "float32")


def test_memory_is_that_of_the_model_alone(measured, tiny_model_folder):
    memory = measured[0]["memory_bytes"]
    assert memory["kind"] == "rss"
    assert memory["files"] == sum(path.stat().st_size for path in tiny_model_folder.iterdir())
    # The interpreter with torch takes hundreds of MB; this model and its clip a few.
    assert memory["before_load"] > 100e6
    for peak in ("load_peak", "run_peak"):
        assert 0.99 * memory["before_load"] < memory[peak] < memory["before_load"] + 200e6


def test_nota_counts_encoding_prompt_prefill_and_one_step(tiny_model_folder):
    result = measure(tiny_model_folder, replace(NOTA, warmup=0, repeats=2), lambda done, of: None)

    assert (result["audio"], result["audio_s"], result["new_tokens"]) == ("white noise", 10.0, 2)
    latency_ms = result["latency_ms"]
    assert list(latency_ms) == [*PARTS, "prompt"]
    counted = ("prompt", "encoder", "connector", "prefill")
    # What lies between the parts is the choice of the first token.
    between_ms = latency_ms["ttft"]["mean"] - sum(latency_ms[part]["mean"] for part in counted)
    assert 0 <= between_ms < 5
    assert latency_ms["total"]["mean"] == pytest.approx(
        latency_ms["ttft"]["mean"] + latency_ms["per_token"]["mean"], abs=0.01
    )
    peak = max(result["memory_bytes"][name] for name in ("load_peak", "run_peak"))
    assert result["nota"] == {
        "latency_s": round(latency_ms["total"]["mean"] / 1000, 4),
        "memory_gib": pytest.approx(peak / 2**30, rel=0.5),
        "memory_kind": "rss",
        "reduced": True,
    }
    assert result["nota"]["memory_gib"] >= round(peak / 2**30, 4)


def test_broken_folder_is_the_users_error(tiny_model_folder, tmp_path):
    folder, out = tmp_path / "broken", tmp_path / "bench.json"
    shutil.copytree(tiny_model_folder, folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"broken: holds neither model\.safetensors nor trained\.safetensors"):
        bench_model(folder, SETTINGS, out_path=out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "tiny: the measuring process was killed by SIGKILL, most likely because memory ran out; free"),
        (signal.SIGSEGV, "tiny: the measuring process was ended by SIGSEGV; native code failed"),
    ],
)
def test_killed_process_is_told_with_its_signal(tiny_model_folder, number, message):
    def kill_child() -> None:
        while not (children := psutil.Process().children()):
            time.sleep(0.01)
        os.kill(children[0].pid, number)

    killer = threading.Thread(target=kill_child)
    killer.start()
    with pytest.raises(StapesError, match=message):
        bench_model(tiny_model_folder, SETTINGS)
    killer.join()


def test_process_without_memory_ends_in_an_error(tiny_model_folder):
    """400 MiB of address space hold this script but not torch."""
    script = (
        "import resource, sys; from pathlib import Path; from stapes.bench import BenchSettings, bench_model\n"
        "from stapes.errors import StapesError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, resource.RLIM_INFINITY))\n"
        "try: bench_model(Path(sys.argv[1]), BenchSettings(audio_s=1, new_tokens=2, warmup=0, repeats=1))\n"
        "except StapesError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tiny_model_folder],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each of its threads reserves address space
    )
    assert done.stderr == ""
    # Where it fails differs: an allocation (MemoryError), or a library that cannot be mapped (ImportError).
    cause = r"(ran out of memory|failed with exit code 1) \((Memory|Import)Error"
    assert re.match(f".*/tiny: the measuring process {cause}", done.stdout)


def test_silent_process_is_ended(tiny_model_folder):
    # No interpreter imports torch in this time.
    with pytest.raises(StapesError, match=r"no sign of life for 0\.05 s and was ended"):
        bench_model(tiny_model_folder, SETTINGS, timeout_s=0.05)
    assert psutil.Process().children() == []
