"""LibriSpeech and GigaSpeech as they are released."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ManifestError
from .prepare import CLIPS, Cut, Reading, not_a_root, parts_there
from .sample import Sample

_LIBRISPEECH = (
    *("train-clean-100", "train-clean-360", "train-other-500"),
    *("dev-clean", "dev-other", "test-clean", "test-other"),
)
_GENDER_EACH = 10
"""One utterance of so many is asked for the speaker's gender: 0.03 M of 0.28 M, as SALMONN's second stage has it."""

_GENDER = {"F": "female", "M": "male"}
_GENDER_QUESTION = "What is the gender of the speaker?"
_PHONE_QUESTION = "Provide the phonetic transcription for the speech."
_LEXICON = "librispeech-lexicon.txt"

_GIGASPEECH_TRAIN = ("XS", "S", "M", "L", "XL")
_GIGASPEECH_DEFAULT = ("M", "DEV", "TEST")
"""M has 0.91 M segments, the number that SALMONN trains on."""

_TAG = re.compile(r"<[A-Z]+>")
_GARBAGE = re.compile(r"<(?:SIL|MUSIC|NOISE|OTHER)>")
_CHUNK = 1 << 22


def read_librispeech(root: Path, splits: Sequence[str] = ()) -> Reading:
    """Read LibriSpeech (OpenSLR 12): `PART/SPEAKER/CHAPTER/*.flac`, texts in `SPEAKER-CHAPTER.trans.txt`.

    `train-*` becomes `stage1` (asr) and `stage2`: asr, for one utterance of ten the speaker's gender (`SPEAKERS.TXT`),
    and, if `librispeech-lexicon.txt` (OpenSLR 11) lies in the root, the phones of utterances whose words it all holds:
    each word's first pronunciation, without stress. The other parts keep their names. Texts are lower-cased.

    Args:
        root: the folder `LibriSpeech`, or the one above it.
        splits: parts to take; empty for all that are there.

    Raises:
        ManifestError: if the root is another corpus's, a part is not there, or a text is broken.
    """
    if (root / "LibriSpeech").is_dir():
        root = root / "LibriSpeech"
    folders = {part: root / part for part in _LIBRISPEECH}
    parts = parts_there("LibriSpeech", folders, splits)
    if not parts:
        raise not_a_root("LibriSpeech", root, "train-clean-100, test-other, … and SPEAKERS.TXT")
    manifests: dict[str, list[Sample]] = {}
    missing: list[str] = []
    train: list[Sample] = []
    for part in parts:
        samples = list(_utterances(folders[part], missing))
        if not samples:
            raise ManifestError(f"{folders[part]}: holds no SPEAKER/CHAPTER/*.trans.txt; unpack the part again")
        if part.startswith("train"):
            train += samples
        else:
            manifests[part] = samples
    notes: list[str] = []
    if train:
        phones = list(_phone_samples(train, root / _LEXICON, notes))
        manifests = {"stage1": train, "stage2": [*train, *_gender_samples(train, root, notes), *phones], **manifests}
    return Reading(manifests, missing=missing, notes=notes)


def _utterances(folder: Path, missing: list[str]) -> Iterator[Sample]:
    for texts in sorted(folder.glob("*/*/*.trans.txt")):
        there = {path.name for path in texts.parent.iterdir()}
        for number, line in enumerate(texts.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            name, _, text = line.partition(" ")
            if not text.strip():
                raise ManifestError(f"{texts}:{number}: `{line}`; wanted an utterance's id and its text")
            if f"{name}.flac" not in there:
                missing.append(f"{texts}:{number}: {name}.flac is not beside it")
                continue
            audio = texts.parent / f"{name}.flac"
            yield Sample(name, audio, None, "asr", None, text.strip().lower(), source="LibriSpeech")


def _gender_samples(samples: Sequence[Sample], root: Path, notes: list[str]) -> Iterator[Sample]:
    table = root / "SPEAKERS.TXT"
    if not table.exists():
        notes.append(f"no questions about gender: {table} is not there")
        return
    rows = [line.split("|") for line in table.read_text(encoding="utf-8").splitlines() if not line.startswith(";")]
    sexes = {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
    for sample in samples[::_GENDER_EACH]:
        speaker = sample.id.partition("-")[0]
        if sexes.get(speaker) not in _GENDER:
            raise ManifestError(f"{table}: tells no sex (F, M) of speaker {speaker}; take the table of this release")
        yield _ask(sample, "gender", _GENDER_QUESTION, _GENDER[sexes[speaker]])


def _phone_samples(samples: Sequence[Sample], lexicon: Path, notes: list[str]) -> Iterator[Sample]:
    if not lexicon.exists():
        notes.append(f"no phone recognition: {lexicon} is not there; it is resource 11 of openslr.org")
        return
    phones: dict[str, str] = {}
    for line in lexicon.read_text(encoding="utf-8").splitlines():
        word, *sounds = line.split()
        phones.setdefault(word.lower(), re.sub(r"\d", "", " ".join(sounds)))
    unknown = 0
    for sample in samples:
        spoken = [phones.get(word) for word in sample.target.split()]
        if all(spoken):
            yield _ask(sample, "phones", _PHONE_QUESTION, " ".join(filter(None, spoken)))
        else:
            unknown += 1
    if unknown:
        notes.append(f"{unknown} utterances without phones: a word is not in {lexicon.name}")


def _ask(sample: Sample, about: str, question: str, answer: str) -> Sample:
    return Sample(f"{sample.id}-{about}", sample.audio, None, "qa", question, answer, source=sample.source)


def read_gigaspeech(root: Path, splits: Sequence[str] = ()) -> Reading:
    """Read GigaSpeech: `GigaSpeech.json` and long `audio/*/P????/*.opus`, out of which segments are cut.

    A segment becomes a FLAC file: a sample is a file in all of stapes, and seeking in a long Opus file for each batch
    would cost more than the disk (about 60 MB an hour). A training subset becomes `stage1` (asr), `DEV` and `TEST`
    become `dev` and `test`. Texts are lower-cased, without the tags of punctuation; segments of silence, music and
    noise are left out.

    Args:
        root: the folder with `GigaSpeech.json`.
        splits: one of XS, S, M, L, XL and any of DEV, TEST; empty for M, DEV and TEST.

    Raises:
        ManifestError: if the root is another corpus's, or the json is broken or holds nothing of a subset.
    """
    table = root / "GigaSpeech.json"
    if not table.is_file():
        raise not_a_root("GigaSpeech", root, "GigaSpeech.json and audio/")
    wanted = parts_there("GigaSpeech", dict.fromkeys((*_GIGASPEECH_TRAIN, "DEV", "TEST"), table), splits)
    wanted = wanted if splits else list(_GIGASPEECH_DEFAULT)
    if len(train := [part for part in wanted if part in _GIGASPEECH_TRAIN]) > 1:
        raise ManifestError(f"--split {' '.join(train)}: each subset holds the smaller ones; name one")
    manifest_of = {part: "stage1" if part in train else part.lower() for part in wanted}
    manifests: dict[str, list[Sample]] = {name: [] for name in manifest_of.values()}
    cuts: dict[Path, list[Cut]] = {}
    missing: list[str] = []
    num_garbage = 0
    for audio in _stream_audios(table):
        path = root / str(audio["path"])
        is_there = path.is_file()
        for segment in audio["segments"]:
            part = next((part for part in wanted if f"{{{part}}}" in segment["subsets"]), None)
            if part is None:
                continue
            if _GARBAGE.search(segment["text_tn"]):
                num_garbage += 1
            elif not is_there:
                missing.append(f"{path}, of segment {segment['sid']}, is not there")
            else:
                cut = Cut(f"{audio['aid']}/{segment['sid']}.flac", segment["begin_time"], segment["end_time"])
                cuts.setdefault(path, []).append(cut)
                text = " ".join(_TAG.sub(" ", segment["text_tn"]).lower().split())
                sample = Sample(segment["sid"], CLIPS / cut.name, None, "asr", None, text, source="GigaSpeech")
                manifests[manifest_of[part]].append(sample)
    empty = [part for part in wanted if not manifests[manifest_of[part]]]
    if empty and not missing:
        raise ManifestError(f"{table}: holds no segment of {', '.join(empty)}; name what it holds with --split")
    notes = [f"{num_garbage} segments of silence, music or noise"] if num_garbage else []
    return Reading(manifests, cuts, missing, notes)


def _stream_audios(table: Path) -> Iterator[dict[str, Any]]:
    """Go through the list `audios` one object at a time: the whole file is gigabytes of Python objects."""
    decoder = json.JSONDecoder()
    with table.open(encoding="utf-8") as stream:
        text = ""
        while (begin := re.search(r'"audios"\s*:\s*\[', text)) is None:
            if not (chunk := stream.read(_CHUNK)):
                raise ManifestError(f"{table}: has no list `audios`; take GigaSpeech.json of the release")
            text += chunk
        text = text[begin.end() :]
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            try:
                audio, end = decoder.raw_decode(text)
                _check_audio(table, audio)
            except json.JSONDecodeError:
                if not (chunk := stream.read(max(_CHUNK, len(text)))):
                    raise ManifestError(
                        f"{table}: ends in the middle of its list `audios`; download it again"
                    ) from None
                text += chunk
                continue
            yield audio
            text = text[end:]


def _check_audio(table: Path, audio: Any) -> None:
    try:
        for segment in (audio["path"], audio["aid"], audio["segments"])[2]:
            text, begin_s, end_s = segment["text_tn"], segment["begin_time"], segment["end_time"]
            if not (isinstance(text, str) and begin_s < end_s and segment["sid"] and segment["subsets"] is not None):
                raise ValueError
    except (KeyError, TypeError, ValueError):
        name = audio.get("aid") if isinstance(audio, dict) else audio
        raise ManifestError(
            f"{table}: audio `{name!s:.60}` lacks path, aid or segments with sid, begin_time < end_time, subsets and "
            "text_tn; take GigaSpeech.json of the release"
        ) from None
