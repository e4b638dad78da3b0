"""How the program speaks: results to stdout, everything else to stderr."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    from ..files import to_json

    sys.stdout.write(to_json(value, indent=2, encoding=sys.stdout.encoding or "utf-8") + "\n")


class Says:
    """Print a line to stderr with the time since the start, so that a long run is seen to live."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print `line`."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print(f"{minutes:3d}:{seconds:02d}  {line}", file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """Keep progress bars and advice of the libraries below away from people who use stapes."""
    import logging
    import os
    import warnings

    # Read when tokenizers forks; the advice it prints otherwise is about nothing a user did.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for library in ("torch", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def print_report_table(run_folder: Path) -> None:
    """Print the comparison table of a run to stdout."""
    from ..report import collect, print_table

    print_table(collect([run_folder]))
