"""Filters by Fourier transform, against scipy's and against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from stapes.data.filters import band_pass, convolve


@pytest.mark.parametrize(("length", "response_length"), [(1, 1), (1000, 77), (5, 3000)])
def test_a_convolution_is_what_its_definition_says(length: int, response_length: int) -> None:
    generator = np.random.default_rng(0)
    waveform = generator.standard_normal(length).astype(np.float32)
    response = generator.standard_normal(response_length).astype(np.float32)
    expected = np.convolve(waveform.astype(np.float64), response.astype(np.float64))
    np.testing.assert_allclose(convolve(waveform, response), expected, atol=1e-11)


# What scipy 1.17.1 answers to a click: sosfiltfilt(butter(4, (low, high), "bandpass", fs=16000, output="sos"), click),
# with 20,000 samples of silence on either side.
@pytest.mark.parametrize(
    ("low_hz", "high_hz", "at_once", "later"),
    [
        (300, 3400, [0.389977889, 0.267026843, 0.0279169267, -0.107468248], [0.000415782874, 6.70684036e-06]),
        (1000, 1100, [0.0128267522, 0.0117502289, 0.00870201919, 0.00419553959], [-0.00483204403, -0.0010811509]),
    ],
)
def test_the_band_pass_is_a_butterworth_run_forth_and_back(
    low_hz: float, high_hz: float, at_once: list[float], later: list[float]
) -> None:
    click = np.zeros(6001, dtype=np.float32)
    click[3000] = 1.0
    passed = band_pass(click, low_hz, high_hz)
    np.testing.assert_allclose(passed[3000:3004], at_once, rtol=1e-6)
    np.testing.assert_allclose(passed[3100:3300:100], later, rtol=1e-6)
    np.testing.assert_allclose(passed, passed[::-1], atol=1e-12)


@pytest.mark.parametrize(("low_hz", "high_hz"), [(300, 3400), (20, 100)])
def test_what_rings_on_behind_a_clip_does_not_come_back_in_front(low_hz: float, high_hz: float) -> None:
    click = np.zeros(16_000)
    click[-1] = 1.0
    padded = np.concatenate([click, np.zeros(80_000)])
    np.testing.assert_allclose(
        band_pass(click, low_hz, high_hz), band_pass(padded, low_hz, high_hz)[:16_000], atol=1e-6
    )
