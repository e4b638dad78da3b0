"""Measure a model in a process of its own, and survive whatever happens to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from .. import errors
from ..errors import StapesError
from ..files import write_json
from .protocols import BenchSettings


def bench_model(
    folder: Path,
    settings: BenchSettings,
    *,
    out_path: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 600.0,
) -> dict[str, Any]:
    """Measure latency, memory and size of one model folder in a fresh process.

    Args:
        folder: a model folder.
        settings: what to measure, and how often.
        out_path: where to write the result as JSON; not written if None.
        on_progress: called with the number of steps done and in all, loading being the first.
        timeout_s: longest time for a single step (loading, or one run) before it counts as hung.

    Returns:
        the content of `bench.json`; times in milliseconds, memory in bytes.

    Raises:
        StapesError: if the folder or audio cannot be used, or the process dies or hangs.
    """
    job = json.dumps({"folder": str(folder), "settings": asdict(settings)}, default=str)
    receiver, sender = Pipe(duplex=False)
    with receiver, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "stapes.bench.runner", job, "--fd", str(sender.fileno())]
        with sender:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[sender.fileno()]
            )
        try:
            result = _receive(receiver, on_progress, timeout_s)
            if result is None:
                process.wait()
                raise StapesError(f"{folder}: {_cause_of_death(process.returncode, log)}")
        except TimeoutError:
            raise StapesError(
                f"{folder}: the measuring process gave no sign of life for {timeout_s:g} s and was ended; "
                "give it a shorter clip or fewer tokens, or a machine with less to do"
            ) from None
        finally:
            process.kill()
            process.wait()
    if out_path is not None:
        write_json(out_path, result)
    return result


def _receive(
    receiver: Connection, on_progress: Callable[[int, int], None] | None, timeout_s: float
) -> dict[str, Any] | None:
    """Return the result, or None if the other end went away without one."""
    while True:
        if not receiver.poll(timeout_s):
            raise TimeoutError
        try:
            message = json.loads(receiver.recv_bytes())
        except EOFError:
            return None
        match message:
            case {"result": result}:
                return result
            case {"error": {"kind": kind, "message": text}}:
                raise getattr(errors, kind)(text)
            case {"done": done, "of": of}:
                if on_progress is not None:
                    on_progress(done, of)


def _cause_of_death(code: int, log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    last_line = f" ({lines[-1].strip()})" if lines else ""
    if code == -signal.SIGKILL:
        return (
            "the measuring process was killed by SIGKILL, most likely because memory ran out; "
            "free memory, or measure a smaller or int8 model"
        )
    if "memory" in last_line.lower():
        return f"the measuring process ran out of memory{last_line}; free memory, or measure a smaller or int8 model"
    if code < 0:
        return (
            f"the measuring process was ended by {signal.Signals(-code).name}{last_line}; "
            "native code failed: check the memory that is left, and the installed torch"
        )
    return (
        f"the measuring process failed with exit code {code}{last_line}; "
        "`python -m stapes.bench.runner`, run by hand, shows the whole traceback"
    )
