"""The part of CTC's output layer that knows pieces of words by their letters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LONGEST_GROUP = 3
MAX_GROUPS = 40
"""Groups of letters of one piece: all those of 13 letters; of longer pieces the shortest groups are left out."""


class Speller(nn.Module):
    """Hidden state → a score for each piece of a word, from the groups of one to three letters that it consists of.

    Rows of an LLM's table lie near each other where words mean the like, not where they sound alike, and a word that
    was never heard has a row that nothing led to. What is learnt about a group of letters serves all words that hold
    it, those never heard among them.

    Source: acoustically grounded word embeddings (Settle et al. 2019, arXiv 1903.12306), which an encoder of the
    spelling gives. Where we differ: a sum of embeddings of letter groups, as fastText's (Bojanowski et al. 2017, arXiv
    1607.04606), learnt by CTC itself.

    Args:
        width: D, of the hidden state.
        spelling_width: of the groups' embeddings.
        num_pieces: C.
        num_groups: G, see `letter_groups`.
    """

    def __init__(self, width: int, spelling_width: int, num_pieces: int, num_groups: int) -> None:
        super().__init__()
        self.to_letters = nn.Linear(width, spelling_width, bias=False)
        self.groups = nn.Embedding(1 + num_groups, spelling_width, padding_idx=0)
        # Follows from the vocabulary, see `assembly.begin_connector`. 0 pads.
        self.spelling: Tensor
        self.register_buffer("spelling", torch.zeros(num_pieces, MAX_GROUPS, dtype=torch.int32))
        self._rows: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Score all pieces: (B, S, D) → (B, S, C)."""
        return self.to_letters(hidden) @ self.rows().T

    def rows(self) -> Tensor:
        """Return the embeddings of the pieces (C, `spelling_width`), each of length 1.

        Out of training they are kept from call to call: to make them anew takes longer than to hear a short clip.
        """
        if self.training or torch.is_grad_enabled():
            return self._make_rows()
        if self._rows is None:
            self._rows = self._make_rows()
        return self._rows

    def _make_rows(self) -> Tensor:
        weight = self.groups.weight
        sums = nn.functional.embedding_bag(self.spelling, weight, mode="sum", padding_idx=0)
        return nn.functional.normalize(sums, dim=-1)

    def train(self, mode: bool = True) -> Speller:
        """Switch the mode; what was kept may have been learnt further."""
        self._rows = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Speller:
        """Move or cast the weights (`to`, `bfloat16`, …), from which what was kept follows."""
        self._rows = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._rows = None
        super()._load_from_state_dict(*args, **kwargs)


def letter_groups(pieces: Sequence[str]) -> tuple[list[str], Tensor]:
    """List the groups of up to three letters in pieces of words, and which of them are in which piece.

    Args:
        pieces: C texts; one that begins a word begins with a sign that stands for no letter.

    Returns:
        the groups, sorted, and (C, MAX_GROUPS) int32: their numbers from 1 on, the longest groups first, 0 behind.
    """
    alphabet = sorted(set("".join(pieces)))
    numbers, is_there = _number_groups(pieces, alphabet)
    column = np.cumsum(is_there, axis=1) - 1
    is_there &= column < MAX_GROUPS
    numbers = numbers[is_there]
    occurs = np.zeros((1 + len(alphabet)) ** LONGEST_GROUP, dtype=bool)
    occurs[numbers] = True
    rows = np.zeros((len(pieces), MAX_GROUPS), dtype=np.int32)
    rows[is_there.nonzero()[0], column[is_there]] = np.cumsum(occurs)[numbers]
    return [_spell(number, alphabet) for number in np.flatnonzero(occurs).tolist()], torch.from_numpy(rows)


def _number_groups(pieces: Sequence[str], alphabet: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Take all pieces apart at once: one by one 33,182 of them take a third of a second, at each loading.

    Args:
        pieces: C texts.
        alphabet: their letters, sorted.

    Returns:
        (C, LONGEST_GROUP * W) int64 of W places in the longest piece, first the groups of three letters that begin at
        each, then of two, then of one, as numbers whose digits are the letters' numbers from 1 on: they are in the same
        order as the groups; and the same in bool: where a group is within its piece.
    """
    codes = np.array(pieces, dtype=np.str_).view(np.uint32).reshape(len(pieces), -1)
    digit_of = np.zeros(1 + codes.max(), dtype=np.int64)
    digit_of[[ord(letter) for letter in alphabet]] = range(1, 1 + len(alphabet))
    places = codes.shape[1]
    digits = np.pad(digit_of[codes], ((0, 0), (0, LONGEST_GROUP)))
    numbers, is_there = [], []
    for size in range(LONGEST_GROUP, 0, -1):
        powers = (1 + len(alphabet)) ** np.arange(LONGEST_GROUP)[::-1]
        numbers.append(sum(powers[at] * digits[:, at : at + places] for at in range(size)))
        is_there.append(digits[:, size - 1 : size - 1 + places] > 0)
    return np.concatenate(numbers, axis=1), np.concatenate(is_there, axis=1)


def _spell(number: int, alphabet: list[str]) -> str:
    base = 1 + len(alphabet)
    digits = [number // base**place % base for place in reversed(range(LONGEST_GROUP))]
    return "".join(alphabet[digit - 1] for digit in digits if digit)
