"""Letters that CTC heard, told in tokens: against a sum over all alignments of all texts."""

from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stapes.model import TokenLetters
from stapes.model.heard_letters import UNLIKELY
from stapes.model.letter_hearer import LETTERS, letter_numbers

TOKENS = ["Ġ", "a", "b", "Ġa", "Ġb", "ab", "Ġab", "A", "-", "'", "7", "<end>"]
FRAMES = 5
HEARD = " ab"


@pytest.fixture
def letters() -> TokenLetters:
    vocabulary = {token: number for number, token in enumerate(TOKENS[:-1])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "ab"), ("Ġ", "a"), ("Ġ", "b")]))
    made.add_special_tokens(["<end>"])
    return TokenLetters(PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>"))


def logits() -> Tensor:
    """Of blank, space, a and b alone (T, 1 + 28)."""
    drawn = np.random.default_rng(0).random((FRAMES, 1 + len(HEARD))) ** 2
    full = np.full((FRAMES, 1 + len(LETTERS)), 1e-12)
    full[:, [0, *letter_numbers(HEARD)]] = drawn / drawn.sum(axis=1, keepdims=True)
    return torch.from_numpy(full).log()


def texts() -> dict[str, float]:
    """How likely each text is, by writing out all 4⁵ alignments."""
    of, found = logits().exp().numpy()[:, [0, *letter_numbers(HEARD)]], {}
    for path in product(range(1 + len(HEARD)), repeat=FRAMES):
        text = "".join(HEARD[number - 1] for number, _ in groupby(path) if number)
        found[text] = found.get(text, 0.0) + float(np.prod(of[range(FRAMES), path]))
    return found


def told(letters: TokenLetters, *tokens: str) -> tuple[dict[str, float], float]:
    expected = letters.listen(logits()).expected(tuple(TOKENS.index(token) for token in tokens))
    assert expected is not None
    return dict(zip(TOKENS, expected.tokens.exp().tolist(), strict=False)), float(np.exp(expected.end))


BEHIND_LETTERS = {
    " ": ["Ġ"],
    "a": ["a", "A"],
    "b": ["b"],
    "ab": ["ab"],
    " a": ["Ġa"],
    " b": ["Ġb"],
    " ab": ["Ġab"],
}


@pytest.mark.parametrize(
    ("tokens", "said", "may_follow"),
    [
        ((), "", {"a": ["a", "Ġa", "A"], "b": ["b", "Ġb"], "ab": ["ab", "Ġab"]}),
        (("Ġa",), "a", BEHIND_LETTERS),
        (("A", "b"), "ab", BEHIND_LETTERS),
        (("a", "-"), "a", {" a": ["a", "Ġa", "A"], " b": ["b", "Ġb"], " ab": ["ab", "Ġab"]}),
        (("a", "-", "b"), "a b", BEHIND_LETTERS),
    ],
)
def test_a_token_is_likely_as_the_longest_that_fits(
    letters: TokenLetters, tokens: tuple[str, ...], said: str, may_follow: dict[str, list[str]]
) -> None:
    begins = {text[len(said) :]: likely for text, likely in texts().items() if text.startswith(said)}
    total, found = sum(begins.values()), told(letters, *tokens)
    assert found[1] == pytest.approx(begins[""] / total, rel=1e-4)
    for spelling, ids in may_follow.items():
        longer = tuple(other for other in may_follow if other.startswith(spelling) and other != spelling)
        mass = sum(
            likely for rest, likely in begins.items() if rest.startswith(spelling) and not rest.startswith(longer)
        )
        for token in ids:
            assert found[0][token] == pytest.approx(mass / total, rel=1e-4, abs=UNLIKELY), token


def test_what_is_not_heard_cannot_be_written_and_signs_are_known(letters: TokenLetters) -> None:
    tokens, _ = told(letters)
    assert tokens["7"] == 0.0
    assert [token for token, sign in zip(TOKENS, letters.signs.tolist(), strict=False) if sign] == ["-"]
    assert 0 < tokens["'"] < 1e-20  # an apostrophe is a letter, and not heard here


def test_impossible_texts_are_told_apart(letters: TokenLetters) -> None:
    listener = letters.listen(logits()[:1])
    assert listener.expected((TOKENS.index("ab"), TOKENS.index("ab"))) is None
