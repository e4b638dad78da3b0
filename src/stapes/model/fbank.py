"""Kaldi's log-mel filterbank in plain torch: the front end of sound encoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor, nn

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400
"""One 25 ms analysis window at 16 kHz; shorter clips hold no frame."""
HOP_SAMPLES = 160
"""A new window starts every 10 ms: 100 fbank frames a second, less what a window does not fit in at the end."""

_FFT_SIZE = 512
_PREEMPHASIS = 0.97
_LOW_HZ, _HIGH_HZ = 20.0, SAMPLE_RATE_HZ / 2
_FRAMES_AT_ONCE = 3000  # 30 s of frames become 25 MB of spectra; an hour would become 3 GB


def num_fbank_frames(num_samples: int) -> int:
    """Count the fbank frames F of N samples at 16 kHz: whole windows only. 10 s give 998, 30 s 2998, 25 ms 1."""
    return max(0, 1 + (num_samples - WINDOW_SAMPLES) // HOP_SAMPLES)


def fbank(waveforms: Tensor, num_mel_bins: int = 128, window: Literal["povey", "hanning"] = "povey") -> Tensor:
    """Compute Kaldi's log-mel filterbank energies of a batch of waveforms.

    Args:
        waveforms: (B, N) float, mono, 16 kHz. Kaldi expects the range of int16; what the values are multiplied with is
            added to the logarithm, so a front end must keep to its model's.
        num_mel_bins: M, triangles that are equally wide in mel between 20 Hz and 8 kHz.
        window: `povey` is Kaldi's default (a Hann window to the power of 0.85), `hanning` a symmetric Hann window.

    Returns:
        (B, F, M) float32, F = `num_fbank_frames(N)`. A frame is computed of its own 400 samples alone: in a batch of
        padded clips those of the clip are what they would be without padding, up to rounding.

    Source: Kaldi's `compute-fbank-feats` (`feature-window.cc`, `mel-computations.cc`) without dither and with edges
    snipped: per window minus its mean, pre-emphasis 0.97, power spectrum, natural logarithm with a floor of 2^-23.
    Where we differ: all clips at once. Kaldi's other options (energy, VTLN, other rates) are not there.
    """
    batch_size, num_samples = waveforms.shape
    num_frames = num_fbank_frames(num_samples)
    energies = torch.empty(batch_size, num_frames, num_mel_bins, dtype=torch.float32, device=waveforms.device)
    if num_frames == 0:
        return energies
    taper = _taper(window).to(waveforms.device)
    triangles = mel_triangles(num_mel_bins).to(waveforms.device)
    frames = waveforms.float().unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
    for start in range(0, num_frames, _FRAMES_AT_ONCE):
        end = start + _FRAMES_AT_ONCE
        energies[:, start:end] = _log_mel(frames[:, start:end], taper, triangles)
    return energies


def _log_mel(frames: Tensor, taper: Tensor, triangles: Tensor) -> Tensor:
    frames = frames - frames.mean(dim=-1, keepdim=True)
    # What precedes the first sample does not matter: both windows begin with zero.
    previous = nn.functional.pad(frames, (1, 0))[..., :-1]
    spectra = torch.fft.rfft((frames - _PREEMPHASIS * previous) * taper, n=_FFT_SIZE)
    # Kaldi's triangles end below the Nyquist frequency, the last of the FFT's values.
    energies = spectra[..., :-1].abs().square() @ triangles.T
    return energies.clamp(min=torch.finfo(torch.float32).eps).log()


def _taper(window: Literal["povey", "hanning"]) -> Tensor:
    hann = torch.hann_window(WINDOW_SAMPLES, periodic=False)
    match window:
        case "povey":
            return hann**0.85
        case "hanning":
            return hann
        case _:
            assert_never(window)


def mel_triangles(num_mel_bins: int) -> Tensor:
    """Return the weights (M, 256) that sum the FFT's power values below Nyquist into mel bins.

    All in float32, as torchaudio computes them: BEATs and EAT were trained with its rounding, which moves a bin's
    logarithm by up to 3e-4. Of 128 bins the fourth lies between two FFT values and is always empty.
    """
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (_LOW_HZ, _HIGH_HZ))
    width = (high - low) / (num_mel_bins + 1)
    number = torch.arange(num_mel_bins)[:, None]
    left, centre, right = (low + (number + side) * width for side in (0.0, 1.0, 2.0))
    hz = torch.arange(_FFT_SIZE // 2) * (SAMPLE_RATE_HZ / _FFT_SIZE)
    mel = 1127.0 * (1.0 + hz / 700.0).log()
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0.0)


def stack_waveforms(waveforms: Sequence[np.ndarray]) -> Tensor:
    """Stack B waveforms (N,) of any lengths into one tensor (B, N), float32, zero-padded at the end.

    Raises:
        ValueError: if a waveform is not one-dimensional or shorter than 25 ms.
    """
    for waveform in waveforms:
        if waveform.ndim != 1 or waveform.shape[0] < WINDOW_SAMPLES:
            raise ValueError(
                f"a waveform has shape {waveform.shape}; wanted (N,) with N ≥ {WINDOW_SAMPLES} (25 ms at 16 kHz)"
            )
    rows = [torch.as_tensor(waveform, dtype=torch.float32) for waveform in waveforms]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def check_sampling_rate(sampling_rate: int | None) -> None:
    """Refuse audio that is said to have another rate than 16 kHz.

    Raises:
        ValueError: naming the rate.
    """
    if sampling_rate not in (None, SAMPLE_RATE_HZ):
        raise ValueError(f"sampling_rate is {sampling_rate}; sound encoders take {SAMPLE_RATE_HZ} Hz: resample first")
