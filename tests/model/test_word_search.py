"""Words found among letters, against a search through all texts and all alignments."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from stapes.model import HeardText, WordList, phone_numbers, search_phones, search_words
from stapes.model.alphabets import LETTERS, PHONES, letter_numbers
from stapes.model.word_search import FLOOR, PRIOR_SHARE

WORDS = WordList({"a": -1.0, "ab": -2.0, "bb": -1.2, "b": -3.0})


def hears(*frames: dict[str, float], symbols: str = LETTERS) -> np.ndarray:
    """Posteriors (T, 1 + N) that find these symbols this likely, and are silent with what is left."""
    posteriors = np.zeros((len(frames), 1 + len(symbols)))
    for row, likely in zip(posteriors, frames, strict=True):
        for symbol, probability in likely.items():
            row[1 + symbols.index(symbol)] = probability
        row[0] = 1 - sum(likely.values())
    return posteriors


def says(text: str, sure: float = 0.99) -> np.ndarray:
    """A letter, then silence, and so on."""
    return hears(*(frame for letter in text for frame in ({letter: sure}, {})))


def exhaustive(posteriors: np.ndarray) -> dict[str, float]:
    """The probability of each text, by all alignments of the few letters that are heard at all."""
    smoothed = (1 - FLOOR) * posteriors + FLOOR / posteriors.shape[1]
    symbols = [0, *(number for letter in " ab" for number in letter_numbers(letter))]
    found: dict[str, float] = {}
    for path in product(symbols, repeat=len(smoothed)):
        kept = [now for before, now in zip((0, *path), path, strict=False) if now and now != before]
        text = "".join(LETTERS[number - 1] for number in kept)
        found[text] = found.get(text, 0.0) + math.prod(smoothed[t, number] for t, number in enumerate(path))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_as_likely_as_all_its_alignments(seed: int) -> None:
    generator = np.random.default_rng(seed)
    frames = generator.dirichlet([0.7] * 4, size=5)
    posteriors = hears(*({" ": s, "a": a, "b": b} for s, a, b, _ in frames))
    texts = exhaustive(posteriors)
    found = search_words(posteriors, WORDS, width=10_000)
    assert found
    for text in found:
        with_space = texts.get(f"{text.words} ", 0.0) if text.words else 0.0  # none is heard before the first word
        assert math.exp(text.log_ctc) == pytest.approx(texts.get(text.words, 0.0) + with_space, rel=1e-6)
        priors = {"a": -1.0, "ab": -2.0, "bb": -1.2, "b": -3.0}
        assert text.log_prior == pytest.approx(sum(priors[word] for word in text.words.split()))
    ranks = [text.log_ctc + PRIOR_SHARE * text.log_prior for text in found]
    assert ranks == sorted(ranks, reverse=True)
    assert len({text.words for text in found}) == len(found)


def test_only_words_of_the_list_are_found() -> None:
    found = search_words(says("ba a"), WORDS)
    assert found[0].words in ("b a", "a a", "bb a", "ab a")
    assert all(word in WORDS for text in found for word in text.words.split())
    assert search_words(says("ab bb a"), WORDS)[0].words == "ab bb a"


def test_a_letter_that_comes_twice_needs_a_pause_between() -> None:
    words = WordList({"b": -1.0, "bb": -1.0})
    assert search_words(hears({"b": 0.9}, {"b": 0.9}), words)[0].words == "b"
    assert search_words(hears({"b": 0.9}, {}, {"b": 0.9}), words)[0].words == "bb"


def test_the_commoner_word_wins_where_both_fit() -> None:
    heard = hears({"a": 0.45, "o": 0.55})
    assert search_words(heard, WordList({"a": -1.0, "o": -9.0}))[0].words == "a"
    assert search_words(heard, WordList({"a": -1.0, "o": -1.0}))[0].words == "o"


def test_silence_is_no_word_however_long() -> None:
    found = search_words(hears(*[{}] * 500), WORDS)
    assert found[0].words == ""
    assert found[0].log_prior == 0
    # A long silence between words says nothing more than a short one.
    short, long = (search_words(np.concatenate([says("a "), hears(*[{}] * n), says("b")]), WORDS)[0] for n in (2, 300))
    assert (short.words, long.words) == ("a b", "a b")
    assert long.log_ctc == pytest.approx(short.log_ctc, abs=0.01)


def test_a_text_that_fits_no_word_is_empty() -> None:
    assert search_words(says("q", sure=0.999999), WordList({"a": -1.0}))[0].words == ""


def test_fewer_are_found_where_fewer_are_followed() -> None:
    generator = np.random.default_rng(0)
    posteriors = hears(*({" ": s, "a": a, "b": b} for s, a, b, _ in generator.dirichlet([1.0] * 4, size=12)))
    assert len(search_words(posteriors, WORDS, width=3)) <= 3
    many = search_words(posteriors, WORDS, width=200)
    assert isinstance(many[0], HeardText)
    assert len(many) > 3


SPOKEN = WordList(
    {"to": -1.0, "too": -3.0, "two": -4.0, "a": -2.0, "eh": -6.0},
    {"to": ["tu", "tA"], "too": ["tu"], "two": ["tu"], "a": ["A", "e"], "eh": ["e"]},
)


def spells(phones: str) -> np.ndarray:
    """A phone, then silence, and so on."""
    return hears(*(frame for phone in phones for frame in ({phone: 0.99}, {})), symbols=PHONES)


def test_words_that_sound_alike_are_all_found_the_commonest_first() -> None:
    found = search_phones(spells("tu"), SPOKEN)
    alike = [text for text in found if text.words in ("to", "too", "two")]
    assert [text.words for text in alike] == ["to", "too", "two"]
    assert [text.log_prior for text in alike] == [-1.0, -3.0, -4.0]
    assert alike[1].log_ctc == alike[2].log_ctc
    assert found[0] is alike[0]


def test_a_word_is_as_likely_as_all_ways_to_speak_it() -> None:
    frames = [{"t": 0.9, "e": 0.05}, {"u": 0.5, "A": 0.3}]
    posteriors = hears(*frames, symbols=PHONES)
    found = {text.words: text for text in search_phones(posteriors, SPOKEN, width=10_000)}
    smoothed = (1 - FLOOR) * posteriors + FLOOR / posteriors.shape[1]
    t, u, schwa = phone_numbers("tuA")
    assert math.exp(found["to"].log_ctc) == pytest.approx(smoothed[0, t] * (smoothed[1, u] + smoothed[1, schwa]))
    assert math.exp(found["two"].log_ctc) == pytest.approx(smoothed[0, t] * smoothed[1, u])


def test_a_text_of_many_homophones_is_written_in_its_likeliest_ways() -> None:
    texts = [text.words for text in search_phones(spells("tu e tu"), SPOKEN, width=10_000)]
    assert texts[0] == "to a to"
    assert {"to a too", "too a to", "to eh to"} < set(texts)
    assert "two eh two" not in texts
    assert len(search_phones(spells("tu e tu"), SPOKEN, width=3)) == 3


def test_phones_say_nothing_of_words_that_nobody_knows_how_to_speak() -> None:
    with pytest.raises(ValueError, match="the word list does not tell how its words are spoken"):
        search_phones(spells("a"), WORDS)
