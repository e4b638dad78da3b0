"""How likely CTC finds it that a text begins so: the prefix probabilities that guide an autoregressive decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

_NEGLIGIBLE = 1e-30
"""Beside the likeliest alignment, which counts as 1."""

Probabilities = npt.NDArray[np.float64]


class CTCPrefix:
    """The beginning of a text, and what CTC expects to come next.

    A text's prefix probability is that of all alignments of all texts that begin so; its quotients are the conditional
    probabilities of the next piece, which sum to one with that of the end.

    Source: Graves 2012 (Supervised Sequence Labelling, sec. 7.5.2), in the form of Watanabe et al. 2017 (Hybrid
    CTC/Attention Architecture, Algorithm 2). Where we differ: a piece costs one product of a vector and a matrix for
    all that may follow; and probabilities are scaled rather than taken as logarithms.

    Args:
        posteriors: (S, 1 + C) of each step, blank first; each row sums to one.

    Attributes:
        last: number of the last piece, 0 before the first.
    """

    def __init__(self, posteriors: Probabilities) -> None:
        self._posteriors = posteriors
        self.last = 0
        # After t steps all of the prefix was said, its last step a piece or a blank; up to a common factor.
        self._ends_in_piece = np.zeros(len(posteriors) + 1)
        self._ends_in_blank = np.concatenate([np.ones(1), np.cumprod(posteriors[:, 0])])

    @cached_property
    def next(self) -> Probabilities | None:
        """(1 + C) probabilities of the end (0) and of each piece to come next; None if this beginning is impossible."""
        said = self._ends_in_blank + self._ends_in_piece
        mass = said[:-1] @ self._posteriors
        if self.last:  # without a blank between them, a piece that comes twice is heard once
            mass[self.last] = self._ends_in_blank[:-1] @ self._posteriors[:, self.last]
        mass[0] = said[-1]
        total = mass.sum()
        return mass / total if total > 0 else None

    def extended(self, piece: int) -> CTCPrefix:
        """Return the prefix with one more piece, from 1 on."""
        before = self._ends_in_blank if piece == self.last else self._ends_in_blank + self._ends_in_piece
        ends_in_piece, ends_in_blank = np.zeros(len(before)), np.zeros(len(before))
        # Before and after the steps at which it may have been said all is zero, or next to it.
        possible = np.flatnonzero(before[:-1] > _NEGLIGIBLE).tolist() or [len(before)]
        first, last = possible[0], possible[-1]
        said = blank = 0.0
        steps = self._posteriors[first:, [piece, 0]].tolist()
        for step, (came, (heard, silent)) in enumerate(zip(before[first:].tolist(), steps, strict=False), start=first):
            blank, said = (blank + said) * silent, (said + came) * heard
            ends_in_piece[step + 1], ends_in_blank[step + 1] = said, blank
            if step > last and said + blank < _NEGLIGIBLE:
                break
        longer = object.__new__(CTCPrefix)
        longer._posteriors, longer.last = self._posteriors, piece
        scale = max(ends_in_piece.max(), ends_in_blank.max()) or 1.0
        longer._ends_in_piece, longer._ends_in_blank = ends_in_piece / scale, ends_in_blank / scale
        return longer


class WrittenPrefixes:
    """The beginnings of one clip's text, as an autoregressive decoder writes them, token by token.

    Args:
        posteriors: as of `CTCPrefix`.
        heard_as: says as which of CTC's pieces the last of some tokens is heard where it stands; maybe as none.
    """

    def __init__(self, posteriors: Probabilities, heard_as: Callable[[tuple[int, ...]], Sequence[int]]) -> None:
        self._known: dict[tuple[int, ...], CTCPrefix] = {(): CTCPrefix(posteriors)}
        self._heard_as = heard_as

    def __getitem__(self, written: tuple[int, ...]) -> CTCPrefix:
        if written not in self._known:
            prefix = self[written[:-1]]
            for piece in self._heard_as(written):
                prefix = prefix.extended(piece)
            self._known[written] = prefix
        return self._known[written]
