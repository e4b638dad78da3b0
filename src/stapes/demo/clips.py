"""The example clips of the page: those that ship with stapes, or a folder's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ManifestError

MANIFEST = "clips.jsonl"

_PACKAGE = Path(__file__).resolve().parents[1]
# In an installed package, and in a clone.
_SHIPPED = (_PACKAGE / "examples" / "clips", _PACKAGE.parents[1] / "examples" / "clips")


@dataclass(frozen=True)
class Clip:
    """A clip to try.

    Attributes:
        id: unique in its folder.
        audio: path of the audio file.
        title: what its button says.
        question: what to ask about it, if its task is a question.
        target: what is right to answer, if known.
        credit: maker and licence, as far as the manifest says them.
    """

    id: str
    audio: Path
    title: str
    question: str | None
    target: str | None
    credit: str


def shipped_clips() -> Path | None:
    """Return the folder of the clips that ship with stapes, or None where they are not installed."""
    return next((folder for folder in _SHIPPED if (folder / MANIFEST).is_file()), None)


def load_clips(folder: str | Path) -> list[Clip]:
    """Read `clips.jsonl` of a folder: an object a line with `id`, `audio` (relative to the folder) and, if wanted,
    `task`, `prompt`, `target`, `title`, `source` and `licence`.

    Raises:
        ManifestError: for a missing manifest or audio file, or the first line that is wrong.
    """
    manifest = Path(folder) / MANIFEST
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{manifest}: cannot be read ({error}); a folder of examples holds `{MANIFEST}`") from None
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
    question = entry.get("prompt") if entry.get("task") == "qa" else None
    return Clip(entry["id"], audio.resolve(), _title(entry), question, entry.get("target"), _credit(entry))


def _title(entry: dict[str, Any]) -> str:
    return entry.get("title") or entry["id"].replace("_", " ").replace("-", " ")


def _credit(entry: dict[str, Any]) -> str:
    return ", ".join(str(entry[key]) for key in ("source", "licence") if entry.get(key))
