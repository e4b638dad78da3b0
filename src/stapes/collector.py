"""When Python looks for objects that nobody needs any more."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let Python collect nothing within.

    Modules, tables of words and weights stay. To search them for garbage again and again while they grow is a sixth of
    the time from `stapes transcribe` to a model that is ready (docs/log.md, 2026-11-30).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
