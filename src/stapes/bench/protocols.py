"""What is fed to a model that is measured: the audio and the instruction of each protocol."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE_HZ = 16_000


def speech_shaped_noise(duration_s: float, seed: int) -> np.ndarray:
    """Make noise with the spectrum and rhythm of speech, so that nothing is silence and no file has to be shipped.

    White noise with speech's long-term spectrum, flat up to 500 Hz and falling by 9 dB an octave above (a smooth
    stand-in for Byrne et al. 1994, "An international comparison of long-term average speech spectra", fig. 2), in
    syllables of 4 Hz.

    Args:
        duration_s: length; rounded to whole samples.
        seed: of the noise; the same seed gives the same samples.

    Returns:
        (N,) float32 at 16 kHz, peak 0.5.
    """
    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(num_samples))
    frequency_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    spectrum *= np.maximum(frequency_hz / 500, 1) ** -1.5  # 20 log10(2^-1.5) = -9 dB
    syllables = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * np.arange(num_samples) / SAMPLE_RATE_HZ)
    waveform = np.fft.irfft(spectrum, num_samples) * syllables
    return (0.5 * waveform / np.abs(waveform).max()).astype(np.float32)


def white_noise(duration_s: float, seed: int) -> np.ndarray:
    """Make Gaussian white noise (N,) float32 at 16 kHz with standard deviation 1, as the NOTA protocol does."""
    return np.random.default_rng(seed).standard_normal(round(duration_s * SAMPLE_RATE_HZ)).astype(np.float32)
