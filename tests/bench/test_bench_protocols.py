from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile

from stapes.bench import NOTA, BenchSettings
from stapes.bench.protocols import instruction_of, is_reduced, make_clip, speech_shaped_noise, white_noise
from stapes.errors import AudioError, StapesError

SETTINGS = BenchSettings(audio_s=1.5, new_tokens=4, warmup=0, repeats=1)


def test_nota_is_the_published_protocol():
    assert (NOTA.audio_s, NOTA.new_tokens, NOTA.warmup, NOTA.repeats) == (10.0, 2, 10, 100)
    assert instruction_of("nota") == "Recognize the speech and give me the transcription."
    clip, name = make_clip(NOTA)
    assert (clip.shape, clip.dtype, name) == ((160_000,), np.float32, "white noise")


@pytest.mark.parametrize(
    ("warmup", "repeats", "reduced"), [(10, 100, False), (9, 100, True), (10, 99, True), (11, 101, False)]
)
def test_fewer_runs_than_published_are_reduced(warmup, repeats, reduced):
    assert is_reduced(replace(NOTA, warmup=warmup, repeats=repeats)) is reduced
    assert is_reduced(replace(SETTINGS, warmup=warmup)) is False


@pytest.mark.parametrize("change", [{"audio_s": 5.0}, {"new_tokens": 3}, {"audio": "clip.wav"}])
def test_nota_has_one_clip_and_one_cached_step(change):
    with pytest.raises(ValueError, match="prescribes its clip"):
        replace(NOTA, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_s": 0.02}, "audio_s is 0.02; give at least 0.025"),
        ({"audio_s": float("nan")}, "audio_s is nan; give at least 0.025"),
        ({"new_tokens": 1}, "new_tokens is 1; give at least 2"),
        ({"warmup": -1}, "warmup is -1; give at least 0"),
        ({"repeats": 0}, "repeats is 0; give at least 1"),
        ({"num_threads": 0}, "num_threads is 0; give at least 1"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(StapesError, match=message):
        replace(SETTINGS, **change)


@pytest.mark.parametrize("make", [speech_shaped_noise, white_noise])
def test_clips_are_seeded(make):
    clip = make(1.5, 7)
    assert (clip.shape, clip.dtype) == ((24_000,), np.float32)
    np.testing.assert_array_equal(clip, make(1.5, 7))
    assert not np.array_equal(clip, make(1.5, 8))


def test_speech_shaped_noise_falls_by_9_db_an_octave():
    clip = speech_shaped_noise(60.0, 0)
    assert np.abs(clip).max() == pytest.approx(0.5)
    power = np.abs(np.fft.rfft(clip)) ** 2
    frequency_hz = np.fft.rfftfreq(len(clip), 1 / 16_000)

    def level_db(center_hz: float) -> float:
        band = (frequency_hz > 0.95 * center_hz) & (frequency_hz < 1.05 * center_hz)
        return 10 * np.log10(power[band].mean())

    assert level_db(200) - level_db(400) == pytest.approx(0, abs=0.5)
    assert level_db(1000) - level_db(2000) == pytest.approx(9, abs=0.5)
    assert level_db(2000) - level_db(4000) == pytest.approx(9, abs=0.5)


def test_a_recording_is_taken_whole(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, speech_shaped_noise(2.25, 0), 16_000, subtype="FLOAT")
    clip, name = make_clip(replace(SETTINGS, audio=path))
    assert (len(clip), name) == (36_000, str(path))

    with pytest.raises(AudioError, match=r"absent\.wav: no such file"):
        make_clip(replace(SETTINGS, audio=tmp_path / "absent.wav"))
