"""Measure this machine once, in a process of its own, and keep what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ..environment import environment
from ..errors import StapesError
from ..files import write_json
from .rates import calibration_path


def calibrate(num_threads: int) -> Path:
    """Measure this machine's CPU with `num_threads`, which takes a minute or two of an idle machine.

    Returns:
        the file that `read_calibration` reads.

    Raises:
        StapesError: if the measuring process fails.
    """
    command = [sys.executable, "-m", "stapes.plan.probing", str(num_threads)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1].strip() if lines else f"exit code {done.returncode}"
        raise StapesError(f"the measuring process failed ({said}); `{' '.join(command[1:])}` shows the whole of it")
    measured = json.loads(done.stdout)
    path = calibration_path(num_threads)
    write_json(path, {**measured, "environment": {**environment(), "num_threads": num_threads}})
    return path
