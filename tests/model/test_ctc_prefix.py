"""Prefix probabilities against a sum over all alignments."""

from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest

from stapes.model.ctc_prefix import CTCPrefix

S, C = 5, 3


def posteriors(seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).random((S, 1 + C)) ** 3
    return drawn / drawn.sum(axis=1, keepdims=True)


def texts(of: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of each text, by writing out all 4⁵ alignments."""
    found: dict[tuple[int, ...], float] = {}
    for path in product(range(1 + C), repeat=S):
        text = tuple(piece for piece, _ in groupby(path) if piece)
        found[text] = found.get(text, 0.0) + float(np.prod(of[range(S), path]))
    return found


@pytest.mark.parametrize("prefix", [(), (1,), (2, 2), (1, 3, 1), (3, 3, 3)])
def test_what_comes_next_is_a_sum_over_all_alignments(prefix: tuple[int, ...]) -> None:
    of = posteriors()
    begins = {text: likely for text, likely in texts(of).items() if text[: len(prefix)] == prefix}
    total = sum(begins.values())
    expected = np.zeros(1 + C)
    for text, likely in begins.items():
        expected[text[len(prefix)] if len(text) > len(prefix) else 0] += likely / total
    state = CTCPrefix(of)
    for piece in prefix:
        state = state.extended(piece)
    np.testing.assert_allclose(state.next, expected, rtol=1e-9, atol=1e-15)


def test_an_extended_prefix_leaves_the_shorter_one_as_it_was() -> None:
    state = CTCPrefix(posteriors())
    before = np.array(state.next)
    state.extended(2).extended(1)
    np.testing.assert_array_equal(CTCPrefix(posteriors()).next, before)
    np.testing.assert_array_equal(state.extended(2).next, CTCPrefix(posteriors()).extended(2).next)


def test_a_text_longer_than_its_clip_is_impossible() -> None:
    state = CTCPrefix(posteriors())
    for piece in (1, 2, 1, 2, 1, 2):
        state = state.extended(piece)
    assert state.next is None


def test_a_long_clip_does_not_underflow() -> None:
    of = np.full((400, 3), [0.998, 0.001, 0.001])
    of[::2] = [1e-3, 0.9985, 5e-4]
    state = CTCPrefix(of)
    for _ in range(200):
        state = state.extended(1)
    assert state.next is not None
    assert state.next[0] > 0.8
    assert CTCPrefix(of).extended(1).next[1] > 0.99  # type: ignore[index]


def test_a_clip_without_a_step_ends_at_once() -> None:
    np.testing.assert_array_equal(CTCPrefix(np.zeros((0, 3))).next, [1, 0, 0])
