"""Linear filters by Fourier transform.

scipy has them too. But it takes 140 MB on a small device, and wherever it is installed transformers imports its
optimisers: half a second at each start.
"""

from __future__ import annotations

import numpy as np

from .audio import SAMPLE_RATE_HZ

_ORDER = 4
_LONGEST_RING_S = 10.0


def convolve(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve (N,) with (N',) → (N + N' - 1,), in float64."""
    length = len(waveform) + len(response) - 1
    size = _transform_size(length)
    of_waveform, of_response = (np.fft.rfft(signal.astype(np.float64), size) for signal in (waveform, response))
    return np.fft.irfft(of_waveform * of_response, size)[:length]


def band_pass(waveform: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """Run a Butterworth band-pass of order 4 forth and back over a clip, with silence before and behind it.

    Its magnitude is the square of that of the digital filter which the bilinear transform makes of the analogue one,
    warped so that the edges stay where they are (Oppenheim and Schafer, Discrete-Time Signal Processing, sec. 7.2).

    Args:
        waveform: (N,), mono, 16 kHz.
        low_hz, high_hz: the edges, 6 dB down: 0 < low_hz < high_hz < 8000.

    Returns:
        (N,), float64.
    """
    ring_s = min(5 / min(low_hz, high_hz - low_hz), _LONGEST_RING_S)  # until it is 100 dB down
    size = _transform_size(len(waveform) + round(ring_s * SAMPLE_RATE_HZ))
    # At half the sample rate the tangent is infinite, and at 0 it is divided by: nothing passes at either.
    warped = np.tan(np.pi * np.fft.rfftfreq(size)[1:-1])
    low, high = np.tan(np.pi * low_hz / SAMPLE_RATE_HZ), np.tan(np.pi * high_hz / SAMPLE_RATE_HZ)
    passed = np.zeros(size // 2 + 1)
    passed[1:-1] = 1 / (1 + ((warped**2 - low * high) / (warped * (high - low))) ** (2 * _ORDER))
    return np.fft.irfft(np.fft.rfft(waveform.astype(np.float64), size) * passed, size)[: len(waveform)]


def _transform_size(length: int) -> int:
    return 1 << (length - 1).bit_length()
