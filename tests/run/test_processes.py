"""A whole run on two processes, and once more. Processes take seconds to start: the slow tier's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def launch(recipe: Path, out: Path) -> subprocess.CompletedProcess[str]:
    # `--cpu` would start one process only; without a GPU these two find each other through gloo.
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    run = ["-m", "stapes", "run", recipe, "--out", out, "--set", "bench=null", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "STAPES_CACHE": str(out.with_name("cache"))}
    return subprocess.run(
        [sys.executable, *command, *run], check=False, capture_output=True, text=True, timeout=200, env=environment
    )


def test_two_processes_share_a_run_and_both_end(small_parts: Path, tmp_path: Path) -> None:
    first = launch(small_parts / "small.yaml", tmp_path / "run")
    assert first.returncode == 0, first.stderr[-3000:]
    made = json.loads(first.stdout)["made"]
    assert made[:5] == ["data_check", "align", "tune", "merge_lora", "quantize"]
    assert (tmp_path / "run" / "report" / "report.html").exists()
    assert not list((tmp_path / "run").rglob("*.partial"))
    second = launch(small_parts / "small.yaml", tmp_path / "run")
    assert second.returncode == 0, second.stderr[-3000:]
    assert json.loads(second.stdout)["skipped"] == made
