"""What may have been said, in words of a list: beam search over the letters or phones that CTC heard."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .alphabets import BLANK, LETTERS, PHONES, SPACE
from .ctc_prefix import Probabilities
from .word_list import Beginnings, Place, WordList

WIDTH = 200
"""Beginnings of texts that are followed from frame to frame."""

FLOOR = 1e-3
"""Share of each frame that is dealt out to all symbols alike: CTC is surer of what it hears than it should be."""

LEAST = math.log(1e-4)
"""A symbol that is less likely than this, in its frame, is not followed."""

MOST_SYMBOLS = 8
"""Symbols that are followed from one frame to the next."""

PRIOR_SHARE = 0.7
"""What a word's commonness counts beside what was heard, to tell which beginnings to follow."""

MOST_SPELLINGS = 8
"""Texts that are written for one and the same sequence of phones, those of the commonest words."""

SILENT = 0.999
"""From this probability of the blank on, a frame says no more than the like one before it."""

_NEVER = -math.inf


class HeardText(NamedTuple):
    """A text that may have been said.

    Attributes:
        words: of the list, with single spaces.
        log_ctc: log-probability of its letters or phones, given the audio.
        log_prior: the sum of its words' log-probabilities.
    """

    words: str
    log_ctc: float
    log_prior: float


class _Beginning(NamedTuple):
    """Of a text, as far as it was followed.

    Attributes:
        blank, symbol: log-probabilities that it was heard so far and ended in a blank, or in its last symbol.
        last: number of its last symbol; 0 before the first.
        word: as far as its last word is written.
        place: of the words that begin so.
        prior: of the words before it.
    """

    blank: float
    symbol: float
    last: int
    word: str
    place: Place
    prior: float

    def log_ctc(self) -> float:
        return _sum(self.blank, self.symbol)

    def rank(self) -> float:
        """How promising it is: the word in the making counts as the commonest that it may become."""
        return self.log_ctc() + PRIOR_SHARE * (self.prior + (self.place.best if self.word else 0.0))


def search_words(posteriors: Probabilities, words: WordList, *, width: int = WIDTH) -> list[HeardText]:
    """Find the likeliest texts that consist of words of a list, by their letters.

    Source: prefix beam search (Hannun et al. 2014, arXiv 1408.2873, Algorithm 1) with a lexicon, as in Collobert et al.
    2016 (arXiv 1609.03193, sec. 2.3). Where we differ: the language model of the search is a word's commonness alone;
    an LLM chooses among what it finds (`transcripts.TranscriptChooser`).

    Args:
        posteriors: (T, 1 + 28) of each encoder frame, blank first; each row sums to one.
        words: all others are never found.
        width: beginnings that are followed from frame to frame.

    Returns:
        at most `width` texts, by what was heard and how common their words are together, the likeliest first. The empty
        text may be one of them; nothing else is there if nothing fits.
    """
    return _search(posteriors, words.written, LETTERS, width)


def search_phones(posteriors: Probabilities, words: WordList, *, width: int = WIDTH) -> list[HeardText]:
    """Find the likeliest texts that consist of words of a list, by how they are spoken.

    Words that sound alike are told apart by how common they are alone, so that several texts have one `log_ctc`. A text
    that may be spoken in several ways is as likely as all of them together.

    Args:
        posteriors: (T, 1 + 40) of each encoder frame, blank first; each row sums to one.
        words, width: as for `search_words`.

    Returns:
        at most `width` texts, as `search_words` does.

    Raises:
        ValueError: if it is not known how the words are spoken.
    """
    if words.heard is None:
        raise ValueError("the word list does not tell how its words are spoken")
    texts: dict[str, HeardText] = {}
    for text in _spellings(_search(posteriors, words.heard, PHONES, width), words):
        if text.words in texts:
            text = text._replace(log_ctc=_sum(text.log_ctc, texts[text.words].log_ctc))
        texts[text.words] = text
    return sorted(texts.values(), key=_rank, reverse=True)[:width]


def _spellings(found: Iterable[HeardText], words: WordList) -> Iterable[HeardText]:
    """Write what was found in phones as words, in the likeliest ways."""
    for text in found:
        ways: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]
        for spoken in text.words.split():
            longer = [
                (prior + words.prior(word), (*before, word))
                for prior, before in ways
                for word in words.words_for(spoken)
            ]
            ways = heapq.nlargest(MOST_SPELLINGS, longer)
        for prior, said in ways:
            yield HeardText(" ".join(said), text.log_ctc, prior)


def _search(posteriors: Probabilities, words: Beginnings, alphabet: str, width: int) -> list[HeardText]:
    smoothed = (1 - FLOOR) * posteriors[_telling(posteriors)] + FLOOR / posteriors.shape[1]
    followed = {"": _Beginning(0.0, _NEVER, 0, "", words.start, 0.0)}
    for row in np.log(smoothed):
        grown = _grow(followed, row, words, alphabet)
        promising = sorted(grown.items(), key=lambda item: item[1].rank(), reverse=True)
        followed = dict(promising[:width])
    found: dict[str, HeardText] = {}
    for text, beginning in followed.items():
        prior = beginning.place.prior if beginning.word else 0.0
        if prior is None:  # cut off within a word
            continue
        words_said = text.removesuffix(" ")
        heard = HeardText(words_said, beginning.log_ctc(), beginning.prior + prior)
        if words_said in found:  # with a space behind it, and without
            heard = heard._replace(log_ctc=_sum(heard.log_ctc, found[words_said].log_ctc))
        found[words_said] = heard
    return sorted(found.values(), key=_rank, reverse=True) or [
        HeardText("", float(np.log(smoothed[:, BLANK]).sum()), 0.0)
    ]


def _rank(text: HeardText) -> float:
    return text.log_ctc + PRIOR_SHARE * text.log_prior


def _telling(posteriors: Probabilities) -> np.ndarray:
    """Mark the frames that say something: of a stretch of silence one is enough."""
    is_silent = posteriors[:, BLANK] >= SILENT
    return ~(is_silent & np.concatenate([[False], is_silent[:-1]]))


def _grow(followed: dict[str, _Beginning], row: np.ndarray, words: Beginnings, alphabet: str) -> dict[str, _Beginning]:
    """Follow all beginnings through one frame.

    Args:
        followed: by their text.
        row: (1 + N) log-probabilities of the frame.
        words: what may be written.
        alphabet: the N symbols.
    """
    grown: dict[str, _Beginning] = {}
    likeliest = [number for number in np.argsort(-row)[: MOST_SYMBOLS + 1].tolist() if number and row[number] > LEAST]
    heard: list[float] = row.tolist()
    for text, old in followed.items():
        before = old.log_ctc()
        again = old.symbol + heard[old.last] if old.last else _NEVER
        same = _Beginning(before + heard[BLANK], again, old.last, old.word, old.place, old.prior)
        grown[text] = _joined(same, grown[text]) if text in grown else same
        for number in likeliest:
            place, word, prior = old.place, "", old.prior
            if number == SPACE:
                if not old.word or place.prior is None:
                    continue
                place, prior = words.start, prior + place.prior
            else:
                word = old.word + alphabet[number - 1]
                narrower = words.narrow(place, word)
                if narrower is None:
                    continue
                place = narrower
            # A symbol that comes twice has a blank between.
            came = (old.blank if number == old.last else before) + heard[number]
            if came == _NEVER:
                continue
            longer = text + alphabet[number - 1]
            new = _Beginning(_NEVER, came, number, word, place, prior)
            grown[longer] = _joined(new, grown[longer]) if longer in grown else new
    return grown


def _joined(one: _Beginning, other: _Beginning) -> _Beginning:
    return one._replace(blank=_sum(one.blank, other.blank), symbol=_sum(one.symbol, other.symbol))


def _sum(one: float, other: float) -> float:
    """Add two probabilities that are given as logarithms."""
    high, low = (one, other) if one >= other else (other, one)
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))
