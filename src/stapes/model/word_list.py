"""The words that a transcript may hold, how common each is and how it is spoken."""

from __future__ import annotations

import lzma
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np

from .alphabets import PHONES

_LETTERS = ascii_lowercase + "'"
_ENTRY = re.compile(f"[{_LETTERS}]+( [{re.escape(PHONES[1:])}]+)*")
_AFTER_ALL = "{"
"""Comes behind all letters and phones in ASCII."""

MOST_KNOWN = 200_000
"""Beginnings of words, some 150 bytes each, that a list keeps the places of: all that occur in hours of speech."""


class Place(NamedTuple):
    """Where in an order the words stand that begin alike.

    Attributes:
        start, end: their part of the order.
        prior: log-probability of the word that ends here, or None.
        best: that of the likeliest of these words.
    """

    start: int
    end: int
    prior: float | None
    best: float


class Beginnings:
    """Words, or what is spoken for them, found by how they begin.

    Args:
        priors: log-probability of each.
    """

    def __init__(self, priors: Mapping[str, float]) -> None:
        self._order = sorted(priors)
        self._priors = np.array([priors[word] for word in self._order])
        self.start = Place(0, len(self._order), None, float(self._priors.max()))
        self._known: dict[str, Place | None] = {}

    def narrow(self, place: Place, beginning: str) -> Place | None:
        """Find, among words that begin alike, those that go on so; None if there are none.

        Args:
            place: of the words that begin with all but the last sign of `beginning`.
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
        end = bisect_left(self._order, beginning + _AFTER_ALL, start, place.end)
        if start == end:
            return None
        is_word = self._order[start] == beginning
        prior = float(self._priors[start]) if is_word else None
        return Place(start, end, prior, float(self._priors[start:end].max()))


class WordList:
    """Words with their log-probabilities, and maybe how each is spoken.

    Args:
        words: of a to z and the apostrophe. The probabilities need not sum to one: all that matters is how common words
            are beside each other.
        spoken: the ways to speak each word, the usual one first, in the signs of `alphabets.ARPABET`; None if they are
            not known.

    Raises:
        ValueError: if there are no words, one holds anything else, or it is known of some of them only how they are
            spoken.
    """

    def __init__(self, words: Mapping[str, float], spoken: Mapping[str, Sequence[str]] | None = None) -> None:
        if not words:
            raise ValueError("there are no words in it")
        self._words, self._spoken = dict(words), dict(spoken or {})
        if (wrong := _find_wrong(words, _LETTERS)) is not None:
            raise ValueError(f"{wrong!r} is no word; wanted letters from a to z and the apostrophe")
        if not self._spoken:
            return
        if unknown := next((word for word in words if not self._spoken.get(word)), None):
            raise ValueError(f"it is not known how {unknown!r} is spoken, but of other words it is")
        if (wrong := _find_wrong(list(chain.from_iterable(self._spoken.values())), PHONES[1:])) is not None:
            word = next(word for word, ways in self._spoken.items() if wrong in ways)
            raise ValueError(f"{word!r} cannot be spoken {wrong!r}; wanted some of {PHONES[1:]}")

    @cached_property
    def written(self) -> Beginnings:
        """The words by their letters."""
        return Beginnings(self._words)

    @cached_property
    def heard(self) -> Beginnings | None:
        """What is spoken for the words by its phones, as common as the commonest word for it; None if not known."""
        if not self._spoken:
            return None
        return Beginnings({way: self._words[words[0]] for way, words in self._words_for.items()})

    @cached_property
    def _words_for(self) -> dict[str, list[str]]:
        words_for: dict[str, list[str]] = defaultdict(list)
        for word in sorted(self._spoken, key=lambda word: (-self._words[word], word)):
            for way in self._spoken[word]:
                words_for[way].append(word)
        return dict(words_for)

    def __len__(self) -> int:
        return len(self._words)

    def __contains__(self, word: str) -> bool:
        return word in self._words

    def prior(self, word: str) -> float:
        """Return a word's log-probability; KeyError if it is not in the list."""
        return self._words[word]

    def words_for(self, phones: str) -> Sequence[str]:
        """Return the words that are spoken so, the commonest first; KeyError if none is."""
        return self._words_for[phones]

    def pronounce(self, words: str) -> str:
        """Write words as they are usually spoken, with spaces between.

        Raises:
            ValueError: naming a word of which that is not known.
        """
        try:
            return " ".join(self._spoken[word][0] for word in words.split())
        except KeyError as error:
            raise ValueError(f"the word list does not tell how {error} is spoken") from error

    @classmethod
    def read(cls, path: Path) -> WordList:
        """Read what `write` wrote.

        A text in UTF-8, compressed if its name ends in .xz: a line with a log-probability, then the words that have it,
        a line each, maybe with the ways to speak it behind; then the next log-probability.

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
        spoken: dict[str, list[str]] = {}
        prior: float | None = None
        for number, line in enumerate(text.splitlines(), start=1):
            if prior is not None and _ENTRY.fullmatch(line):
                word, *ways = line.split(" ")
                words[word] = prior
                if ways:
                    spoken[word] = ways
            else:
                prior = _log_probability(line, f"{path}, line {number}")
        try:
            return cls(words, spoken)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def write(self, path: Path) -> None:
        """Write all words, the commonest first; the same list always becomes the same bytes."""
        by_prior: dict[float, list[str]] = defaultdict(list)
        for word in sorted(self._words):
            by_prior[self._words[word]].append(" ".join([word, *self._spoken.get(word, ())]))
        lines = [line for prior in sorted(by_prior, reverse=True) for line in (f"{prior:g}", *by_prior[prior])]
        content = ("\n".join(lines) + "\n").encode()
        path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)


def _find_wrong(texts: Collection[str], signs: str) -> str | None:
    """Return the first text that is empty or holds other signs than these, or None."""
    # All at once: one by one takes a quarter of a second for the words of stapes-tiny, at each loading.
    if "" not in texts and set().union(*texts) <= set(signs):
        return None
    return next(text for text in texts if not text or not set(signs).issuperset(text))


def _log_probability(line: str, where: str) -> float:
    try:
        prior = float(line)
    except ValueError:
        prior = 1.0
    if not -1000 < prior <= 0:
        raise ValueError(
            f"{where}: {line!r} is neither a word of a to z and the apostrophe, alone or with ways to speak it, nor a "
            "log-probability"
        )
    return prior
