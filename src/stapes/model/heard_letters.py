"""Letters that CTC heard, told in tokens of an LLM."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .ctc_guide import LEAST, Expected
from .ctc_prefix import CTCPrefix, WrittenPrefixes
from .letter_hearer import LETTERS, letter_numbers
from .token_texts import is_sign, is_spoken, spoken_form

_AFTER_LETTERS = "{"
"""Comes behind all letters in ASCII."""

UNLIKELY = 1e-5
"""Texts that CTC finds less likely than this, as a continuation, are not followed further."""

SHORTER = 1e-3
"""How much of a token's mass it keeps that longer tokens lay claim to."""


class _Spellings:
    """Tokens by their spelling, in an order in which those that begin alike stand together.

    Args:
        tokens: ids by spelling.
    """

    def __init__(self, tokens: dict[str, list[int]]) -> None:
        self.tokens = tokens
        self._order = sorted(tokens)
        self.all = (0, len(self._order))

    def narrow(self, place: tuple[int, int], beginning: str) -> tuple[int, int]:
        """Find, within a part of the order, the part of the spellings that begin so."""
        start = bisect_left(self._order, beginning, *place)
        return start, bisect_left(self._order, beginning + _AFTER_LETTERS, start, place[1])


class TokenLetters:
    """How the LLM's tokens are spelt in the letters that CTC hears.

    Capitals do not matter. A token without a space in front that begins a word behind a hyphen is spelt with one; at
    the start of a text no token is. ASCII's signs are not spelt: CTC neither hears nor forbids them. All other tokens
    (digits, other scripts) cannot be in a guided transcript.

    Args:
        tokenizer: of the LLM.

    Attributes:
        spelling: of each token that can be spelt, with a space for Ġ.
        signs: (V,) True for tokens that are signs.
        unheard: (V,) log-probability of tokens that can be spelt but are not heard; -inf for the others.
        at_start: the tokens that may begin a word, without their space.
        later: all tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        special = set(tokenizer.all_special_ids)
        known = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
        self.signs = torch.zeros(1 + max(known), dtype=torch.bool)
        self.spelling: dict[int, str] = {}
        at_start, later = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
        for token_id, token in known.items():
            if token_id in special:
                continue
            text = spoken_form(token)
            if not is_spoken(text):
                self.signs[token_id] = is_sign(token)
                continue
            self.spelling[token_id] = spelling = text.replace("Ġ", " ")
            later[spelling].append(token_id)
            if word := spelling.strip():
                at_start[word].append(token_id)
        self.unheard = np.full(len(self.signs), -np.inf)
        self.unheard[list(self.spelling)] = math.log(LEAST)
        self.at_start, self.later = _Spellings(dict(at_start)), _Spellings(dict(later))

    def listen(self, logits: Tensor) -> LetterListener:
        """Follow a clip's frames (T, 1 + 28)."""
        return LetterListener(logits, self)


class LetterListener:
    """What CTC heard of one clip in letters: a `Listener`.

    A token's probability is that the text goes on with its spelling, and with none of a longer token that begins so:
    an LLM's BPE takes the longest that fits, nearly always. But for `UNLIKELY` and `SHORTER`, and for the space that is
    implied behind a sign, all of them and the end sum to one.

    Args:
        logits: (T, 1 + 28) of the clip's frames, blank first.
        letters: see `TokenLetters`.
    """

    def __init__(self, logits: Tensor, letters: TokenLetters) -> None:
        self._letters = letters
        self._prefixes = WrittenPrefixes(logits.double().softmax(dim=-1).cpu().numpy(), self._heard_as)

    def expected(self, written: tuple[int, ...]) -> Expected | None:
        """Say what is to come after these tokens; None if CTC finds them impossible."""
        prefix = self._prefixes[written]
        likely = prefix.next
        if likely is None:
            return None
        end = math.log(max(float(likely[0]), LEAST))
        spellings, lead = self._context(written)
        tokens = self._letters.unheard.copy()
        reached = 1.0
        for letter in letter_numbers(lead):
            prefix, reached = prefix.extended(letter), float(likely[letter])
        self._spread(prefix, reached, spellings, spellings.all, "", tokens)
        return Expected(torch.from_numpy(tokens).float(), end)

    def _spread(
        self,
        prefix: CTCPrefix,
        reached: float,
        spellings: _Spellings,
        place: tuple[int, int],
        spelt: str,
        tokens: np.ndarray,
    ) -> float:
        """Note the log-probabilities of the tokens that begin with `spelt`, and return how much mass they hold.

        Args:
            prefix: what is written, with `spelt` behind it.
            reached: its probability, given what is written.
            spellings, place: where in their order those tokens are.
            spelt: no token ends with it.
            tokens: (V,) changed in place.
        """
        likely, held = prefix.next, 0.0
        if likely is None:
            return held
        for letter in np.flatnonzero(reached * likely[1:] >= UNLIKELY).tolist():
            longer = spelt + LETTERS[letter]
            start, end = spellings.narrow(place, longer)
            ids = spellings.tokens.get(longer, [])
            mass, below = reached * float(likely[1 + letter]), 0.0
            if end - start > bool(ids):
                below = self._spread(prefix.extended(1 + letter), mass, spellings, (start, end), longer, tokens)
            if ids:
                tokens[ids] = math.log(max(mass - below, SHORTER * mass))
            held += mass if ids else below
        return held

    def _context(self, written: tuple[int, ...]) -> tuple[_Spellings, str]:
        """Return the tokens that may come behind those written, and what is heard before them."""
        letters = self._letters
        if written and written[-1] in letters.spelling:
            return letters.later, ""
        return letters.at_start, " " if any(token in letters.spelling for token in written) else ""

    def _heard_as(self, written: tuple[int, ...]) -> list[int]:
        spellings, lead = self._context(written[:-1])
        spelling = self._letters.spelling.get(written[-1], "")
        if spelling and spellings is self._letters.at_start:
            spelling = lead + spelling.strip()
        return letter_numbers(spelling)
