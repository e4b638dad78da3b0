"""Kaldi's filterbank: against Kaldi, against torchaudio's figures, step by step, and for each clip alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from stapes.model.fbank import check_sampling_rate, fbank, mel_triangles, num_fbank_frames, stack_waveforms

SILENCE = float(np.log(np.finfo(np.float32).eps))


def noise(num_samples: int = 16_000, seed: int = 0) -> np.ndarray:
    # RandomState's stream never changes, so that figures made from it stay true.
    return (np.random.RandomState(seed).standard_normal(num_samples) * 0.1).astype(np.float32)


def by_definition(waveform: np.ndarray, window: str, num_mel_bins: int) -> np.ndarray:
    """Kaldi's steps in float64, one frame after another; only the triangles' weights are ours."""
    n = np.arange(400)
    taper = (0.5 - 0.5 * np.cos(2 * np.pi * n / 399)) ** (0.85 if window == "povey" else 1.0)
    rows = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        power = np.abs(np.fft.rfft(frame * taper, 512)) ** 2
        rows.append(np.log(np.maximum(mel_triangles(num_mel_bins).double().numpy() @ power[:256], 2.0**-23)))
    return np.stack(rows)


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16_000, 98), (160_000, 998), (480_000, 2998)],
)
def test_frames_are_whole_windows(samples: int, frames: int) -> None:
    assert num_fbank_frames(samples) == frames
    assert fbank(torch.zeros(2, samples), 128).shape == (2, frames, 128)


# torchaudio 2.11.0, `compliance.kaldi.fbank(waveform, num_mel_bins=128, sample_frequency=16000, window_type=…,
# dither=0.0)` of `noise()`, times 2**15 for BEATs: frames 0, 48 and 97 by bins 0, 3, 20, 64, 100 and 127.
TORCHAUDIO: dict[Literal["povey", "hanning"], tuple[float, list[list[float]]]] = {
    "povey": (
        2.0**15,
        [
            [14.41987, -15.94238, 18.04579, 20.85459, 23.42277, 23.77432],
            [14.27856, -15.94238, 18.47674, 21.27719, 22.57038, 23.77926],
            [11.88592, -15.94238, 16.62398, 21.81195, 23.29345, 23.45962],
        ],
    ),
    "hanning": (
        1.0,
        [
            [-6.51143, -15.94238, -2.81168, -0.02158, 2.58197, 2.90407],
            [-6.5906, -15.94238, -2.38643, 0.43023, 1.72661, 2.95171],
            [-8.70138, -15.94238, -4.43047, 0.86572, 2.45599, 2.53018],
        ],
    ),
}


@pytest.mark.parametrize("window", ["povey", "hanning"])
def test_torchaudio_gives_the_same(window: Literal["povey", "hanning"]) -> None:
    scale, expected = TORCHAUDIO[window]
    energies = fbank(torch.from_numpy(noise())[None] * scale, 128, window)[0]
    found = energies[[0, 48, 97]][:, [0, 3, 20, 64, 100, 127]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [2.0**15, 1.0])
@pytest.mark.parametrize("window", ["povey", "hanning"])
def test_kaldi_gives_the_same(
    window: Literal["povey", "hanning"], scale: float, speech_like: Callable[[float, int], np.ndarray]
) -> None:
    """Kaldi refuses 128 bins, of which one would be empty; 80 go through the same steps.

    A bin far below its frame's loudest is mostly rounding, in float32 as in Kaldi, so a few may differ by more.
    """
    knf = pytest.importorskip("kaldi_native_fbank", reason="kaldi-native-fbank is among the dev dependencies")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = 80
    for waveform in (noise(), speech_like(2.0, 1)):
        kaldi = knf.OnlineFbank(options)
        kaldi.accept_waveform(16_000, (waveform * scale).tolist())
        kaldi.input_finished()
        expected = np.stack([kaldi.get_frame(i) for i in range(kaldi.num_frames_ready)])
        found = fbank(torch.from_numpy(waveform)[None] * scale, 80, window)[0].numpy()
        assert found.shape == expected.shape
        assert np.quantile(np.abs(found - expected), 0.99) < 1e-4
        assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize(("window", "scale"), [("povey", 2.0**15), ("hanning", 1.0)])
def test_each_step_is_kaldis(window: Literal["povey", "hanning"], scale: float) -> None:
    waveform = noise() * np.float32(scale) + np.float32(0.3 * scale)
    found = fbank(torch.from_numpy(waveform)[None], 128, window)[0].numpy()
    difference = np.abs(found - by_definition(waveform, window, 128))
    assert np.quantile(difference, 0.99) < 1e-4
    assert difference.max() < 2e-3


def test_triangles_by_hand() -> None:
    triangles = mel_triangles(128)
    assert triangles.shape == (128, 256)
    # 31.25 Hz are 49.22 mel; bin 0 rises from 31.75 mel (20 Hz) to its peak at 53.52: 0.8026 of the way.
    np.testing.assert_allclose(triangles[0, :3], [0.0, 0.8026, 0.0], atol=2e-4)
    assert (triangles.sum(dim=1) == 0).nonzero().flatten().tolist() == [3]
    assert triangles[:, 0].abs().max() == 0
    # Neighbours cross so that their weights add up to 1, everywhere between the first and the last peak.
    assert (triangles.sum(dim=0)[2:251] - 1).abs().max() < 1e-4


def test_silence_is_the_floor() -> None:
    """Neither a constant nor nothing has energy; of noise only bin 3 of 128, which is empty, has none."""
    for level in (0.0, 0.5):
        assert fbank(torch.full((1, 800), level)).unique().tolist() == pytest.approx([SILENCE])
    energies = fbank(torch.from_numpy(noise())[None] * 2.0**15)
    assert (energies == energies.min()).any(dim=(0, 1)).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("window", ["povey", "hanning"])
def test_frames_do_not_depend_on_the_batch(window: Literal["povey", "hanning"]) -> None:
    waveforms = [noise(length, seed) for seed, length in enumerate([400, 16_000, 5_432, 8_080])]
    energies = fbank(stack_waveforms(waveforms), 128, window)
    for row, waveform in enumerate(waveforms):
        alone = fbank(torch.from_numpy(waveform)[None], 128, window)[0]
        torch.testing.assert_close(energies[row, : len(alone)], alone, atol=1e-5, rtol=0)


def test_long_clips_are_transformed_in_pieces() -> None:
    """40 s are 3998 frames, more than are computed at once: the last 1000 are those of the clip's end alone."""
    waveform = torch.from_numpy(noise(40 * 16_000))[None]
    energies = fbank(waveform, 16)
    assert energies.shape == (1, 3998, 16)
    torch.testing.assert_close(energies[:, 2998:], fbank(waveform[:, 2998 * 160 :], 16), atol=1e-5, rtol=0)


def test_half_precision_is_computed_in_float32() -> None:
    waveform = torch.from_numpy(noise())[None].to(torch.bfloat16)
    assert torch.equal(fbank(waveform), fbank(waveform.float()))


def test_waveforms_are_stacked() -> None:
    stacked = stack_waveforms([noise(400), noise(500, 1).astype(np.float64)])
    assert (stacked.shape, stacked.dtype) == ((2, 500), torch.float32)
    assert torch.equal(stacked[0, 400:], torch.zeros(100))
    assert torch.equal(stacked[1], torch.from_numpy(noise(500, 1)))


@pytest.mark.parametrize("wrong", [np.zeros((1, 16_000)), np.zeros(399)])
def test_what_is_no_waveform_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=r"^a waveform has shape \(.*\); wanted \(N,\) with N ≥ 400 \(25 ms at 16 kHz\)$"
    ):
        stack_waveforms([np.zeros(400), wrong])


def test_another_rate_is_refused() -> None:
    check_sampling_rate(None)
    check_sampling_rate(16_000)
    with pytest.raises(ValueError, match=r"^sampling_rate is 44100; sound encoders take 16000 Hz: resample first$"):
        check_sampling_rate(44_100)
