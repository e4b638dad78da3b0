"""How long a user waits for the program to begin: `import stapes` and `stapes --help` in fresh processes.

Goals: 0.3 s and 0.5 s, and neither loads torch. The time is that of the whole process, the interpreter's own included.

    python benchmarks/import_time.py [--repeats 10]

Prints one JSON document; exits 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from stapes.environment import environment

# Each says at its end whether torch was loaded; SystemExit is how typer ends `--help`.
IMPORT = "import stapes, sys; sys.exit('torch' in sys.modules)"
HELP = """
import sys
sys.argv = ["stapes", "--help"]
from stapes.cli import main
try:
    main()
except SystemExit as done:
    sys.exit(bool(done.code) or "torch" in sys.modules)
"""
GOALS_S = {"import stapes": (IMPORT, 0.3), "stapes --help": (HELP, 0.5)}


def time_process(script: str) -> float:
    """Return the seconds of a fresh process that runs `script`.

    Raises:
        CalledProcessError: if it fails or has loaded torch.
    """
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats

    results = {}
    for name, (script, goal_s) in GOALS_S.items():
        time_process(script)  # the first fills the disk cache and writes byte code
        seconds = [time_process(script) for _ in range(repeats)]
        median_s = statistics.median(seconds)
        results[name] = {
            "seconds_p50": round(median_s, 3),
            "seconds_max": round(max(seconds), 3),
            "goal_s": goal_s,
            "met": median_s < goal_s,
        }
    print(json.dumps({**results, "repeats": repeats, "environment": environment()}, indent=2))
    sys.exit(not all(result["met"] for result in results.values()))


if __name__ == "__main__":
    main()
