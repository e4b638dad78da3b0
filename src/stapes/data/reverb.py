"""Rooms: impulse responses, synthetic or recorded, and what they do to a clip."""

from __future__ import annotations

import math

import numpy as np

from ..errors import AudioError
from .audio import SAMPLE_RATE_HZ
from .filters import convolve

DISTANCE_M = (0.5, 2.0)
"""From talker to microphone in a synthetic room: from a laptop to across a table."""

# A living room or small office. Only its product with the squared distance matters, and the distance varies 16-fold.
_ROOM_M3 = 60.0
# A talker sends twice as much forward as a source that radiates evenly.
_DIRECTIVITY = 2.0


def synthetic_response(rt60_s: float, distance_m: float, generator: np.random.Generator) -> np.ndarray:
    """Make up the impulse response of a room.

    Direct sound is 1 at sample 0; after it comes Gaussian noise that decays by 60 dB in `rt60_s`, where it ends. The
    noise holds the energy of the diffuse field (Sabine; Kuttruff, Room Acoustics, ch. 5) in a room of 60 m³, so that
    long reverberation is also strong: at 1 m, direct sound is 1.1 dB above it for 0.3 s, and 4.2 dB below for 1 s.
    Unlike a real room it has no single early reflections, and decays alike at all frequencies.

    Args:
        rt60_s: seconds, above 0.
        distance_m: from talker to microphone, in metres.
        generator: draws the noise.

    Returns:
        (1 + rt60_s * 16 000,), float32.
    """
    length = max(1, round(rt60_s * SAMPLE_RATE_HZ))
    elapsed_s = np.arange(1, length + 1) / SAMPLE_RATE_HZ
    tail = generator.standard_normal(length) * 10.0 ** (-3.0 * elapsed_s / rt60_s)
    absorption_m2 = 0.161 * _ROOM_M3 / rt60_s
    energy = 16 * math.pi * distance_m**2 / (_DIRECTIVITY * absorption_m2)
    tail *= math.sqrt(energy / np.square(tail).sum())
    return np.concatenate([[1.0], tail]).astype(np.float32)


def reverberate(waveform: np.ndarray, response: np.ndarray, *, name: str = "impulse response") -> np.ndarray:
    """Put a clip into a room.

    The peak of the response is taken for the direct sound, which arrives when it did before; what rings on after the
    clip's end is cut off. The clip keeps its mean power, so that reverberation does not come with a change of level.

    Args:
        waveform: (N,), float32, mono, 16 kHz.
        response: (N',), float32, mono, 16 kHz.
        name: what error messages call the response.

    Returns:
        (N,), float32.

    Raises:
        AudioError: if the response is silent.
    """
    peak = int(np.abs(response).argmax())
    if response[peak] == 0:
        raise AudioError(f"{name}: holds only silence; take it out of the folder of impulse responses")
    num_samples = waveform.shape[0]
    wet = convolve(waveform, response)[peak : peak + num_samples]
    power = np.square(waveform, dtype=np.float64).sum()
    if power > 0:
        wet *= math.sqrt(power / np.square(wet).sum())
    return wet.astype(np.float32)
