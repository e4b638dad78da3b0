"""Which reader reads which corpus, and SALMONN's annotation files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, assert_never

from ..errors import ManifestError, UsageError
from .prepare import Reading
from .sample import Sample, load_manifest
from .sound_corpora import read_audiocaps, read_clotho, read_musicnet, read_wavcaps
from .speech_corpora import read_gigaspeech, read_librispeech

CorpusName = Literal["librispeech", "gigaspeech", "wavcaps", "audiocaps", "clotho", "musicnet", "salmonn"]

_NAMES = {
    "librispeech": "LibriSpeech",
    "gigaspeech": "GigaSpeech",
    "wavcaps": "WavCaps",
    "audiocaps": "AudioCaps",
    "clotho": "Clotho",
    "musicnet": "MusicNet",
}
# What only the root of this corpus holds.
_MARKS: dict[CorpusName, tuple[str, ...]] = {
    "librispeech": ("train-*-*/", "dev-clean/", "test-clean/", "LibriSpeech/"),
    "gigaspeech": ("GigaSpeech.json",),
    "wavcaps": ("json_files/*/*_final.json",),
    "audiocaps": ("val.csv", "dataset/val.csv"),
    "clotho": ("clotho_captions_*.csv",),
    "musicnet": ("train_labels/", "musicnet/train_labels/"),
}


def read_corpus(name: CorpusName, root: Path, splits: Sequence[str] = (), annotations: Sequence[Path] = ()) -> Reading:
    """Read a corpus in the layout in which it is released.

    Args:
        name: which one; `salmonn` is SALMONN's annotation files over any of them.
        root: its folder; for `salmonn` the folder in which the paths of the annotations begin.
        splits: parts to take; empty for all that are there.
        annotations: for `salmonn`, its JSON files.

    Raises:
        ManifestError: if the folder is not the corpus's, or something in it is broken.
        UsageError: if options do not fit the corpus.
    """
    if bool(annotations) != (name == "salmonn"):
        raise UsageError("--annotation goes with `salmonn`, which wants one or more: the JSON files with `annotation`")
    if splits and name == "salmonn":
        raise UsageError("--split: annotation files are taken whole; name those you want")
    # Absolute, so that a path below the new folder is told from one in the corpus.
    root = root.resolve()
    try:
        return _read(name, root, splits, annotations)
    except ManifestError as error:
        if (other := _recognise(root)) not in (None, name) and name != "salmonn":
            raise ManifestError(f"{error}; it looks like {_NAMES[other]}: `stapes data prepare {other}`") from error
        raise


def _read(name: CorpusName, root: Path, splits: Sequence[str], annotations: Sequence[Path]) -> Reading:
    match name:
        case "librispeech":
            return read_librispeech(root, splits)
        case "gigaspeech":
            return read_gigaspeech(root, splits)
        case "wavcaps":
            return read_wavcaps(root, splits)
        case "audiocaps":
            return read_audiocaps(root, splits)
        case "clotho":
            return read_clotho(root, splits)
        case "musicnet":
            return read_musicnet(root, splits)
        case "salmonn":
            return read_salmonn(root, annotations)
        case _:
            assert_never(name)


def read_salmonn(root: Path, annotations: Sequence[Path]) -> Reading:
    """Read SALMONN's annotation files: `{"annotation": [{"path", "text", "task"?, "Q"?}]}`, paths below the root.

    A sample's source is the corpus whose name stands in its path.

    Args:
        root: what the original calls `prefix`; paths that begin with `/` begin there too.
        annotations: the files; each becomes a manifest of its own name.

    Raises:
        ManifestError: if a file is broken, or two have one name.
    """
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; wanted the one in which the annotations' paths begin")
    manifests: dict[str, list[Sample]] = {}
    missing: list[str] = []
    for path in annotations:
        if path.stem in manifests:
            raise ManifestError(f"{path}: another annotation file has this name; prepare them apart")
        kept = []
        for sample in load_manifest(path, audio_root=root):
            absent = next((clip for clip in (sample.audio, *sample.extra_audio) if not clip.is_file()), None)
            if absent is not None:
                missing.append(f"{sample.where}: {absent} is not there")
            else:
                kept.append(replace(sample, source=sample.source or _source(sample.audio.relative_to(root))))
        manifests[path.stem] = kept
    return Reading(manifests, missing=missing)


def _source(audio: Path) -> str | None:
    for part in audio.parts[:-1]:
        for name, spelt in _NAMES.items():
            if name in part.lower().replace("_", ""):
                return spelt
    return audio.parts[0] if len(audio.parts) > 1 else None


def _recognise(root: Path) -> CorpusName | None:
    for name, marks in _MARKS.items():
        for mark in marks:
            if any(path.is_dir() or not mark.endswith("/") for path in root.glob(mark.rstrip("/"))):
                return name
    return None
