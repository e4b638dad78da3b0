from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stapes.data.prepare import Prepared, write_reading
from stapes.data.sample import load_manifest, load_sample_audio
from stapes.data.sound_corpora import read_audiocaps, read_clotho, read_musicnet, read_wavcaps
from stapes.errors import AudioError, ManifestError


def write_audio(path: Path, seconds: float = 1.0, rate: int = 8_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, round(rate * seconds)), rate)


def write_csv(path: Path, heading: str, rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([heading.split(","), *rows])


def names(prepared: Prepared) -> dict[str, int]:
    return {path.name: count for path, count in prepared.manifests.items()}


@pytest.fixture
def wavcaps(tmp_path: Path) -> Path:
    root = tmp_path / "WavCaps"
    rows = {
        "AudioSet_SL/as": [("Yb0RFKhbpFJA.wav", 10.0, "Wind blows."), ("Ytest0000000.wav", 10.0, "A test clip.")],
        "FreeSound/fsd": [("180913", 3.2, "Rain falls."), ("180914", 180.5, "Hours of rain.")],
    }
    for name, entries in rows.items():
        data = [{"id": id_, "duration": length, "caption": text, "author": "x"} for id_, length, text in entries]
        path = root / "json_files" / f"{name}_final.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"num_captions_per_audio": 1, "data": data}))
    for clip in ("AudioSet_SL_flac/Yb0RFKhbpFJA", "AudioSet_SL_flac/Ytest0000000", "FreeSound_flac/180913"):
        write_audio(root / "waveforms" / f"{clip}.flac")
    blacklist = root / "json_files/blacklist/blacklist_exclude_test_ac.json"
    blacklist.parent.mkdir()
    blacklist.write_text(json.dumps({"AudioSet": ["Ytest0000000.wav"], "FreeSound": []}))
    return root


def test_wavcaps(wavcaps, tmp_path):
    prepared = write_reading(read_wavcaps(wavcaps), tmp_path / "out")
    assert names(prepared) == {"stage1.jsonl": 2}
    assert prepared.notes == ("1 clips of more than 180 s", "1 clips of other corpora's test sets")
    first, second = load_manifest(tmp_path / "out/stage1.jsonl")
    assert (first.id, first.task, first.target) == ("AudioSet_SL-Yb0RFKhbpFJA", "audiocaption", "Wind blows.")
    assert (first.source, second.source, second.duration_s) == ("WavCaps", "WavCaps", 1.0)
    assert load_sample_audio(second).shape == (16_000,)


def test_wavcaps_refuses_what_is_not_its(wavcaps, tmp_path):
    with pytest.raises(
        ManifestError, match=r"not the root of WavCaps, which holds json_files/AudioSet_SL/as_final\.json"
    ):
        read_wavcaps(tmp_path)
    (wavcaps / "waveforms/FreeSound_flac/180913.flac").unlink()
    with pytest.raises(AudioError, match=r"fsd_final\.json: no 180913\.flac below a folder FreeSound"):
        write_reading(read_wavcaps(wavcaps, ["FreeSound"]), tmp_path / "out")
    (wavcaps / "json_files/FreeSound/fsd_final.json").write_text('{"data": [{"id": 1}]}')
    with pytest.raises(ManifestError, match=r"fsd_final\.json: not a table of WavCaps"):
        read_wavcaps(wavcaps)


@pytest.fixture
def audiocaps(tmp_path: Path) -> Path:
    root = tmp_path / "audiocaps"
    heading = "audiocap_id,youtube_id,start_time,caption"
    write_csv(root / "dataset/train.csv", heading, [(91139, "r1nicOVtvkQ", 130, "A woman talks, and an infant cries")])
    write_csv(root / "dataset/val.csv", heading, [(97151, "vfY_TJq7n_U", 130, "Rustling occurs")])
    write_csv(
        root / "dataset/test.csv",
        heading,
        [
            (103549, "7fmOlUlwoNg", 0, "Clanking"),
            (103548, "6BJ455B1aAs", 0, "A rocket flies by"),
            (103541, "7fmOlUlwoNg", 0, "Metal clanks"),
        ],
    )
    # As different downloaders name them.
    write_audio(root / "train/91139.wav")
    write_audio(root / "val/YvfY_TJq7n_U.wav")
    write_audio(root / "test/7fmOlUlwoNg_0_10.flac")
    write_audio(root / "test/6BJ455B1aAs_0_10000.flac")
    return root


def test_audiocaps(audiocaps, tmp_path):
    prepared = write_reading(read_audiocaps(audiocaps), tmp_path / "out")
    assert names(prepared) == {"stage2.jsonl": 1, "valid.jsonl": 1, "test.jsonl": 3, "test_clips.jsonl": 2}
    rows = load_manifest(tmp_path / "out/test.jsonl")
    assert [(row.id, row.target, row.references) for row in rows] == [
        ("103549", "Clanking", ()),
        ("103548", "A rocket flies by", ()),
        ("103541", "Metal clanks", ()),
    ]
    clips = load_manifest(tmp_path / "out/test_clips.jsonl")
    assert [(clip.target, clip.references) for clip in clips] == [
        ("Clanking", ("Metal clanks",)),
        ("A rocket flies by", ()),
    ]
    (train,) = load_manifest(tmp_path / "out/stage2.jsonl")
    assert (train.target, train.source) == ("A woman talks, and an infant cries", "AudioCaps")
    assert load_sample_audio(train).shape == (16_000,)


def test_audiocaps_that_youtube_lost_or_that_was_not_trimmed(audiocaps, tmp_path):
    (audiocaps / "val/YvfY_TJq7n_U.wav").unlink()
    write_audio(audiocaps / "train/91139.wav", 12.5)
    reading = read_audiocaps(audiocaps)
    with pytest.raises(AudioError) as caught:
        write_reading(reading, tmp_path / "out")
    assert str(caught.value) == (
        f"2 samples have no usable audio: {audiocaps / 'train/91139.wav'}: lasts 12 s; AudioCaps' clips last 10 s: cut "
        f"it at start_time; {audiocaps / 'dataset/val.csv'}:2: no vfY_TJq7n_U.* below {audiocaps}; get the files, or "
        "leave such samples out with `--skip-missing`"
    )
    assert names(write_reading(reading, tmp_path / "out", skip_missing=True)) == {
        "test.jsonl": 3,
        "test_clips.jsonl": 2,
    }


def test_a_csv_of_another_corpus_or_cut_off_is_refused(audiocaps):
    write_csv(audiocaps / "dataset/train.csv", "file_name,caption_1", [("a.wav", "b")])
    with pytest.raises(ManifestError, match=r"train\.csv: has no column audiocap_id, youtube_id, start_time, caption;"):
        read_audiocaps(audiocaps)
    (audiocaps / "dataset/train.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,abc\n")
    with pytest.raises(ManifestError, match=r"train\.csv:2: has fewer columns than the heading"):
        read_audiocaps(audiocaps)
    with pytest.raises(
        ManifestError, match="--split test1: AudioCaps has no such part; its parts are train, val, test"
    ):
        read_audiocaps(audiocaps, ["test1"])


CAPTIONS = [f"Caption {number}" for number in range(1, 6)]


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    root = tmp_path / "clotho"
    heading = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    for part, name in (("development", "Distorted AM Radio noise.wav"), ("evaluation", "Santa Motor.wav")):
        write_csv(root / f"clotho_captions_{part}.csv", heading, [(name, *CAPTIONS)])
        write_audio(root / part / name)
    return root


def test_clotho(clotho, tmp_path):
    prepared = write_reading(read_clotho(clotho), tmp_path / "out")
    assert names(prepared) == {"stage1.jsonl": 5, "stage2.jsonl": 5, "test.jsonl": 1}
    train = load_manifest(tmp_path / "out/stage1.jsonl")
    assert [sample.target for sample in train] == CAPTIONS
    assert train[4].id == "Distorted AM Radio noise-5"
    (test,) = load_manifest(tmp_path / "out/test.jsonl")
    assert (test.id, test.target, test.references) == ("Santa Motor-1", "Caption 1", tuple(CAPTIONS[1:]))


def test_clotho_without_a_part_or_a_clip(clotho, tmp_path):
    with pytest.raises(ManifestError, match=r"--split validation: .* of Clotho, development, evaluation is: get that"):
        read_clotho(clotho, ["validation"])
    (clotho / "evaluation/Santa Motor.wav").unlink()
    with pytest.raises(AudioError, match=r"evaluation\.csv:2: no `Santa Motor\.wav` in "):
        write_reading(read_clotho(clotho), tmp_path / "out")


@pytest.fixture
def musicnet(tmp_path: Path) -> Path:
    root = tmp_path / "musicnet"
    heading = "start_time,end_time,instrument,note,start_beat,end_beat,note_value"
    notes = [(44_100, 88_200, 43, 60, 0, 1, "Quarter"), (44_100 * 29, 44_100 * 31, 41, 60, 0, 1, "Half")]
    write_csv(
        root / "musicnet/train_labels/1727.csv", heading, [*notes, (44_100 * 30, 44_100 * 31, 1, 60, 0, 1, "Half")]
    )
    write_csv(root / "musicnet/test_labels/2303.csv", heading, [(0, 44_100, 1, 60, 0, 1, "Half")])
    write_audio(root / "musicnet/train_data/1727.wav", 36.0)
    write_audio(root / "musicnet/test_data/2303.wav", 6.0)
    write_csv(
        root / "musicnet_metadata.csv",
        "id,composer,composition,movement,ensemble,source,transcriber,catalog_name,seconds",
        [(1727, "Schubert", "Piano Quintet in A major", "2. Andante", "Piano Quintet", "ER", "x", "OP114", 447)],
    )
    return root


def test_musicnet_asks_for_what_its_labels_say(musicnet, tmp_path):
    prepared = write_reading(read_musicnet(musicnet), tmp_path / "out")
    assert names(prepared) == {"stage2.jsonl": 4, "test.jsonl": 1}
    samples = load_manifest(tmp_path / "out/stage2.jsonl")
    assert [(s.id, s.prompt, s.target, s.duration_s) for s in samples] == [
        ("1727-000-instruments", "Which instruments are playing?", "violin and cello", 30.0),
        ("1727-000-composer", "Who composed this music?", "Schubert", 30.0),
        ("1727-000-ensemble", "What kind of ensemble is playing?", "piano quintet", 30.0),
        ("1727-001-instruments", "Which instruments are playing?", "piano", 6.0),
    ]
    assert {sample.source for sample in samples} == {"MusicNet"}
    whole, _ = soundfile.read(musicnet / "musicnet/train_data/1727.wav")
    np.testing.assert_allclose(soundfile.read(samples[3].audio)[0], whole[30 * 8_000 :], atol=1e-4)


def test_musicnet_refuses_labels_it_does_not_know(musicnet, tmp_path):
    write_csv(musicnet / "musicnet/train_labels/1727.csv", "start_time,instrument", [(0, 5)])
    with pytest.raises(ManifestError, match=r"1727\.csv:2: instrument 5 is none of MusicNet's"):
        read_musicnet(musicnet)
    with pytest.raises(ManifestError, match="not the root of MusicNet, which holds train_data/, train_labels/"):
        read_musicnet(tmp_path / "musicnet/musicnet/test_data")
    (musicnet / "musicnet/test_data/2303.wav").unlink()
    with pytest.raises(AudioError, match=r"2303\.csv: .*2303\.wav is not there"):
        write_reading(read_musicnet(musicnet, ["test"]), tmp_path / "out")


def test_a_recording_of_musicnet_that_is_broken_can_be_left_out(musicnet, tmp_path):
    broken = musicnet / "musicnet/test_data/2303.wav"
    broken.write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"^1 samples have no usable audio: .*2303\.csv: .*2303\.wav: not audio"):
        write_reading(read_musicnet(musicnet), tmp_path / "out")
    prepared = write_reading(read_musicnet(musicnet), tmp_path / "out", skip_missing=True)
    assert names(prepared) == {"stage2.jsonl": 4}
    (message,) = prepared.missing
    assert message.startswith(f"{musicnet / 'musicnet/test_labels/2303.csv'}: {broken}: not audio")
