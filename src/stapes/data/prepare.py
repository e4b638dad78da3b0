"""From a corpus as its makers release it to manifests: what is common to all corpora."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import soundfile

from ..errors import AudioError, ManifestError, StapesError
from ..files import staged_folder
from .audio import UnusableAudioError, probe
from .sample import GAP_S, Sample, write_manifest

CLIPS = Path("clips")
"""Where, in the new folder, what is cut out of longer files lies."""

AUDIO_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3", ".m4a")

_SHORT_BY_S = 0.1
_NAMED = 3


@dataclass(frozen=True)
class Cut:
    """A piece of a long file, to become a file of its own, so that a sample is a file in every other part of stapes.

    Attributes:
        name: of the new file, below `CLIPS`.
        start_s, end_s: where it begins and ends, in seconds.
    """

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Reading:
    """What a corpus holds, before anything is written.

    Attributes:
        manifests: name of the manifest, without `.jsonl` → its samples; audio is a file, or a path below `CLIPS`.
        cuts: long file → what is to be cut out of it.
        missing: one message for each sample without audio.
        notes: what was left out on purpose, and how much of it.
    """

    manifests: Mapping[str, list[Sample]]
    cuts: Mapping[Path, list[Cut]] = field(default_factory=dict)
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Prepared:
    """What `write_reading` made.

    Attributes:
        manifests: each new manifest → its number of samples.
        missing: one message for each sample that was left out for want of usable audio.
        notes: what was left out on purpose.
    """

    manifests: Mapping[Path, int]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def write_reading(
    reading: Reading,
    out_dir: Path,
    *,
    skip_missing: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Write a corpus's manifests, and the clips that are cut out of long files, into a new folder.

    The header of every file is read, for its length. The folder gets its name when all is written; where clips are
    cut, `OUT.partial` stays after an interruption and the next attempt goes on from there.

    Args:
        reading: the corpus.
        out_dir: the folder to make.
        skip_missing: leave out samples whose audio is missing or unusable; else they are an error.
        progress: called with (files done, files in all).

    Raises:
        StapesError: if the folder is there already.
        AudioError: if audio is missing or unusable and `skip_missing` is not set.
        ManifestError: if nothing is left.
    """
    if out_dir.exists():
        raise StapesError(f"{out_dir}: is there already; remove it or name another folder")
    missing = list(reading.missing)
    _refuse(missing, skip_missing)
    with staged_folder(out_dir, keep_on_error=bool(reading.cuts)) as work:
        for manifest in work.glob("*.jsonl"):
            manifest.unlink()  # of an earlier attempt, which may have been of other parts
        lengths = _lengths(reading, work, progress)
        written: dict[Path, int] = {}
        for name, samples in reading.manifests.items():
            kept = []
            for sample in samples:
                clips = [lengths[clip] for clip in (sample.audio, *sample.extra_audio)]
                fault = next((length for length in clips if isinstance(length, str)), None)
                if fault is not None:
                    missing.append(f"{name}: sample `{sample.id}`: {fault}")
                    continue
                duration_s = sum(length for length in clips if isinstance(length, float)) + GAP_S * (len(clips) - 1)
                audio = work / sample.audio if _is_cut(sample.audio) else sample.audio
                kept.append(replace(sample, audio=audio, duration_s=round(duration_s, 3)))
            if kept:
                write_manifest(kept, work / f"{name}.jsonl")
                written[out_dir / f"{name}.jsonl"] = len(kept)
        _refuse(missing, skip_missing)
        if not written:
            raise ManifestError(f"{out_dir}: no sample is left, {len(missing)} have no usable audio; check the corpus")
    return Prepared(written, tuple(missing), tuple(reading.notes))


def parts_there(corpus: str, folders: Mapping[str, Path], wanted: Sequence[str]) -> list[str]:
    """Choose parts of a corpus: those that are wanted, or all that are on disk.

    Args:
        corpus: its name, for messages.
        folders: part → the file or folder in which it begins.
        wanted: parts that were asked for; empty for all that are there.

    Raises:
        ManifestError: if a part is unknown, or not there, or none is.
    """
    for part in wanted:
        if part not in folders:
            raise ManifestError(f"--split {part}: {corpus} has no such part; its parts are {', '.join(folders)}")
        if not folders[part].exists():
            there = ", ".join(name for name, path in folders.items() if path.exists()) or "none"
            raise ManifestError(
                f"--split {part}: {folders[part]} is not there; of {corpus}, {there} is: get that part too"
            )
    return list(wanted) or [part for part, path in folders.items() if path.exists()]


def not_a_root(corpus: str, root: Path, wants: str) -> ManifestError:
    """Make the error for a folder that is not the corpus's."""
    if not root.exists():
        return ManifestError(f"{root}: no such folder; wanted the root of {corpus}: {wants}")
    found = sorted(path.name for path in root.iterdir())[:5] if root.is_dir() else []
    return ManifestError(
        f"{root}: not the root of {corpus}, which holds {wants}; found {', '.join(found) or 'nothing'}"
    )


def index_audio(folders: Sequence[Path]) -> dict[str, Path]:
    """Find audio files below some folders: name without suffix → path, the first of equal names."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                found.setdefault(path.stem, path)
    return found


def _is_cut(audio: Path) -> bool:
    return not audio.is_absolute() and audio.parts[0] == CLIPS.name


def _refuse(missing: Sequence[str], skip_missing: bool) -> None:
    if missing and not skip_missing:
        more = f" (and {len(missing) - _NAMED} more)" if len(missing) > _NAMED else ""
        raise AudioError(
            f"{len(missing)} samples have no usable audio: {'; '.join(missing[:_NAMED])}{more}; get the files, or "
            "leave such samples out with `--skip-missing`"
        )


def _lengths(reading: Reading, work: Path, progress: Callable[[int, int], None] | None) -> dict[Path, float | str]:
    """Cut what is to be cut and read every other file's header; seconds, or what is wrong, by audio path."""
    samples = [sample for group in reading.manifests.values() for sample in group]
    clips = dict.fromkeys(clip for sample in samples for clip in (sample.audio, *sample.extra_audio))
    whole = [clip for clip in clips if not _is_cut(clip)]
    lengths: dict[Path, float | str] = {}
    total = len(whole) + len(reading.cuts)
    # Threads: libsndfile leaves Python's lock alone.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for number, (path, length) in enumerate(zip(whole, pool.map(_length, whole), strict=True), start=1):
                lengths[path] = length
                if progress:
                    progress(number, total)
            made = pool.map(lambda item: list(_cut(item[0], item[1], work / CLIPS)), reading.cuts.items())
            for number, clips in enumerate(made, start=len(whole) + 1):
                lengths |= {CLIPS / name: length for name, length in clips}
                if progress:
                    progress(number, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return lengths


def _length(path: Path) -> float | str:
    try:
        return probe(path).duration_s
    except UnusableAudioError as error:
        return str(error)


def _cut(path: Path, cuts: Sequence[Cut], folder: Path) -> Iterator[tuple[str, float | str]]:
    """Write pieces of one file as FLAC, 16 bits, at the file's own rate, one after the other."""
    try:
        with soundfile.SoundFile(path) as sound:
            for cut in sorted(cuts, key=lambda cut: cut.start_s):
                yield cut.name, _write_cut(sound, cut, path, folder / cut.name)
    except (OSError, soundfile.LibsndfileError) as error:
        for cut in cuts:
            yield cut.name, f"{path}: cannot be read: {error}"


def _write_cut(sound: soundfile.SoundFile, cut: Cut, path: Path, target: Path) -> float | str:
    rate = sound.samplerate
    start, num_frames = round(cut.start_s * rate), round((cut.end_s - cut.start_s) * rate)
    if target.exists():
        return soundfile.info(target).duration
    if start >= sound.frames:
        return f"{path}: ends at {sound.frames / rate:.2f} s, before {cut.start_s:.2f} s, where `{cut.name}` begins"
    sound.seek(start)
    samples = sound.read(num_frames, dtype="float32", always_2d=True).mean(axis=1)
    if len(samples) < num_frames - _SHORT_BY_S * rate:
        return f"{path}: ends at {sound.frames / rate:.2f} s, before {cut.end_s:.2f} s, where `{cut.name}` ends"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    # An interruption must not leave half a clip under the name of a whole one.
    soundfile.write(temporary, samples, rate, format="FLAC", subtype="PCM_16")
    temporary.replace(target)
    return len(samples) / rate
