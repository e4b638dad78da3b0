"""Pieces of words that were heard, told in tokens of an LLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .ctc_guide import LEAST, Expected
from .ctc_prefix import WrittenPrefixes
from .ctc_vocabulary import CTCVocabulary
from .token_texts import is_sign, spoken_form

_FREE, _NEVER = 0, -1


class TokenPieces:
    """Which of the LLM's tokens is which piece of a word to CTC.

    Capitals do not matter: ` Two` is ` two`. A token without a space in front that begins a word, at the start or
    behind a hyphen, is the piece with one. ASCII's signs are no piece: CTC neither hears nor forbids them. All other
    tokens (digits, other scripts) cannot be in a guided transcript.

    Args:
        tokenizer: of the LLM.
        vocabulary: made from it.

    Attributes:
        first: (V,) piece number of each token where a word begins; 0 for signs, -1 for what CTC cannot hear.
        later: the same within a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: CTCVocabulary) -> None:
        number = {piece: index for index, piece in enumerate(vocabulary.pieces, start=1)}
        known = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
        special = set(tokenizer.all_special_ids)
        first, later = ([_NEVER] * (1 + max(known)) for _ in range(2))
        self._usual, self._opening = [0, *vocabulary.token_ids], dict[int, int]()
        for token_id, token in known.items():
            if token_id in special:
                continue
            text = spoken_form(token)
            if (piece := number.get(text)) is None:
                piece = _FREE if is_sign(token) else _NEVER
            later[token_id] = piece
            first[token_id] = number.get(f"Ġ{text}", piece)
            if first[token_id] > 0 and token[0] in ascii_uppercase and token[1:] == text[1:]:
                self._opening[first[token_id]] = token_id
            elif token == "ĠI" and later[token_id] > 0:
                self._usual[later[token_id]] = token_id
        self.first, self.later = torch.tensor(first), torch.tensor(later)

    @property
    def signs(self) -> Tensor:
        """(V,) True for tokens that are signs."""
        return self.later == _FREE

    def listen(self, logits: Tensor) -> PieceListener:
        """Follow a clip's steps (S, 1 + C)."""
        return PieceListener(logits, self)

    def dictate(self, text: Sequence[int]) -> Dictation:
        """Have a text written down, given as numbers of its pieces."""
        return Dictation(text, self)

    def numbers(self, written: tuple[int, ...]) -> Tensor:
        """Return the pieces that tokens are, (V,), behind those written."""
        begins = not written or self.later[written[-1]] == _FREE
        return self.first if begins else self.later

    def usual_tokens(self, text: Sequence[int], *, opens: bool) -> list[int]:
        """Spell numbers of pieces as they are mostly written: in lower case, with a capital where they open a text."""
        tokens = [self._usual[piece] for piece in text]
        if opens and tokens:
            tokens[0] = self._opening.get(text[0], tokens[0])
        return tokens

    def heard_as(self, written: tuple[int, ...]) -> list[int]:
        """Return the piece that the last of some tokens is; none if it is a sign."""
        piece = int(self.numbers(written[:-1])[written[-1]])
        return [piece] if piece > 0 else []


class PieceListener:
    """What CTC heard of one clip in pieces of words: a `Listener`.

    Args:
        logits: (S, 1 + C) of the clip's steps, blank first.
        pieces: see `TokenPieces`.
    """

    def __init__(self, logits: Tensor, pieces: TokenPieces) -> None:
        self._pieces = pieces
        self._prefixes = WrittenPrefixes(logits.double().softmax(dim=-1).cpu().numpy(), pieces.heard_as)

    def expected(self, written: tuple[int, ...]) -> Expected | None:
        """Say what is to come after these tokens; None if CTC finds them impossible."""
        likely = self._prefixes[written].next
        if likely is None:
            return None
        log_ctc = torch.from_numpy(np.log(np.maximum(likely, LEAST))).float()
        numbers = self._pieces.numbers(written)
        tokens = torch.where(numbers > 0, log_ctc[numbers.clamp(min=0)], -torch.inf)
        return Expected(tokens, float(log_ctc[0]))


class Dictation:
    """A text that is decided on, while it is written down: a `Listener`.

    It says nothing about signs and capitals.

    Args:
        text: numbers of its pieces.
        pieces: see `TokenPieces`.
    """

    def __init__(self, text: Sequence[int], pieces: TokenPieces) -> None:
        self._text, self._pieces = list(text), pieces
        self._told: dict[tuple[int, ...], int | None] = {(): 0}

    def expected(self, written: tuple[int, ...]) -> Expected | None:
        """Say what is to come after these tokens; None if they are no beginning of the text."""
        told = self._count(written)
        if told is None:
            return None
        if told == len(self._text):
            return Expected(torch.full(self._pieces.later.shape, -torch.inf), 0.0)
        # The LLM may set a sign within a word ("re-enter"), so a piece of one may follow a sign.
        piece = self._text[told]
        is_next = (self._pieces.numbers(written) == piece) | (self._pieces.later == piece)
        return Expected(torch.where(is_next, 0.0, -torch.inf), -math.inf)

    def draft(self, written: Sequence[int]) -> list[int]:
        """Guess the tokens that will tell the rest of the text, behind those written; without signs."""
        told = self._count(tuple(written))
        return [] if told is None else self._pieces.usual_tokens(self._text[told:], opens=not written)

    def _count(self, written: tuple[int, ...]) -> int | None:
        """Count the pieces that were told; None if some token told another one."""
        if written not in self._told:
            before, token = self._count(written[:-1]), written[-1]
            later = int(self._pieces.later[token])
            if later == _FREE or before is None:
                self._told[written] = before
            else:
                said = {later, int(self._pieces.numbers(written[:-1])[token])}
                self._told[written] = before + 1 if said & set(self._text[before : before + 1]) else None
        return self._told[written]
