import numpy as np
import pytest

from stapes.evaluate.bootstrap import interval, paired_difference
from stapes.evaluate.metrics import PerSample


def hits(values: list[float]) -> PerSample:
    return PerSample(np.array(values, dtype=float), np.ones(len(values)), unit="%", better="higher")


def errors(numerator: list[float], denominator: list[float]) -> PerSample:
    return PerSample(np.array(numerator), np.array(denominator), unit="%", better="lower")


def test_interval_of_a_share_is_the_binomial_one() -> None:
    # Resampled hits are Binomial(100, 1/2): its 2.5 % and 97.5 % quantiles are 40 and 60.
    low, high = interval(hits([1, 0] * 50), seed=0, n_resamples=20_000)
    assert (low, high) == (40.0, 60.0)


def test_interval_of_two_samples_spans_both() -> None:
    # 0, 50 and 100 % come up with probability 1/4, 1/2 and 1/4.
    assert interval(hits([1, 0]), seed=0) == (0.0, 100.0)


def test_interval_of_one_sample_is_its_value() -> None:
    assert interval(errors([1.0], [4.0]), seed=0) == (25.0, 25.0)


def test_error_rates_are_resampled_as_ratios_of_sums() -> None:
    # Samples of rate 0 and of rate 1 weigh 9 : 1, so half the draws give 10 %, not 50 %.
    low, high = interval(errors([1.0, 0.0] * 40, [1.0, 9.0] * 40), seed=0)
    assert 4.0 < low < 10.0 < high < 18.0


def test_resamples_without_reference_words_count_nowhere() -> None:
    assert interval(errors([0.0, 1.0], [0.0, 2.0]), seed=0) == (50.0, 50.0)


def test_the_seed_decides() -> None:
    metric = errors(list(np.arange(30.0)), [40.0] * 30)
    assert interval(metric, seed=3) == interval(metric, seed=3)
    assert interval(metric, seed=3) != interval(metric, seed=4)


def test_pairing_cancels_what_is_hard_for_both() -> None:
    # 1 word of 10 worse on every sample, whatever the sample: the difference is 10 points in every resample.
    hard = np.arange(20.0)
    worse = paired_difference(errors(list(hard + 1), [10.0] * 20), errors(list(hard), [10.0] * 20), seed=0)
    assert (worse.value, worse.low, worse.high) == pytest.approx((10.0, 10.0, 10.0))
    assert worse.p_value == pytest.approx(2 / 1001)


def test_equal_variants_do_not_differ() -> None:
    metric = errors([1.0, 0.0, 2.0], [3.0, 4.0, 5.0])
    same = paired_difference(metric, metric, seed=0)
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_p_value_and_interval_agree() -> None:
    # 8 samples better, 2 worse, 10 equal: differences are multiples of 5 points around 30.
    first, second = [1] * 8 + [0] * 2 + [1] * 10, [0] * 8 + [1] * 2 + [1] * 10
    difference = paired_difference(hits(first), hits(second), seed=0)
    assert difference.value == pytest.approx(30.0)
    assert difference.low <= 0 < difference.high
    # The sum of 20 draws of +1 (0.4), −1 (0.1), 0 is ≤ 0 with probability 0.0289 by convolution; twice that, two-sided.
    assert difference.p_value == pytest.approx(2 * 0.0289, abs=0.02)


def test_swapping_the_variants_turns_the_sign() -> None:
    a, b = errors([1.0, 3.0, 0.0, 2.0], [5.0] * 4), errors([2.0, 1.0, 0.0, 1.0], [5.0] * 4)
    there, back = paired_difference(a, b, seed=1), paired_difference(b, a, seed=1)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert back.p_value == there.p_value


@pytest.mark.parametrize(("n", "p_value"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625)])
def test_few_samples_prove_nothing(n: int, p_value: float) -> None:
    assert paired_difference(hits([1] * n), hits([0] * n), seed=0).p_value == p_value


def test_pairs_need_the_same_number_of_samples() -> None:
    with pytest.raises(ValueError, match="2 samples of one variant but 1"):
        paired_difference(hits([1, 0]), hits([1]), seed=0)


def test_p_counts_only_resamples_that_have_a_difference() -> None:
    # The one sample with words is drawn or not: where it is, the first variant is worse, and else nothing is known.
    first, second = errors([1.0] + [0.0] * 7, [2.0] + [0.0] * 7), errors([0.0] * 8, [2.0] + [0.0] * 7)
    rng = np.random.default_rng(0)
    known = sum(0 in rng.integers(8, size=8) for _ in range(100))
    assert 50 < known < 80
    assert paired_difference(first, second, seed=0, n_resamples=100).p_value == pytest.approx(2 / (1 + known))
