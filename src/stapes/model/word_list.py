"""The words that a transcript may hold, how common each is and how it is spoken."""

from __future__ import annotations

import lzma
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import chain, compress, repeat
from operator import itemgetter
from pathlib import Path
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np

from .alphabets import PHONES

_LETTERS = ascii_lowercase + "'"
_ENTRY = re.compile(f"[{_LETTERS}]+( [{re.escape(PHONES[1:])}]+)*")
_FIRST = frozenset(_LETTERS)
"""What a line with a word begins with, and one with a log-probability does not."""

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
        texts: N, in ASCII. One that stands there several times is as common as where it is most common.
        priors: (N,) log-probability of each.
    """

    def __init__(self, texts: Sequence[str], priors: np.ndarray) -> None:
        signs = np.array(texts, dtype=np.bytes_)
        self._sorted = np.lexsort((-priors, signs))
        signs = signs[self._sorted]
        is_new = np.concatenate([[True], signs[1:] != signs[:-1], [True]])
        self._first = np.flatnonzero(is_new)  # and the end behind the last
        commonest = self._sorted[self._first[:-1]]
        self._order = list(map(texts.__getitem__, commonest.tolist()))
        self._priors = priors[commonest]
        self.start = Place(0, len(self._order), None, float(priors.max()))
        self._known: dict[str, Place | None] = {}

    def same(self, text: str) -> list[int]:
        """Return which of the `texts` are this one, the commonest first; KeyError if none is."""
        place = bisect_left(self._order, text)
        if self._order[place : place + 1] != [text]:
            raise KeyError(text)
        return self._sorted[self._first[place] : self._first[place + 1]].tolist()

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
        order = sorted(words)
        ways = [(spoken or {}).get(word, ()) for word in order]
        priors = np.array([words[word] for word in order])
        self._fill(order, priors, list(chain.from_iterable(ways)), np.array([len(of_word) for of_word in ways]))

    def _fill(self, words: list[str], priors: np.ndarray, ways: list[str], num_ways: np.ndarray) -> None:
        """Keep the words, in columns: objects for each of 172,276 words take three times as long to make.

        Args:
            words: N.
            priors: (N,) their log-probabilities.
            ways: to speak them, those of the first word first.
            num_ways: (N,) how many of them are of each word.
        """
        if not words:
            raise ValueError("there are no words in it")
        if (wrong := _find_wrong(words, _LETTERS)) is not None:
            raise ValueError(f"{wrong!r} is no word; wanted letters from a to z and the apostrophe")
        self._words, self._priors, self._ways = words, priors, ways
        self._first_way = np.concatenate([[0], np.cumsum(num_ways)])  # of each word, and the end behind the last
        self._prior = dict(zip(words, priors.tolist(), strict=True))
        if len(self._prior) < len(words):
            raise ValueError(f"{Counter(words).most_common(1)[0][0]!r} stands in it twice")
        if not ways:
            return
        if not num_ways.all():
            raise ValueError(f"it is not known how {words[num_ways.argmin()]!r} is spoken, but of other words it is")
        self._word_of = np.repeat(np.arange(len(words)), num_ways)
        if (wrong := _find_wrong(ways, PHONES[1:])) is not None:
            word = words[self._word_of[ways.index(wrong)]]
            raise ValueError(f"{word!r} cannot be spoken {wrong!r}; wanted some of {PHONES[1:]}")

    @cached_property
    def written(self) -> Beginnings:
        """The words by their letters."""
        return Beginnings(self._words, self._priors)

    @cached_property
    def heard(self) -> Beginnings | None:
        """What is spoken for the words by its phones, as common as the commonest word for it; None if not known."""
        return Beginnings(self._ways, self._priors[self._word_of]) if self._ways else None

    @cached_property
    def _usual(self) -> dict[str, str]:
        """The usual way to speak each word."""
        if not self._ways:
            return {}
        return {word: self._ways[way] for word, way in zip(self._words, self._first_way[:-1].tolist(), strict=True)}

    def __len__(self) -> int:
        return len(self._words)

    def __contains__(self, word: str) -> bool:
        return word in self._prior

    def prior(self, word: str) -> float:
        """Return a word's log-probability; KeyError if it is not in the list."""
        return self._prior[word]

    def words_for(self, phones: str) -> list[str]:
        """Return the words that are spoken so, the commonest first; KeyError if none is."""
        if self.heard is None:
            raise KeyError(phones)
        return [self._words[self._word_of[way]] for way in self.heard.same(phones)]

    def pronounce(self, words: str) -> str:
        """Write words as they are usually spoken, with spaces between.

        Raises:
            ValueError: naming a word of which that is not known.
        """
        try:
            return " ".join(self._usual[word] for word in words.split())
        except KeyError as error:
            raise ValueError(f"the word list does not tell how {error} is spoken") from error

    @classmethod
    def read(cls, path: Path) -> WordList:
        """Read what `write` wrote.

        A text in UTF-8, compressed if its name ends in .xz: a line with a log-probability, then the words that have it,
        a line each, maybe with the ways to speak it behind; then the next log-probability.

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is no such text, naming the line, or the word that stands in it twice.
        """
        content = path.read_bytes()
        try:
            text = (lzma.decompress(content) if path.suffix == ".xz" else content).decode()
        except (lzma.LZMAError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: no text, or a damaged one: {error}") from error
        lines = text.splitlines()
        is_word = [line[:1] in _FIRST for line in lines]
        # All that is no word has to be a log-probability, and so has the first line.
        heads = [number for number, is_entry in enumerate(is_word) if not is_entry or number == 0]
        priors = [_log_probability(lines[number], f"{path}, line {number + 1}") for number in heads]
        words = cls.__new__(cls)
        try:
            sizes = np.diff([*heads, len(lines)]) - 1
            words._fill(*_columns(list(compress(lines, is_word)), np.repeat(priors, sizes)))
        except ValueError as error:
            for number in (number for number, is_entry in enumerate(is_word) if is_entry):
                if not _ENTRY.fullmatch(lines[number]):
                    raise ValueError(_no_line(lines[number], f"{path}, line {number + 1}")) from error
            raise ValueError(f"{path}: {error}") from error
        return words

    def write(self, path: Path) -> None:
        """Write all words, the commonest first; the same list always becomes the same bytes."""
        by_prior: dict[float, list[str]] = defaultdict(list)
        for number, word in sorted(enumerate(self._words), key=itemgetter(1)):
            ways = self._ways[self._first_way[number] : self._first_way[number + 1]]
            by_prior[self._prior[word]].append(" ".join([word, *ways]))
        lines = [line for prior in sorted(by_prior, reverse=True) for line in (f"{prior:g}", *by_prior[prior])]
        content = ("\n".join(lines) + "\n").encode()
        path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)


def _find_wrong(texts: Collection[str], signs: str) -> str | None:
    """Return the first text that is empty or holds other signs than these, or None."""
    # All at once: one by one takes a quarter of a second for the words of stapes-tiny, at each loading.
    if "" not in texts and set("".join(texts)) <= set(signs):
        return None
    return next(text for text in texts if not text or not set(signs).issuperset(text))


def _log_probability(line: str, where: str) -> float:
    try:
        prior = float(line)
    except ValueError:
        prior = 1.0
    if not -1000 < prior <= 0:
        raise ValueError(_no_line(line, where))
    return prior


def _no_line(line: str, where: str) -> str:
    return (
        f"{where}: {line!r} is neither a word of a to z and the apostrophe, alone or with ways to speak it, nor a "
        "log-probability"
    )


def _columns(entries: list[str], priors: np.ndarray) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Take lines with words apart into what `WordList` keeps."""
    num_ways = np.fromiter(map(str.count, entries, repeat(" ")), int, len(entries))
    texts = " ".join(entries).split(" ")
    is_way = np.ones(len(texts), dtype=bool)
    is_way[np.cumsum(num_ways + 1) - num_ways - 1] = False
    words, ways = (list(compress(texts, chosen.tolist())) for chosen in (~is_way, is_way))
    return words, priors, ways, num_ways
