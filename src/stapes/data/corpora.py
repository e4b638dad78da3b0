"""Any corpus of the `datasets` library to audio files and a manifest, without torchcodec."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ..errors import AudioError, ManifestError, StapesError
from ..files import staged_folder
from .audio import SAMPLE_RATE_HZ, load_audio
from .sample import Sample, Task, write_manifest

TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "caption")
"""Where the target is looked for, in this order."""


@dataclass(frozen=True)
class Corpus:
    """Where samples are to be found.

    Attributes:
        source: a folder written by `save_to_disk`, a folder of audio files with `metadata.csv` or of parquet files,
            or the name of a dataset on the Hub.
        split: `train`, `test`, …
        config: which of a Hub dataset's configurations, often a language.
        audio: the column with the audio.
        text: the column with the target; the first of `TEXT_COLUMNS` that is there.
        id: the column with the id; `id` if it is there, else ids are made from split and row number.
        prompt: the column with the question, for the task `qa`.
    """

    source: str
    split: str = "train"
    config: str | None = None
    audio: str = "audio"
    text: str | None = None
    id: str | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Imported:
    """What `import_dataset` made.

    Attributes:
        manifest: the new manifest.
        num_samples: its lines.
        left_out: one message for each row that could not be used.
    """

    manifest: Path
    num_samples: int
    left_out: tuple[str, ...]


def import_dataset(
    corpus: Corpus,
    out_dir: str | Path,
    *,
    task: Task = "asr",
    limit: int | None = None,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Write `OUT/SPLIT/*.ogg|flac|wav|mp3` and `OUT/SPLIT.jsonl`; the audio's bytes are copied as they are.

    Rows are streamed: neither a local nor a Hub corpus is held in memory or stored twice.

    Args:
        corpus: where the samples are.
        out_dir: a folder; it may hold other splits already.
        task: of all samples.
        limit: take only so many rows.
        skip_bad: leave out rows with unusable audio or without text, and list them; else the first is an error.
        progress: called with the number of rows done.

    Raises:
        ManifestError: if the corpus cannot be loaded, lacks the split or a column, or has no usable row.
        AudioError: if a row's audio cannot be used and `skip_bad` is not set.
        StapesError: if `OUT/SPLIT` is there already.
    """
    rows = _open_corpus(corpus)
    corpus = _find_columns(corpus, rows, task)
    out_dir = Path(out_dir)
    folder, manifest = out_dir / corpus.split, out_dir / f"{corpus.split}.jsonl"
    for path in (folder, manifest):
        if path.exists():
            raise StapesError(f"{path}: is there already; remove it or name another folder")
    samples: dict[str, Sample] = {}
    left_out: list[str] = []
    with staged_folder(folder) as work:
        for number, row in enumerate(islice(_with_class_names(rows), limit)):
            try:
                sample = _take_row(row, number, corpus, task, work)
                if sample.id in samples:  # of some corpora `id` names the text, and several people read it
                    sample = replace(sample, id=f"{sample.id}-{number:06d}")
                samples[sample.id] = sample
            except StapesError as error:
                message = f"{corpus.source}, split {corpus.split}, row {number}: {error}"
                if not skip_bad:
                    kind = AudioError if isinstance(error, AudioError) else ManifestError
                    raise kind(f"{message}; `--skip-bad` leaves such rows out") from error
                left_out.append(message)
            if progress:
                progress(number + 1)
        if not samples:
            raise ManifestError(f"{corpus.source}: split {corpus.split} gives no usable sample")
    # Last, so that a manifest's existence means that all its audio is there.
    write_manifest([replace(sample, audio=folder / sample.audio.name) for sample in samples.values()], manifest)
    return Imported(manifest, len(samples), tuple(left_out))


class _RawAudio(Audio):
    """The `Audio` feature without its decoder: paths and bytes are handed on as they are.

    `Audio(decode=False)` still asks for torchcodec when it *encodes* the paths of a folder of audio files.
    """

    def encode_example(self, value: Any) -> Any:
        return {"bytes": None, "path": str(value)} if isinstance(value, str | Path) else value


def _open_corpus(corpus: Corpus) -> Dataset | IterableDataset:
    folder = Path(corpus.source)
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            rows = _pick_split(corpus, load_from_disk(corpus.source))
        else:
            source = str(folder.resolve()) if folder.is_dir() else corpus.source
            rows = load_dataset(source, corpus.config, split=corpus.split, streaming=True)
        if rows.features is None:
            return rows
        return rows.cast(
            Features(
                {
                    name: _RawAudio(decode=False) if isinstance(feature, Audio) else feature
                    for name, feature in rows.features.items()
                }
            )
        )
    except StapesError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        raise ManifestError(f"{corpus.source}: cannot be loaded as a corpus: {error}") from error


def _pick_split(corpus: Corpus, loaded: Dataset | DatasetDict) -> Dataset:
    if isinstance(loaded, Dataset):
        return loaded
    if corpus.split not in loaded:
        raise ManifestError(
            f"{corpus.source}: has no split `{corpus.split}`; its splits are {', '.join(map(str, loaded))}"
        )
    return loaded[corpus.split]


def _with_class_names(rows: Dataset | IterableDataset) -> Iterator[dict[str, Any]]:
    """Go through the rows with labels as their names, not as numbers."""
    classes = {name: feature for name, feature in (rows.features or {}).items() if isinstance(feature, ClassLabel)}
    for row in rows:
        row = cast(dict[str, Any], row)
        labels = {name: feature.int2str(row[name]) for name, feature in classes.items() if row[name] is not None}
        yield row | labels


def _find_columns(corpus: Corpus, rows: Dataset | IterableDataset, task: Task) -> Corpus:
    """Fill in the columns that were left open; raise if one that was named is not there."""
    there = rows.column_names or list(next(iter(rows), {}))
    text = corpus.text or next((name for name in TEXT_COLUMNS if name in there), None)
    if text is None:
        raise ManifestError(
            f"{corpus.source}: none of the columns {', '.join(TEXT_COLUMNS)} is there; name the text's column with "
            f"`--text`; there are {', '.join(there)}"
        )
    if task == "qa" and corpus.prompt is None:
        raise ManifestError(f"{corpus.source}: task `qa` needs a column of questions; name it with `--prompt`")
    for option, name in {"audio": corpus.audio, "text": text, "id": corpus.id, "prompt": corpus.prompt}.items():
        if name is not None and name not in there:
            raise ManifestError(f"{corpus.source}: has no column `{name}` (`--{option}`); there are {', '.join(there)}")
    return replace(corpus, text=text, id=corpus.id or ("id" if "id" in there else None))


def _take_row(row: dict[str, Any], number: int, corpus: Corpus, task: Task, work: Path) -> Sample:
    """Copy a row's audio to the folder `work` and describe it."""
    target = _text_of(row, corpus.text)
    if not target:
        raise ManifestError(f"column `{corpus.text}` is empty")
    content = _content_of(row[corpus.audio], corpus)
    # The whole file is decoded here: a corpus that was imported can be read.
    duration_s = load_audio(content, name=f"column `{corpus.audio}`").shape[0] / SAMPLE_RATE_HZ
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        suffix = sound.format.lower()
    path = work / f"{number:06d}.{suffix}"
    path.write_bytes(content)
    return Sample(
        id=_text_of(row, corpus.id) or f"{corpus.split}-{number:06d}",
        audio=path,
        duration_s=round(duration_s, 3),
        task=task,
        prompt=_text_of(row, corpus.prompt) or None,
        target=target,
        source=Path(corpus.source).name,
    )


def _text_of(row: dict[str, Any], column: str | None) -> str:
    value = row[column] if column else None
    return "" if value is None else str(value).strip()


def _content_of(audio: Any, corpus: Corpus) -> bytes:
    """Return the bytes of an audio file from what a row holds: bytes, a path, or the address of a remote file."""
    path = audio.get("path") if isinstance(audio, dict) else audio
    if isinstance(audio, dict) and audio.get("bytes"):
        return audio["bytes"]
    if not isinstance(path, str):
        raise AudioError(f"column `{corpus.audio}` holds neither bytes nor a path but {audio!r:.60}")
    if "://" not in path:
        path = str(Path(corpus.source) / path)
    try:
        with fsspec.open(path, "rb") as stream:
            return cast(BinaryIO, stream).read()
    except OSError as error:
        raise AudioError(f"column `{corpus.audio}`: {path}: cannot be read: {error.strerror or error}") from error
