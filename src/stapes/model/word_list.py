"""The words that a transcript may hold, and how common each is."""

from __future__ import annotations

import lzma
import re
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

_WORD = re.compile(r"[a-z']+")
_AFTER_LETTERS = "{"
"""Comes behind all letters in ASCII."""

MOST_KNOWN = 200_000
"""Beginnings of words, some 150 bytes each, that a list keeps the places of: all that occur in hours of speech."""


class Place(NamedTuple):
    """Where in a word list the words stand that begin alike.

    Attributes:
        start, end: their part of the order.
        prior: log-probability of the word that ends here, or None.
        best: that of the likeliest of these words.
    """

    start: int
    end: int
    prior: float | None
    best: float


class WordList:
    """Words with their log-probabilities, found by how they begin.

    Args:
        words: of a to z and the apostrophe. The probabilities need not sum to one: all that matters is how common words
            are beside each other.

    Raises:
        ValueError: if there are none, or one holds anything else.
    """

    def __init__(self, words: Mapping[str, float]) -> None:
        if not words:
            raise ValueError("there are no words in it")
        if wrong := next((word for word in words if not _WORD.fullmatch(word)), None):
            raise ValueError(f"{wrong!r} is no word; wanted letters from a to z and the apostrophe")
        self._order = sorted(words)
        self._priors = np.array([words[word] for word in self._order])
        self.start = Place(0, len(self._order), None, float(self._priors.max()))
        self._known: dict[str, Place | None] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, word: str) -> bool:
        at = bisect_left(self._order, word)
        return self._order[at : at + 1] == [word]

    def narrow(self, place: Place, beginning: str) -> Place | None:
        """Find, among words that begin alike, those that go on so; None if there are none.

        Args:
            place: of the words that begin with all but the last letter of `beginning`.
            beginning: of the words that are looked for.
        """
        try:
            return self._known[beginning]
        except KeyError:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[beginning] = found = self._find(place, beginning)
            return found

    def _find(self, place: Place, beginning: str) -> Place | None:
        start = bisect_left(self._order, beginning, place.start, place.end)
        end = bisect_left(self._order, beginning + _AFTER_LETTERS, start, place.end)
        if start == end:
            return None
        is_word = self._order[start] == beginning
        prior = float(self._priors[start]) if is_word else None
        return Place(start, end, prior, float(self._priors[start:end].max()))

    @classmethod
    def read(cls, path: Path) -> WordList:
        """Read what `write` wrote.

        A text in UTF-8, compressed if its name ends in .xz: a line with a log-probability, then the words that have it,
        a line each; then the next log-probability.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is no such text, naming the line.
        """
        content = path.read_bytes()
        try:
            text = (lzma.decompress(content) if path.suffix == ".xz" else content).decode()
        except (lzma.LZMAError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: no text, or a damaged one: {error}") from error
        words: dict[str, float] = {}
        prior: float | None = None
        for number, line in enumerate(text.splitlines(), start=1):
            if _WORD.fullmatch(line) and prior is not None:
                words[line] = prior
            else:
                prior = _log_probability(line, f"{path}, line {number}")
        try:
            return cls(words)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write all words, the commonest first; the same list always becomes the same bytes."""
        lines: list[str] = []
        for prior in sorted(set(self._priors.tolist()), reverse=True):
            lines += [f"{prior:g}", *(self._order[at] for at in np.flatnonzero(self._priors == prior).tolist())]
        content = ("\n".join(lines) + "\n").encode()
        path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)


def _log_probability(line: str, where: str) -> float:
    try:
        prior = float(line)
    except ValueError:
        prior = 1.0
    if not -1000 < prior <= 0:
        raise ValueError(f"{where}: {line!r} is neither a word of a to z and the apostrophe nor a log-probability")
    return prior
