from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stapes.data.prepare import write_reading
from stapes.data.released import read_corpus
from stapes.data.sample import load_manifest
from stapes.data.stats import collect_stats
from stapes.errors import AudioError, ManifestError, StapesError, UsageError


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """SALMONN's second stage over two corpora, in the form that NOTA's trainer reads it."""
    root = tmp_path / "corpora"
    for name in ("LibriSpeech/train-clean-100/1/2/1-2-0000.flac", "wav_caps/FreeSound/12.flac", "own/a.flac"):
        (root / name).parent.mkdir(parents=True)
        soundfile.write(root / name, np.random.default_rng(0).uniform(-0.5, 0.5, 8_000), 16_000)
    speech = "/LibriSpeech/train-clean-100/1/2/1-2-0000.flac"
    entries = [
        {"path": speech, "text": "Chapter one", "task": "asr"},
        {"path": speech, "text": "Female.", "task": "gender_recognition"},
        {"path": "wav_caps/FreeSound/12.flac", "text": "Yes.", "task": "QA", "Q": "Does it rain?"},
        {"path": "own/a.flac", "text": "A bell.", "task": "audiocaption_v2", "expand_wav": [speech]},
    ]
    (tmp_path / "stage2_train.json").write_text(json.dumps({"annotation": entries}))
    return root


def test_annotation_files_of_salmonn(annotated, tmp_path):
    reading = read_corpus("salmonn", annotated, annotations=[tmp_path / "stage2_train.json"])
    prepared = write_reading(reading, tmp_path / "out")
    assert prepared.manifests == {tmp_path / "out/stage2_train.jsonl": 4}
    samples = load_manifest(tmp_path / "out/stage2_train.jsonl")
    assert [(s.task, s.prompt, s.source, s.duration_s) for s in samples] == [
        ("asr", None, "LibriSpeech", 0.5),
        ("qa", "What is the gender of the speaker?", "LibriSpeech", 0.5),
        ("qa", "Does it rain?", "WavCaps", 0.5),
        ("audiocaption", None, "own", 1.1),
    ]


def test_the_pies_of_a_prepared_corpus(annotated, tmp_path):
    reading = read_corpus("salmonn", annotated, annotations=[tmp_path / "stage2_train.json"])
    figures = collect_stats(list(write_reading(reading, tmp_path / "out").manifests))
    assert figures["total"]["tasks"] == {"qa": 2, "asr": 1, "audiocaption": 1}
    assert figures["total"]["sources"] == {"LibriSpeech": 2, "WavCaps": 1, "own": 1}


def test_annotated_audio_that_is_missing_is_named(annotated, tmp_path):
    (annotated / "own/a.flac").unlink()
    reading = read_corpus("salmonn", annotated, annotations=[tmp_path / "stage2_train.json"])
    with pytest.raises(AudioError, match=r"stage2_train\.json:annotation\[3\]: .*own/a\.flac is not there; get the"):
        write_reading(reading, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_root_of_another_corpus_is_recognised(tmp_path):
    (tmp_path / "clotho").mkdir()
    (tmp_path / "clotho/clotho_captions_development.csv").write_text("file_name\n")
    with pytest.raises(ManifestError) as caught:
        read_corpus("librispeech", tmp_path / "clotho")
    assert str(caught.value) == (
        f"{tmp_path / 'clotho'}: not the root of LibriSpeech, which holds train-clean-100, test-other, … and "
        "SPEAKERS.TXT; found clotho_captions_development.csv; it looks like Clotho: `stapes data prepare clotho`"
    )


def test_options_that_do_not_fit_the_corpus(tmp_path):
    with pytest.raises(UsageError, match="--annotation goes with `salmonn`"):
        read_corpus("clotho", tmp_path, annotations=[tmp_path])
    with pytest.raises(UsageError, match="--annotation goes with `salmonn`, which wants one or more"):
        read_corpus("salmonn", tmp_path)
    with pytest.raises(UsageError, match="--split: annotation files are taken whole"):
        read_corpus("salmonn", tmp_path, ["train"], [tmp_path])


def test_what_is_there_is_not_written_over(annotated, tmp_path):
    reading = read_corpus("salmonn", annotated, annotations=[tmp_path / "stage2_train.json"])
    (tmp_path / "out").mkdir()
    with pytest.raises(StapesError, match="out: is there already; remove it or name another folder"):
        write_reading(reading, tmp_path / "out")
