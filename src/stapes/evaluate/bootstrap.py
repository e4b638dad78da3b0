"""How far a metric would move with other samples of the same kind: percentile bootstrap over samples.

Samples are drawn with replacement as wholes, which keeps errors that occur together (one hard clip, many wrong words)
together: Bisani & Ney 2004 (ICASSP, "Bootstrap estimates for confidence intervals in ASR performance evaluation"),
Koehn 2004 (EMNLP, "Statistical significance tests for machine translation evaluation").
What it cannot know: speakers or corpora that the test set lacks. Below some 20 samples its intervals are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .metrics import PerSample

N_RESAMPLES = 1000
_COVERAGE = (0.025, 0.975)


@dataclass(frozen=True)
class Difference:
    """What one variant has over another on the same samples.

    Attributes:
        value: metric of the first minus metric of the second.
        low, high: 95 % interval of it.
        p_value: two-sided; how well "no difference" agrees with the resamples.
    """

    value: float
    low: float
    high: float
    p_value: float


def interval(metric: PerSample, *, seed: int, n_resamples: int = N_RESAMPLES) -> tuple[float, float]:
    """Return the 95 % percentile interval of a metric; one sample alone gives its value twice.

    CIDEr-D resamples the scores of samples; how rare an n-gram is stays as counted on all of them.
    """
    resampled = _resample(np.stack([metric.numerator, metric.denominator]), seed, n_resamples)
    return _bounds(metric.scale * _ratio(resampled[:, 0], resampled[:, 1]))


def paired_difference(first: PerSample, second: PerSample, *, seed: int, n_resamples: int = N_RESAMPLES) -> Difference:
    """Compare two variants on the same samples, sample i of one with sample i of the other.

    Each resample draws the same samples for both, so what makes a sample hard for both cancels out. The p-value is
    twice the smaller share of resamples in which the difference is ≤ 0 or ≥ 0 (counting the observed one, so that it is
    never 0), at most 1: it is below 0.05 where the interval excludes 0. It is never below 2^(1−N), the least that a
    two-sided sign-flip test on N pairs can give: a few samples prove nothing, however alike they are.

    Raises:
        ValueError: if the metrics are over different numbers of samples.
    """
    n = len(first.numerator)
    if len(second.numerator) != n:
        raise ValueError(f"{n} samples of one variant but {len(second.numerator)} of the other; pairs need the same")
    columns = np.stack([first.numerator, first.denominator, second.numerator, second.denominator])
    resampled = _resample(columns, seed, n_resamples)
    differences = first.scale * _ratio(resampled[:, 0], resampled[:, 1])
    differences -= second.scale * _ratio(resampled[:, 2], resampled[:, 3])
    low, high = _bounds(differences)
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    num_known = int(np.isfinite(differences).sum())
    p_value = min(1.0, max(2 * (1 + smaller) / (1 + num_known), 2.0 ** (1 - n)))
    return Difference(first.value - second.value, low, high, float(p_value))


def _resample(columns: np.ndarray, seed: int, n_resamples: int) -> np.ndarray:
    """Sum each of K columns (K, N) over N samples drawn with replacement; (R, K), the same draws for all columns."""
    rng = np.random.default_rng(seed)
    n = columns.shape[1]
    sums = np.empty((n_resamples, len(columns)))
    # One resample at a time: all indices at once would be gigabytes for large test sets and are hardly faster.
    for row in sums:
        row[:] = columns[:, rng.integers(n, size=n)].sum(axis=1)
    return sums


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with NaN for resamples that drew only references without words; they count nowhere."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator != 0)


def _bounds(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, _COVERAGE)
    return float(low), float(high)
