"""What may have been said, in words of a list: beam search over the letters that CTC heard."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .ctc_prefix import Probabilities
from .letter_hearer import BLANK, LETTERS, SPACE
from .word_list import Place, WordList

WIDTH = 200
"""Beginnings of texts that are followed from frame to frame."""

FLOOR = 1e-3
"""Share of each frame that is dealt out to all letters alike: CTC is surer of its letters than it should be."""

LEAST = math.log(1e-4)
"""A letter that is less likely than this, in its frame, is not followed."""

MOST_LETTERS = 8
"""Letters that are followed from one frame to the next."""

PRIOR_SHARE = 0.7
"""What a word's commonness counts beside what was heard, to tell which beginnings to follow."""

SILENT = 0.999
"""From this probability of the blank on, a frame says no more than the like one before it."""

_NEVER = -math.inf


class HeardText(NamedTuple):
    """A text that may have been said.

    Attributes:
        words: of the list, with single spaces.
        log_ctc: log-probability of its letters, given the audio.
        log_prior: the sum of its words' log-probabilities.
    """

    words: str
    log_ctc: float
    log_prior: float


class _Beginning(NamedTuple):
    """Of a text, as far as it was followed.

    Attributes:
        blank, letter: log-probabilities that it was heard so far and ended in a blank, or in its last letter.
        last: number of its last letter; 0 before the first.
        word: as far as its last word is written.
        place: of the words that begin so.
        prior: of the words before it.
    """

    blank: float
    letter: float
    last: int
    word: str
    place: Place
    prior: float

    def log_ctc(self) -> float:
        return _sum(self.blank, self.letter)

    def rank(self) -> float:
        """How promising it is: the word in the making counts as the commonest that it may become."""
        return self.log_ctc() + PRIOR_SHARE * (self.prior + (self.place.best if self.word else 0.0))


def search_words(posteriors: Probabilities, words: WordList, *, width: int = WIDTH) -> list[HeardText]:
    """Find the likeliest texts that consist of words of a list.

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
    smoothed = (1 - FLOOR) * posteriors[_telling(posteriors)] + FLOOR / posteriors.shape[1]
    followed = {"": _Beginning(0.0, _NEVER, 0, "", words.start, 0.0)}
    for row in np.log(smoothed):
        grown = _grow(followed, row, words)
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
    best_first = sorted(found.values(), key=lambda heard: heard.log_ctc + PRIOR_SHARE * heard.log_prior, reverse=True)
    return best_first or [HeardText("", float(np.log(smoothed[:, BLANK]).sum()), 0.0)]


def _telling(posteriors: Probabilities) -> np.ndarray:
    """Mark the frames that say something: of a stretch of silence one is enough."""
    is_silent = posteriors[:, BLANK] >= SILENT
    return ~(is_silent & np.concatenate([[False], is_silent[:-1]]))


def _grow(followed: dict[str, _Beginning], row: np.ndarray, words: WordList) -> dict[str, _Beginning]:
    """Follow all beginnings through one frame.

    Args:
        followed: by their text.
        row: (1 + 28) log-probabilities of the frame.
        words: what may be written.
    """
    grown: dict[str, _Beginning] = {}
    likeliest = [number for number in np.argsort(-row)[: MOST_LETTERS + 1].tolist() if number and row[number] > LEAST]
    heard: list[float] = row.tolist()
    for text, old in followed.items():
        before = old.log_ctc()
        again = old.letter + heard[old.last] if old.last else _NEVER
        same = _Beginning(before + heard[BLANK], again, old.last, old.word, old.place, old.prior)
        grown[text] = _joined(same, grown[text]) if text in grown else same
        for number in likeliest:
            place, word, prior = old.place, "", old.prior
            if number == SPACE:
                if not old.word or place.prior is None:
                    continue
                place, prior = words.start, prior + place.prior
            else:
                word = old.word + LETTERS[number - 1]
                narrower = words.narrow(place, word)
                if narrower is None:
                    continue
                place = narrower
            # A letter that comes twice has a blank between.
            came = (old.blank if number == old.last else before) + heard[number]
            if came == _NEVER:
                continue
            longer = text + LETTERS[number - 1]
            new = _Beginning(_NEVER, came, number, word, place, prior)
            grown[longer] = _joined(new, grown[longer]) if longer in grown else new
    return grown


def _joined(one: _Beginning, other: _Beginning) -> _Beginning:
    return one._replace(blank=_sum(one.blank, other.blank), letter=_sum(one.letter, other.letter))


def _sum(one: float, other: float) -> float:
    """Add two probabilities that are given as logarithms."""
    high, low = (one, other) if one >= other else (other, one)
    return high if low == _NEVER else high + math.log1p(math.exp(low - high))
