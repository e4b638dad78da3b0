"""JSON and folders that are either complete or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import StapesError


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` so that a reader sees the old content or the new, never half of it.

    Raises:
        OSError: disk full, no permission; the old content is then still there and no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one path from sharing a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        StapesError: if the file is missing or not JSON; the message names file and line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StapesError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise StapesError(f"{path}: not UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise StapesError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


@contextmanager
def staged_folder(final: Path, keep_on_error: bool = False) -> Iterator[Path]:
    """Give a working folder `NAME.partial` that becomes `final` only when the block ends without an error.

    Args:
        final: the folder to make; it must not exist yet.
        keep_on_error: leave `NAME.partial` behind for a later attempt to resume from (training checkpoints).

    Raises:
        FileExistsError: if `final` exists already.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists already")
    partial = final.with_name(final.name + ".partial")
    if not keep_on_error and partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.rename(final)
    except BaseException:
        if not keep_on_error:
            shutil.rmtree(partial, ignore_errors=True)
        raise
