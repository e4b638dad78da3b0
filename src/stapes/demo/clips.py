"""The example clips of the page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.sample import TASKS, Task
from ..errors import ManifestError


@dataclass(frozen=True)
class Clip:
    """A clip to try.

    Attributes:
        id: unique in its folder.
        audio: path of the audio file.
        task: what to do with it: `asr`, `audiocaption` or `qa`.
        title: what its button says.
        question: what to ask about it, if its task is a question.
        target: what is right to answer, if known.
        credit: maker and licence, as far as the manifest says them.
    """

    id: str
    audio: Path
    task: Task
    title: str
    question: str | None
    target: str | None
    credit: str


def load_clips(manifest: Path) -> list[Clip]:
    """Read a manifest: an object a line with `id`, `audio` (relative to its folder) and, if wanted, `task` (asr),
    `prompt`, `target`, `title`, `source` and `licence`.

    Raises:
        ManifestError: for a missing manifest or audio file, or the first line that is wrong.
    """
    try:
        # At line feeds alone, as other manifests: JSON may hold what else ends a line in Unicode.
        lines = manifest.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ManifestError(f"{manifest}: cannot be read: {error.strerror}; name a manifest of clips") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{manifest}: not UTF-8 text: {error.reason}; name a manifest of clips") from None
    return [_clip(manifest, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _clip(manifest: Path, number: int, line: str) -> Clip:
    where = f"{manifest}:{number}"
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ManifestError(f"{where}: not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise ManifestError(f"{where}: holds no object; wanted one with `id` and `audio`")
    for key, value in entry.items():
        if key in ("id", "audio", "task", "prompt", "target", "title") and not isinstance(value, str | None):
            raise ManifestError(f"{where}: `{key}` is {value!r}; wanted text")
    for key in ("id", "audio"):
        if not entry.get(key):
            raise ManifestError(f"{where}: has no `{key}`")
    audio = manifest.parent / entry["audio"]
    if not audio.is_file():
        raise ManifestError(f"{where}: clip `{entry['id']}` wants `{entry['audio']}`, which does not exist")
    task = entry.get("task") or "asr"
    if task not in TASKS:
        raise ManifestError(f"{where}: task `{task}` is none of {', '.join(TASKS)}")
    question = entry.get("prompt") if task == "qa" else None
    return Clip(entry["id"], audio.resolve(), task, _title(entry), question, entry.get("target"), _credit(entry))


def _title(entry: dict[str, Any]) -> str:
    return entry.get("title") or entry["id"].replace("_", " ").replace("-", " ")


def _credit(entry: dict[str, Any]) -> str:
    return ", ".join(str(entry[key]) for key in ("source", "licence") if entry.get(key))
