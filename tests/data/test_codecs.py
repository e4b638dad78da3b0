from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stapes.data.codecs import KINDS, encode_and_decode, require_codecs

SpeechLike = Callable[[float, int], np.ndarray]

# Correlation of speech-shaped noise before and after, measured at the best and the worst quality (libsndfile 1.2.2;
# the least of six seeds) less 0.02.
LEAST = {
    "mulaw": (0.978, 0.978),
    "alaw": (0.978, 0.978),
    "gsm": (0.93, 0.93),
    "mp3": (0.959, 0.955),
    "vorbis": (0.973, 0.962),
    "opus": (0.965, 0.897),
}


def test_this_libsndfile_has_every_codec() -> None:
    assert set(LEAST) == set(KINDS)
    require_codecs(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0, 1])
def test_a_clip_comes_back_changed_but_in_time(speech_like: SpeechLike, kind: str, strength: int) -> None:
    clip = speech_like(2.0, 7)
    coded = encode_and_decode(clip, kind, strength)
    assert coded.dtype == np.float32
    assert coded.shape == clip.shape
    assert LEAST[kind][strength] < np.corrcoef(coded, clip)[0, 1] < 0.9999
    assert np.correlate(coded, clip[100:-100]).argmax() == 100
    # Level: GSM and Opus leave out what they cannot afford.
    assert np.std(coded) / np.std(clip) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("kind", ["mp3", "vorbis", "opus"])
def test_strength_costs_quality(speech_like: SpeechLike, kind: str) -> None:
    clip = speech_like(2.0, 0)
    errors = [np.std(encode_and_decode(clip, kind, strength) - clip) for strength in (0.0, 1.0)]
    assert errors[1] > 1.03 * errors[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", [1, 400, 401, 15_999])
def test_the_length_is_kept(speech_like: SpeechLike, kind: str, num_samples: int) -> None:
    coded = encode_and_decode(speech_like(1.0, 0)[:num_samples], kind, 0.5)
    assert coded.shape == (num_samples,)
    assert np.isfinite(coded).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_above_full_scale_is_not_clipped(speech_like: SpeechLike, kind: str) -> None:
    clip = speech_like(0.5, 0)
    clip /= np.abs(clip).max()
    np.testing.assert_array_equal(encode_and_decode(4 * clip, kind, 0.5), 4 * encode_and_decode(clip, kind, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_silence_stays_silent(kind: str) -> None:
    # A-law and GSM have no zero: what they come nearest is a constant of 0.0003 and 0.0006.
    assert np.abs(encode_and_decode(np.zeros(8_000, np.float32), kind, 0.5)).max() < 6e-4


def test_a_long_clip_does_not_kill_the_process() -> None:
    clip = np.random.default_rng(0).normal(0, 0.1, 300 * 16_000).astype(np.float32)
    assert encode_and_decode(clip, "vorbis", 0.5).shape == clip.shape
