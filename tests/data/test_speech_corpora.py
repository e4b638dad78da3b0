from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stapes.data import speech_corpora
from stapes.data.prepare import Prepared, write_reading
from stapes.data.sample import load_manifest, load_sample_audio
from stapes.data.speech_corpora import read_gigaspeech, read_librispeech
from stapes.errors import AudioError, ManifestError


def write_audio(path: Path, seconds: float = 1.0, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, round(16_000 * seconds))
    soundfile.write(path, noise, 16_000, **how)


def names(prepared: Prepared) -> dict[str, int]:
    return {path.name: count for path, count in prepared.manifests.items()}


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """Eleven utterances of one woman to learn from, one to be tested on."""
    root = tmp_path / "LibriSpeech"
    for number in range(11):
        write_audio(root / f"train-clean-100/103/1240/103-1240-{number:04d}.flac", 0.5 + number / 10)
    lines = [f"103-1240-{number:04d} CHAPTER ONE" for number in range(10)] + ["103-1240-0010 MISSUS LYNDE'S"]
    (root / "train-clean-100/103/1240/103-1240.trans.txt").write_text("\n".join(lines) + "\n")
    write_audio(root / "test-other/1688/142285/1688-142285-0000.flac")
    (root / "test-other/1688/142285/1688-142285.trans.txt").write_text("1688-142285-0000 THERE'S IRON\n")
    (root / "SPEAKERS.TXT").write_text(
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
        "103  | F | train-clean-100  | 25.20 | Karen Savage\n"
        "1688 | M | test-other       |  8.05 | Michael | of the pipe\n"
    )
    return root


@pytest.mark.parametrize("above", [False, True])
def test_librispeech(librispeech, tmp_path, above):
    reading = read_librispeech(librispeech.parent if above else librispeech)
    prepared = write_reading(reading, tmp_path / "out")
    assert names(prepared) == {"stage1.jsonl": 11, "stage2.jsonl": 13, "test-other.jsonl": 1}
    assert json.loads((tmp_path / "out/stage1.jsonl").read_text().splitlines()[1]) == {
        "id": "103-1240-0001",
        "audio": "../LibriSpeech/train-clean-100/103/1240/103-1240-0001.flac",
        "duration_s": 0.6,
        "task": "asr",
        "target": "chapter one",
        "source": "LibriSpeech",
    }
    (test,) = load_manifest(tmp_path / "out/test-other.jsonl")
    assert (test.id, test.target) == ("1688-142285-0000", "there's iron")
    assert load_sample_audio(test).shape == (16_000,)
    assert "librispeech-lexicon.txt is not there" in prepared.notes[0]


def test_one_utterance_of_ten_is_asked_for_the_speakers_gender(librispeech):
    gender = [sample for sample in read_librispeech(librispeech).manifests["stage2"] if sample.task == "qa"]
    assert [(s.id, s.prompt, s.target) for s in gender] == [
        ("103-1240-0000-gender", "What is the gender of the speaker?", "female"),
        ("103-1240-0010-gender", "What is the gender of the speaker?", "female"),
    ]


def test_phones_are_those_of_the_lexicon_without_stress(librispeech):
    (librispeech / "librispeech-lexicon.txt").write_text(
        "CHAPTER\tCH AE1 P T ER0\nCHAPTER\tCH AE1 P T AH0\nONE\tW AH1 N\nMISSUS\tM IH1 S IH0 Z\n"
    )
    reading = read_librispeech(librispeech)
    phones = [sample for sample in reading.manifests["stage2"] if sample.id.endswith("-phones")]
    assert len(phones) == 10
    assert (phones[0].task, phones[0].target) == ("qa", "CH AE P T ER W AH N")
    assert list(reading.notes) == ["1 utterances without phones: a word is not in librispeech-lexicon.txt"]


def test_librispeech_parts_are_chosen(librispeech):
    assert list(read_librispeech(librispeech, ["test-other"]).manifests) == ["test-other"]
    with pytest.raises(ManifestError, match="--split test-otter: LibriSpeech has no such part; its parts are train-c"):
        read_librispeech(librispeech, ["test-otter"])
    with pytest.raises(
        ManifestError, match=r"--split dev-clean: .* is not there; of LibriSpeech, train-clean-100, test"
    ):
        read_librispeech(librispeech, ["dev-clean"])


def test_librispeech_refuses_what_is_broken(librispeech, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(ManifestError, match="other: not the root of LibriSpeech, which holds train-clean-100"):
        read_librispeech(tmp_path / "other")
    with pytest.raises(ManifestError, match="gone: no such folder"):
        read_librispeech(tmp_path / "gone")
    (librispeech / "SPEAKERS.TXT").write_text("103 | X | train-clean-100 | 25.20 | Karen Savage\n")
    with pytest.raises(ManifestError, match=r"SPEAKERS\.TXT: tells no sex"):
        read_librispeech(librispeech)
    (librispeech / "test-other/1688/142285/1688-142285.trans.txt").write_text("1688-142285-0000\n")
    with pytest.raises(ManifestError, match=r"142285\.trans\.txt:1: `1688-142285-0000`; wanted an utterance's id"):
        read_librispeech(librispeech)


def test_missing_audio_is_an_error_or_left_out_and_named(librispeech, tmp_path):
    (librispeech / "train-clean-100/103/1240/103-1240-0003.flac").unlink()
    (librispeech / "train-clean-100/103/1240/103-1240-0004.flac").write_bytes(b"not audio")
    reading = read_librispeech(librispeech)
    with pytest.raises(AudioError) as caught:
        write_reading(reading, tmp_path / "out")
    texts = librispeech / "train-clean-100/103/1240/103-1240.trans.txt"
    assert str(caught.value) == (
        f"1 samples have no usable audio: {texts}:4: 103-1240-0003.flac is not beside it; get the files, or leave such "
        "samples out with `--skip-missing`"
    )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
    prepared = write_reading(reading, tmp_path / "out", skip_missing=True)
    assert names(prepared) == {"stage1.jsonl": 9, "stage2.jsonl": 10, "test-other.jsonl": 1}
    assert [message.partition(": ")[0] for message in prepared.missing[1:]] == ["stage1", "stage2"]
    assert "103-1240-0004.flac: not audio" in prepared.missing[1]


def segment(number: int, begin: float, end: float, text: str, *subsets: str) -> dict[str, Any]:
    return {
        "sid": f"YOU0000000315_S{number:07d}",
        "speaker": "N/A",
        "begin_time": begin,
        "end_time": end,
        "subsets": [f"{{{subset}}}" for subset in subsets],
        "text_tn": text,
    }


SEGMENTS = [
    segment(1, 2.5, 4.0, "AS THEY'RE LEAVING <COMMA> CAN KASH HELP <QUESTIONMARK>", "XL", "L", "M"),
    segment(0, 0.25, 1.25, "HELLO", "XL"),
    segment(2, 4.0, 5.0, "<MUSIC>", "XL", "L", "M"),
]


@pytest.fixture
def gigaspeech(tmp_path: Path) -> Path:
    root = tmp_path / "GigaSpeech"
    # Tones whose pitch tells the second, in the Opus file of the release.
    time_s = np.arange(6 * 16_000) / 16_000
    (root / "audio/youtube/P0000").mkdir(parents=True)
    tones = 0.4 * np.sin(2 * np.pi * (200 + 200 * np.floor(time_s)) * time_s)
    path = root / "audio/youtube/P0000/YOU0000000315.opus"
    soundfile.write(path, tones, 16_000, format="OGG", subtype="OPUS")
    test = segment(7, 1.0, 2.0, "RAIN <PERIOD>", "TEST") | {"sid": "POD0000000001_S0000007"}
    audios = [
        {"aid": "YOU0000000315", "path": "audio/youtube/P0000/YOU0000000315.opus", "segments": SEGMENTS},
        {"aid": "POD0000000001", "path": "audio/podcast/P0000/POD0000000001.opus", "segments": [test]},
    ]
    document = {"dataset": "GigaSpeech", "version": "v1.0.0", "audios": audios}
    (root / "GigaSpeech.json").write_text(json.dumps(document))
    write_audio(root / "audio/podcast/P0000/POD0000000001.opus", 3.0, format="OGG", subtype="OPUS")
    return root


def test_gigaspeech_segments_become_files(gigaspeech, tmp_path, monkeypatch):
    monkeypatch.setattr(speech_corpora, "_CHUNK", 100)  # the table is read piece by piece
    reading = read_gigaspeech(gigaspeech, ["M", "TEST"])
    prepared = write_reading(reading, tmp_path / "out")
    assert names(prepared) == {"stage1.jsonl": 1, "test.jsonl": 1}
    assert prepared.notes == ("1 segments of silence, music or noise",)
    assert json.loads((tmp_path / "out/stage1.jsonl").read_text()) == {
        "id": "YOU0000000315_S0000001",
        "audio": "clips/YOU0000000315/YOU0000000315_S0000001.flac",
        "duration_s": 1.5,
        "task": "asr",
        "target": "as they're leaving can kash help",
        "source": "GigaSpeech",
    }
    (sample,) = load_manifest(tmp_path / "out/stage1.jsonl")
    whole, rate = soundfile.read(gigaspeech / "audio/youtube/P0000/YOU0000000315.opus")
    np.testing.assert_allclose(load_sample_audio(sample), whole[int(2.5 * rate) : 4 * rate], atol=2e-3)


def test_gigaspeech_subsets_hold_one_another(gigaspeech):
    assert [sample.target for sample in read_gigaspeech(gigaspeech, ["XL"]).manifests["stage1"]][1] == "hello"
    with pytest.raises(ManifestError, match="--split M XL: each subset holds the smaller ones"):
        read_gigaspeech(gigaspeech, ["M", "XL"])
    with pytest.raises(ManifestError, match=r"GigaSpeech\.json: holds no segment of DEV; name what it holds"):
        read_gigaspeech(gigaspeech)


def test_an_interrupted_cut_goes_on(gigaspeech, tmp_path):
    reading = read_gigaspeech(gigaspeech, ["XL", "TEST"])
    damaged = gigaspeech / "audio/podcast/P0000/POD0000000001.opus"
    content = damaged.read_bytes()
    damaged.write_bytes(b"")
    with pytest.raises(AudioError, match=r"test: sample `POD0000000001_S0000007`: .*cannot be read"):
        write_reading(reading, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    clips = sorted((tmp_path / "out.partial/clips").rglob("*.flac"))
    assert [clip.stem for clip in clips] == ["YOU0000000315_S0000000", "YOU0000000315_S0000001"]
    made = clips[0].stat().st_mtime_ns
    damaged.write_bytes(content)
    shutil.copytree(tmp_path / "out.partial", tmp_path / "other.partial")
    write_reading(reading, tmp_path / "out")
    assert (tmp_path / "out/clips/YOU0000000315/YOU0000000315_S0000000.flac").stat().st_mtime_ns == made
    assert not (tmp_path / "out.partial").exists()
    write_reading(read_gigaspeech(gigaspeech, ["TEST"]), tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").glob("*.jsonl")] == ["test.jsonl"]


def test_gigaspeech_audio_that_is_missing_or_too_short_is_named(gigaspeech, tmp_path):
    (gigaspeech / "audio/podcast/P0000/POD0000000001.opus").unlink()
    table = gigaspeech / "GigaSpeech.json"
    table.write_text(table.read_text().replace('"end_time": 4.0', '"end_time": 40.0'))
    reading = read_gigaspeech(gigaspeech, ["M", "TEST"])
    with pytest.raises(AudioError, match=r"POD0000000001\.opus, of segment POD0000000001_S0000007, is not there"):
        write_reading(reading, tmp_path / "out")
    with pytest.raises(ManifestError, match="no sample is left, 2 have no usable audio"):
        write_reading(reading, tmp_path / "out", skip_missing=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("audios", "audio"), "has no list `audios`"),
        (lambda text: text[:-200], "ends in the middle of its list"),
        (lambda text: text.replace("text_tn", "text"), "audio `YOU0000000315` lacks path, aid or segments with"),
    ],
)
def test_a_broken_gigaspeech_table_is_refused(gigaspeech, change, message):
    table = gigaspeech / "GigaSpeech.json"
    table.write_text(change(table.read_text()))
    with pytest.raises(ManifestError, match=message):
        read_gigaspeech(gigaspeech)
