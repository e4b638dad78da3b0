"""WavCaps, AudioCaps, Clotho and MusicNet as they are released."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import AudioError, ManifestError
from ..files import read_json
from .audio import probe
from .prepare import CLIPS, Cut, Reading, index_audio, not_a_root, parts_there
from .sample import Sample

_WAVCAPS = {"AudioSet_SL": "as", "BBC_Sound_Effects": "bbc", "FreeSound": "fsd", "SoundBible": "sb"}
_WAVCAPS_MAX_S = 180.0
"""Longer clips are left out, as SALMONN does (arXiv 2310.13289, section 4.2)."""

_BLACKLISTED = {"AudioSet": "AudioSet_SL", "FreeSound": "FreeSound"}
_NO_BLACKLIST = (
    "nothing for being in a test set: blacklist_exclude_test_ac.json is not there, get it from WavCaps' GitHub"
)
_AUDIOCAPS = {"train": "stage2", "val": "valid", "test": "test"}
_AUDIOCAPS_MAX_S = 12.0
_CLOTHO = {"development": "train", "validation": "valid", "evaluation": "test"}

_MUSICNET_RATE_HZ = 44_100
"""Of the labels' times, which are in samples."""

_WINDOW_S, _SHORTEST_S = 30.0, 5.0
# MusicNet numbers instruments as General MIDI does, from 1.
_INSTRUMENTS = {
    1: "piano",
    7: "harpsichord",
    41: "violin",
    42: "viola",
    43: "cello",
    44: "double bass",
    61: "horn",
    69: "oboe",
    71: "bassoon",
    72: "clarinet",
    74: "flute",
}


def read_wavcaps(root: Path, splits: Sequence[str] = ()) -> Reading:
    """Read WavCaps (arXiv 2303.17395): `json_files/SOURCE/*_final.json` and FLAC files below folders named SOURCE….

    All of it becomes `stage1` (audiocaption). Clips of more than 180 s are left out, and those that the makers list as
    part of other corpora's test sets in `blacklist_exclude_test_ac.json`, wherever it lies below the root.

    Args:
        root: the folder with `json_files`.
        splits: any of AudioSet_SL, BBC_Sound_Effects, FreeSound, SoundBible; empty for all that are there.

    Raises:
        ManifestError: if the root is another corpus's, a source is not there, or a json is broken.
    """
    tables = {source: root / "json_files" / source / f"{short}_final.json" for source, short in _WAVCAPS.items()}
    sources = parts_there("WavCaps", tables, splits)
    if not sources:
        raise not_a_root("WavCaps", root, "json_files/AudioSet_SL/as_final.json, …")
    blacklist = next(iter(sorted(root.rglob("blacklist_exclude_test_ac.json"))), None)
    barred = _read_blacklist(blacklist) if blacklist else {}
    notes = [] if blacklist else [_NO_BLACKLIST]
    samples, missing = [], []
    num_long = num_barred = 0
    for source in sources:
        audio = index_audio(
            [path for path in root.rglob(f"{source}*") if path.is_dir() and "json_files" not in path.parts]
        )
        for row in _rows_of_json(tables[source]):
            name = str(row["id"]).removesuffix(".wav")
            if float(row.get("duration") or 0) > _WAVCAPS_MAX_S:
                num_long += 1
            elif name in barred.get(source, ()):
                num_barred += 1
            elif name not in audio:
                missing.append(f"{tables[source]}: no {name}.flac below a folder {source}…")
            else:
                text = str(row["caption"]).strip()
                samples.append(
                    Sample(f"{source}-{name}", audio[name], None, "audiocaption", None, text, source="WavCaps")
                )
    notes += [f"{num_long} clips of more than {_WAVCAPS_MAX_S:g} s"] if num_long else []
    notes += [f"{num_barred} clips of other corpora's test sets"] if num_barred else []
    return Reading({"stage1": samples}, missing=missing, notes=notes)


def _rows_of_json(table: Path) -> list[dict[str, Any]]:
    document = read_json(table)
    rows = document.get("data") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and "id" in row and "caption" in row for row in rows
    ):
        raise ManifestError(f'{table}: not a table of WavCaps; wanted {{"data": [{{"id", "caption", "duration"}}]}}')
    return rows


def _read_blacklist(path: Path) -> dict[str, set[str]]:
    lists = read_json(path)
    if not isinstance(lists, dict) or not all(isinstance(names, list) for names in lists.values()):
        raise ManifestError(f"{path}: not a list of WavCaps' clips by source; take the one of the release")
    return {
        _BLACKLISTED.get(str(source), str(source)): {str(name).removesuffix(".wav") for name in names}
        for source, names in lists.items()
    }


def read_audiocaps(root: Path, splits: Sequence[str] = ()) -> Reading:
    """Read AudioCaps: `train.csv`, `val.csv`, `test.csv` (audiocap_id, youtube_id, start_time, caption) and clips.

    The csv files lie in the root or in `dataset/`. A clip is found by its name, below `train/`, `val/`, `test/` or
    anywhere else in the root: AUDIOCAPID, YOUTUBEID, YOUTUBEID_START or YOUTUBEID_START_END (seconds or
    milliseconds), with or without a `Y` in front, which is how the usual downloaders name them.

    `train` becomes `stage2` (audiocaption), `val` `valid`. `test` becomes `test`, a line a row with one reference, as
    NOTA scores it, and `test_clips`, a line a clip with all its references.

    Raises:
        ManifestError: if the root is another corpus's, a part is not there, or a csv lacks a column.
    """
    folder = root / "dataset" if (root / "dataset" / "train.csv").exists() else root
    tables = {part: folder / f"{part}.csv" for part in _AUDIOCAPS}
    parts = parts_there("AudioCaps", tables, splits)
    if not parts:
        raise not_a_root("AudioCaps", root, "train.csv, val.csv, test.csv")
    audio = index_audio([root])
    manifests: dict[str, list[Sample]] = {}
    missing: list[str] = []
    for part in parts:
        in_part = index_audio([root / part])
        samples = []
        for number, row in _rows_of_csv(tables[part], ("audiocap_id", "youtube_id", "start_time", "caption")):
            names = list(_names_of_clip(row))
            path = next((found[name] for found in (in_part, audio) for name in names if name in found), None)
            if path is None:
                missing.append(f"{tables[part]}:{number}: no {names[1]}.* below {root}")
            elif (fault := _untrimmed(path)) is not None:
                missing.append(fault)
            else:
                id_, text = row["audiocap_id"], row["caption"].strip()
                samples.append(Sample(id_, path, None, "audiocaption", None, text, source="AudioCaps"))
        manifests[_AUDIOCAPS[part]] = samples
        if part == "test":
            manifests["test_clips"] = _gather(samples)
    return Reading(manifests, missing=missing)


def _names_of_clip(row: dict[str, str]) -> Iterator[str]:
    start = int(float(row["start_time"] or 0))
    yield row["audiocap_id"]
    for youtube_id in (row["youtube_id"], f"Y{row['youtube_id']}"):
        yield youtube_id
        yield f"{youtube_id}_{start}"
        yield f"{youtube_id}_{start}_{start + 10}"
        yield f"{youtube_id}_{1000 * start}_{1000 * (start + 10)}"


def _untrimmed(path: Path) -> str | None:
    try:
        duration_s = probe(path).duration_s
    except AudioError as error:
        return str(error)
    if duration_s <= _AUDIOCAPS_MAX_S:
        return None
    return f"{path}: lasts {duration_s:.0f} s; AudioCaps' clips last 10 s: cut it at start_time"


def _gather(samples: Sequence[Sample]) -> list[Sample]:
    """Make one sample of those about one clip: the first caption is its target, the others further references."""
    groups: dict[Path, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.audio, []).append(sample)
    return [_with_references(group[0], [sample.target for sample in group[1:]]) for group in groups.values()]


def _with_references(sample: Sample, references: Sequence[str]) -> Sample:
    return Sample(
        sample.id,
        sample.audio,
        None,
        sample.task,
        None,
        sample.target,
        source=sample.source,
        references=tuple(references),
    )


def read_clotho(root: Path, splits: Sequence[str] = ()) -> Reading:
    """Read Clotho (Zenodo 3490684): `clotho_captions_PART.csv` (file_name, caption_1 … caption_5) and `PART/*.wav`.

    `development` becomes `stage1` and `stage2`, a line a caption (audiocaption); `validation` and `evaluation` become
    `valid` and `test`, a line a clip with five references.

    Raises:
        ManifestError: if the root is another corpus's, a part is not there, or a csv lacks a column.
    """
    tables = {part: root / f"clotho_captions_{part}.csv" for part in _CLOTHO}
    parts = parts_there("Clotho", tables, splits)
    if not parts:
        raise not_a_root("Clotho", root, "clotho_captions_development.csv, …")
    manifests: dict[str, list[Sample]] = {}
    missing: list[str] = []
    columns = tuple(f"caption_{number}" for number in range(1, 6))
    for part in parts:
        folders = (root / part, root / f"clotho_audio_{part}" / part, root / f"clotho_audio_{part}")
        samples = []
        for number, row in _rows_of_csv(tables[part], ("file_name", *columns)):
            name = row["file_name"].strip()
            path = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if path is None:
                missing.append(f"{tables[part]}:{number}: no `{name}` in {root / part}")
                continue
            captions = [row[column].strip() for column in columns]
            spoken = [
                Sample(f"{path.stem}-{count}", path, None, "audiocaption", None, caption, source="Clotho")
                for count, caption in enumerate(captions, start=1)
            ]
            samples += spoken if part == "development" else [_with_references(spoken[0], captions[1:])]
        names = ("stage1", "stage2") if part == "development" else (_CLOTHO[part],)
        manifests |= dict.fromkeys(names, samples)
    return Reading(manifests, missing=missing)


def _rows_of_csv(table: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Go through a csv's rows with the line each ends in."""
    with table.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        absent = [column for column in columns if column not in (rows.fieldnames or ())]
        if absent:
            there = ", ".join(rows.fieldnames or ()) or "nothing"
            raise ManifestError(
                f"{table}: has no column {', '.join(absent)}; found {there:.80}: is this the right corpus?"
            )
        for row in rows:
            if any(row[column] is None for column in columns):
                raise ManifestError(f"{table}:{rows.line_num}: has fewer columns than the heading; download it again")
            yield rows.line_num, row


def read_musicnet(root: Path, splits: Sequence[str] = ()) -> Reading:
    """Read MusicNet: `train_data/ID.wav`, `train_labels/ID.csv`, the same for `test`, and `musicnet_metadata.csv`.

    Recordings are cut into 30 s. Each piece is asked which instruments play in it, by the labels of its notes; the
    first of a recording also for composer and ensemble, where the metadata is there. `train` becomes `stage2` (qa),
    `test` `test`. SALMONN's own questions were written by an LLM and come with its annotation files only.

    Args:
        root: the folder with `train_data`, or the one above it, `musicnet`'s.
        splits: `train`, `test`; empty for what is there.

    Raises:
        ManifestError: if the root is another corpus's, a part is not there, or a csv lacks a column.
    """
    folder = root / "musicnet" if (root / "musicnet").is_dir() else root
    labels = {part: folder / f"{part}_labels" for part in ("train", "test")}
    parts = parts_there("MusicNet", labels, splits)
    if not parts:
        raise not_a_root("MusicNet", root, "train_data/, train_labels/ and musicnet_metadata.csv")
    metadata = next((path for path in (root, folder) if (path / "musicnet_metadata.csv").exists()), None)
    table = metadata / "musicnet_metadata.csv" if metadata else None
    facts = {row["id"]: row for _, row in _rows_of_csv(table, ("id", "composer", "ensemble"))} if table else {}
    notes = [] if table else ["musicnet_metadata.csv is not there: no questions about composer and ensemble"]
    manifests: dict[str, list[Sample]] = {}
    cuts: dict[Path, list[Cut]] = {}
    missing: list[str] = []
    for part in parts:
        samples = manifests.setdefault("stage2" if part == "train" else "test", [])
        for notes_of in sorted(labels[part].glob("*.csv")):
            audio = folder / f"{part}_data" / f"{notes_of.stem}.wav"
            if not audio.is_file():
                missing.append(f"{notes_of}: {audio} is not there")
                continue
            try:
                duration_s = probe(audio).duration_s
            except AudioError as error:
                missing.append(f"{notes_of}: {error}")
                continue
            pieces = _music_pieces(notes_of, duration_s)
            cuts[audio] = [cut for cut, _ in pieces]
            samples += _music_questions(pieces, facts.get(notes_of.stem))
    return Reading(manifests, cuts, missing, notes)


def _music_pieces(labels: Path, duration_s: float) -> list[tuple[Cut, list[str]]]:
    """List the pieces of a recording that hold notes, with the instruments that begin one in them."""
    heard: dict[int, set[int]] = {}
    for number, row in _rows_of_csv(labels, ("start_time", "instrument")):
        try:
            start_s, instrument = int(row["start_time"]) / _MUSICNET_RATE_HZ, int(row["instrument"])
        except ValueError:
            raise ManifestError(f"{labels}:{number}: start_time and instrument are whole numbers") from None
        if instrument not in _INSTRUMENTS:
            raise ManifestError(f"{labels}:{number}: instrument {instrument} is none of MusicNet's")
        heard.setdefault(int(start_s // _WINDOW_S), set()).add(instrument)
    pieces = []
    for index, instruments in sorted(heard.items()):
        start_s, end_s = index * _WINDOW_S, min((index + 1) * _WINDOW_S, duration_s)
        if end_s - start_s >= _SHORTEST_S:
            cut = Cut(f"{labels.stem}-{index:03d}.flac", start_s, end_s)
            pieces.append((cut, [_INSTRUMENTS[number] for number in sorted(instruments)]))
    return pieces


def _music_questions(pieces: Sequence[tuple[Cut, list[str]]], facts: dict[str, str] | None) -> Iterator[Sample]:
    def ask(cut: Cut, about: str, question: str, answer: str) -> Sample:
        stem = cut.name.removesuffix(".flac")
        return Sample(f"{stem}-{about}", CLIPS / cut.name, None, "qa", question, answer, source="MusicNet")

    for index, (cut, instruments) in enumerate(pieces):
        listed = " and ".join(filter(None, (", ".join(instruments[:-1]), instruments[-1])))
        yield ask(cut, "instruments", "Which instruments are playing?", listed)
        if index == 0 and facts:
            yield ask(cut, "composer", "Who composed this music?", facts["composer"].strip())
            yield ask(cut, "ensemble", "What kind of ensemble is playing?", facts["ensemble"].strip().lower())
