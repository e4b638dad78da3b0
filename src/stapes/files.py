"""JSON and folders that are either complete or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import StapesError

_FULL_BELOW_BYTES = 1 << 20


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
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None, encoding: str = "utf-8") -> str:
    """Write `value` as JSON with its letters as they are, or all of them escaped if the encoding lacks one.

    So the name of a file that is no text, which Python holds in halves of characters, can be written and read back.

    Raises:
        ValueError: for NaN and infinity, which are not JSON.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


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


def list_stamps(folder: Path) -> list[tuple[str, int, int]]:
    """List a folder's files with sizes in bytes and dates in ns: what tells a change, without reading gigabytes."""
    return [
        (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


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
    made = [folder for folder in (partial, *partial.parents) if not folder.exists()]
    partial.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.rename(final)
    except BaseException:
        if not keep_on_error:
            shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            # What was made for nothing goes again; `rmdir` leaves alone what holds something.
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn what libraries raise when the disk of `folder` is full, each in words of its own, into an `OSError`.

    safetensors raises a class of its own, torch a RuntimeError about positions in a file; neither is an `OSError`.

    Raises:
        OSError: (ENOSPC) naming the folder, in place of such an exception; others pass.
    """
    try:
        yield
    except (StapesError, OSError):
        raise
    except Exception as error:
        told = os.strerror(errno.ENOSPC) in str(error)
        if told or shutil.disk_usage(folder).free < _FULL_BELOW_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise
