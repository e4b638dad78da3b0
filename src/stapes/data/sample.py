"""Manifests: what there is to hear, and what is to be said about it."""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, assert_never, cast, get_args

import numpy as np

from ..errors import AudioError, ManifestError
from ..files import write_text
from .audio import SAMPLE_RATE_HZ, load_audio, probe

Task = Literal["asr", "audiocaption", "qa"]
TASKS: tuple[Task, ...] = get_args(Task)

GAP_S = 0.1
"""Silence between the clips of a sample that has several (SALMONN's `expand_wav`)."""

_KEYS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "audio": str,
    "duration_s": (int, float),
    "task": str,
    "prompt": str,
    "target": str,
    "source": str,
    "extra_audio": list,
    "references": list,
}
_REQUIRED = ("id", "audio", "target")

# The published tasks of the SALMONN family that are one of ours, and the fixed question (its test_prompt.json and
# train_prompt.json) of those that have one; `{Q}` stands for the question that comes with the sample.
_SALMONN_TASKS: dict[str, tuple[Task, str | None]] = {
    "asr": ("asr", None),
    "audiocaption": ("audiocaption", None),
    "audiocaption_v2": ("audiocaption", None),
    "QA": ("qa", "{Q}"),
    "gender_QA": ("qa", "{Q}"),
    "inference_QA": ("qa", "{Q}"),
    "gender_recognition": ("qa", "What is the gender of the speaker?"),
    "phone_recognition": ("qa", "Provide the phonetic transcription for the speech."),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One thing to learn from or to be tested on.

    Attributes:
        id: unique in its manifest.
        audio: path of the audio file.
        duration_s: length of the audio in seconds, extra audio and gaps included, if the manifest says it.
        task: `asr`, `audiocaption` or `qa`.
        prompt: the sample's own question or instruction; always there for `qa`.
        target: what the model is to say.
        source: where it comes from: a corpus, a speaker, a collection.
        extra_audio: further clips, to be heard after `audio` with 0.1 s of silence between them.
        references: what would be as right as `target`; captions are scored against all, training uses `target` alone.
        where: `manifest.jsonl:12`, for messages.
        others: what else the manifest line holds; not used, but written back by `write_manifest`.
    """

    id: str
    audio: Path
    duration_s: float | None
    task: Task
    prompt: str | None
    target: str
    source: str | None = None
    extra_audio: tuple[Path, ...] = ()
    references: tuple[str, ...] = ()
    where: str = field(default="", compare=False)
    others: Mapping[str, Any] = field(default_factory=dict, compare=False)


def load_manifest(path: str | Path, audio_root: Path | None = None) -> list[Sample]:
    """Read a manifest: JSON Lines, or one JSON document of the SALMONN family. No audio is opened.

    A line is an object with `id`, `audio` (relative to the manifest's folder), `target` and, if wanted, `task` (asr),
    `duration_s`, `prompt`, `source`, `extra_audio` and `references`. A SALMONN document is `{"annotation": [{"path",
    "text", "task"?, "Q"?, "testset_id"?, "expand_wav"?}]}`. Keys that are not known are ignored, with one warning.

    Args:
        path: the manifest.
        audio_root: where the paths of a SALMONN document begin, also those that begin with `/`, as its `prefix` does;
            None for the document's folder.

    Raises:
        ManifestError: for a missing or empty file, or the first line that is wrong.
    """
    samples = []
    for entry in parse_manifest(path, audio_root):
        if isinstance(entry, ManifestError):
            raise entry
        samples.append(entry)
    return samples


def parse_manifest(path: str | Path, audio_root: Path | None = None) -> Iterator[Sample | ManifestError]:
    """Go through a manifest line by line; a line that is wrong is given as an error, and the next ones follow.

    Raises:
        ManifestError: if there is no such file, it holds no sample, or it is one broken JSON document.
    """
    path = Path(path)
    try:
        # A byte-order mark is no part of the text; bytes that are not UTF-8 are reported with their line.
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such manifest") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}; a manifest is a JSON Lines file") from error
    annotations = _salmonn_annotations(path, content)
    lines = _numbered_lines(content) if annotations is None else enumerate(annotations)
    num_entries = 0
    for number, raw in lines:
        num_entries += 1
        try:
            if annotations is None:
                yield _parse_line(path, f"{path}:{number}", cast(bytes, raw))
            else:
                yield _parse_annotation(path.parent, audio_root, f"{path}:annotation[{number}]", number, raw)
        except ManifestError as error:
            yield error
    if num_entries == 0:
        raise ManifestError(f"{path}: holds no samples")


def write_manifest(samples: Iterable[Sample], path: str | Path) -> None:
    """Write samples as JSON Lines, atomically; audio paths are made relative to the new manifest's folder.

    A path that shares nothing with that folder but the root stays absolute.
    """
    path = Path(path)
    folder = path.parent.resolve()
    lines = [json.dumps(_to_line(sample, folder), ensure_ascii=False, allow_nan=False) for sample in samples]
    write_text(path, "".join(line + "\n" for line in lines))


def load_sample_audio(sample: Sample) -> np.ndarray:
    """Read a sample's audio (N,), float32, mono, 16 kHz; several clips are joined with 0.1 s of silence.

    Raises:
        AudioError: naming manifest line, sample and file.
    """
    gap = np.zeros(round(GAP_S * SAMPLE_RATE_HZ), np.float32)
    with _named(sample):
        pieces = [load_audio(sample.audio)]
        for extra in sample.extra_audio:
            pieces += [gap, load_audio(extra)]
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def sample_duration_s(sample: Sample) -> float:
    """Tell how long a sample's audio is: what the manifest says, else what the files' headers say.

    Raises:
        AudioError: if the manifest does not say it and a file cannot be read, as `probe_sample` does.
    """
    return probe_sample(sample) if sample.duration_s is None else sample.duration_s


def probe_sample(sample: Sample) -> float:
    """Read the headers of a sample's audio, and tell how long it is in seconds, gaps included.

    Raises:
        AudioError: naming manifest line, sample and file.
    """
    clips = (sample.audio, *sample.extra_audio)
    with _named(sample):
        return sum(probe(clip).duration_s for clip in clips) + GAP_S * len(sample.extra_audio)


@contextmanager
def _named(sample: Sample) -> Iterator[None]:
    """Have errors about audio name manifest line and sample."""
    try:
        yield
    except AudioError as error:
        raise AudioError(
            f"{sample.where}: sample `{sample.id}`: {error}; `stapes data check --drop-bad` writes a clean manifest"
        ) from error


def transcript_of(sample: Sample) -> str | None:
    """Tell what is said in a clip: its target for `asr`, nothing for `audiocaption`; None for `qa`: not known."""
    match sample.task:
        case "asr":
            return sample.target
        case "audiocaption":
            return ""
        case "qa":
            return None
        case _:
            assert_never(sample.task)


def _numbered_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _salmonn_annotations(path: Path, content: bytes) -> list[Any] | None:
    """Return the entries of a SALMONN document, or None if the file is JSON Lines."""
    first_line = next((line for _, line in _numbered_lines(content)), b"")
    if path.suffix != ".json" and not first_line.replace(b" ", b"").startswith(b'{"annotation"'):
        return None
    try:
        document = json.loads(content)
    except ValueError as error:
        try:
            json.loads(first_line)
        except ValueError:
            raise ManifestError(f"{path}: not JSON: {error}") from None
        return None  # JSON Lines under the name of a JSON document
    if not isinstance(document, dict) or "annotation" not in document:
        if b"\n" not in content.strip():
            return None
        raise ManifestError(f'{path}: has no key `annotation`; wanted {{"annotation": […]}} or one sample a line')
    if not isinstance(document["annotation"], list):
        raise ManifestError(f"{path}: `annotation` is {_kind(document['annotation'])}; wanted a list of samples")
    return document["annotation"]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is none of its numbers")


def _parse_line(path: Path, where: str, line: bytes) -> Sample:
    try:
        entry = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
        if b"\\ud" in line.lower():
            # Half a character of two can be written so, but is no text and cannot be written down again.
            json.dumps(entry, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ManifestError(f"{where}: not text: half of a character is missing beside \\u{ord(half):04x}") from None
    except ValueError as error:
        raise ManifestError(f"{where}: not JSON: {error}") from None
    entry = _require_object(where, entry, _REQUIRED)
    others = {key: value for key, value in entry.items() if key not in _KEYS}
    if others:
        _warn_unknown(str(path), tuple(sorted(others)))
    for key, value in entry.items():
        if key in _KEYS and value is not None:
            _require_type(where, key, value, _KEYS[key])
    task = entry.get("task") or "asr"
    if task not in TASKS:
        raise ManifestError(f"{where}: {_unknown_task(task, TASKS)}")
    duration_s = entry.get("duration_s")
    if duration_s is not None and not 0 < duration_s <= sys.float_info.max:
        raise ManifestError(f"{where}: `duration_s` is {duration_s!r:.60}; wanted seconds above 0, or leave it out")
    prompt = entry.get("prompt")
    if task == "qa" and not prompt:
        raise ManifestError(f"{where}: sample `{entry['id']}` is a `qa` without `prompt`; add its question")
    extra_audio = entry.get("extra_audio") or []
    for extra in extra_audio:
        _require_type(where, "extra_audio[…]", extra, str)
    references = entry.get("references") or []
    for reference in references:
        _require_type(where, "references[…]", reference, str)
    return Sample(
        id=entry["id"],
        audio=path.parent / entry["audio"],
        duration_s=None if duration_s is None else float(duration_s),
        task=task,
        prompt=prompt,
        target=entry["target"],
        source=entry.get("source"),
        extra_audio=tuple(path.parent / extra for extra in extra_audio),
        references=tuple(references),
        where=where,
        others=others,
    )


def _parse_annotation(folder: Path, audio_root: Path | None, where: str, number: int, entry: Any) -> Sample:
    entry = _require_object(where, entry, ("path", "text"))
    for key in ("path", "text", "task", "Q"):
        if entry.get(key) is not None:
            _require_type(where, key, entry[key], str)
    published = entry.get("task") or "asr"
    if published not in _SALMONN_TASKS:
        raise ManifestError(f"{where}: {_unknown_task(published, tuple(_SALMONN_TASKS))}")
    task, prompt = _SALMONN_TASKS[published]
    if prompt == "{Q}":
        prompt = entry.get("Q")
        if not prompt:
            raise ManifestError(f"{where}: is a `{published}` without `Q`; add its question")
    expand_wav = entry.get("expand_wav") or []
    _require_type(where, "expand_wav", expand_wav, list)
    for extra in expand_wav:
        _require_type(where, "expand_wav[…]", extra, str)

    def audio(name: str) -> Path:
        return folder / name if audio_root is None else audio_root / name.lstrip("/")

    stem = Path(entry["path"]).stem
    return Sample(
        # One clip may have several entries, so a file's name alone is not unique.
        id=str(entry.get("testset_id") or f"{stem}-{number}"),
        audio=audio(entry["path"]),
        duration_s=None,
        task=task,
        prompt=prompt,
        target=entry["text"],
        source=entry.get("source") if isinstance(entry.get("source"), str) else None,
        extra_audio=tuple(map(audio, expand_wav)),
        where=where,
    )


def _to_line(sample: Sample, folder: Path) -> dict[str, Any]:
    line = {
        "id": sample.id,
        "audio": _relative(sample.audio, folder),
        "duration_s": sample.duration_s,
        "task": sample.task,
        "prompt": sample.prompt,
        "target": sample.target,
        "source": sample.source,
        "extra_audio": [_relative(extra, folder) for extra in sample.extra_audio] or None,
        "references": list(sample.references) or None,
    }
    return {key: value for key, value in line.items() if value is not None} | dict(sample.others)


def _relative(audio: Path, folder: Path) -> str:
    absolute = audio.parent.resolve() / audio.name
    if os.path.commonpath([absolute, folder]) == absolute.anchor:
        return str(absolute)
    return Path(os.path.relpath(absolute, folder)).as_posix()


def _require_object(where: str, entry: Any, required: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ManifestError(f"{where}: is {_kind(entry)}; wanted an object with {_list(required)}")
    missing = tuple(key for key in required if entry.get(key) is None)
    if missing:
        raise ManifestError(f"{where}: has no {_list(missing)}; its keys are {_list(tuple(entry)) or 'none'}")
    return entry


def _require_type(where: str, key: str, value: Any, wanted: type | tuple[type, ...]) -> None:
    if not isinstance(value, wanted) or isinstance(value, bool):
        kind = {str: "a text", list: "a list", (int, float): "a number"}[wanted]
        raise ManifestError(f"{where}: `{key}` is {_kind(value)} ({value!r:.60}); wanted {kind}")


def _unknown_task(task: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(task, known, n=1)
    guess = f"did you mean `{close[0]}`? " if close else ""
    return f"`{task}` is not a task; {guess}known tasks are {_list(known)}"


@cache
def _warn_unknown(path: str, keys: tuple[str, ...]) -> None:
    _log.warning("%s: ignores %s; known keys are %s", path, _list(keys), _list(tuple(_KEYS)))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _list(keys: tuple[str, ...]) -> str:
    return ", ".join(f"`{key}`" for key in keys)
