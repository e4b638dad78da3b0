"""The part of CTC's output layer that knows pieces of words by their letters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

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
        if self._rows is None or self._rows.device != self.groups.weight.device:
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


def letter_groups(pieces: Sequence[str]) -> tuple[list[str], Tensor]:
    """List the groups of up to three letters in pieces of words, and which of them are in which piece.

    Args:
        pieces: C texts; one that begins a word begins with a sign that stands for no letter.

    Returns:
        the groups, sorted, and (C, MAX_GROUPS) int32: their numbers from 1 on, the longest groups first, 0 behind.
    """
    spelt = [_groups(piece)[:MAX_GROUPS] for piece in pieces]
    groups = sorted(set(chain.from_iterable(spelt)))
    number = {group: index for index, group in enumerate(groups, start=1)}
    lengths = np.array([len(found) for found in spelt])
    rows = np.zeros((len(spelt), MAX_GROUPS), dtype=np.int32)
    # At once: a tensor of 33,182 lists takes a second, at each loading.
    rows[np.arange(MAX_GROUPS) < lengths[:, None]] = [number[group] for group in chain.from_iterable(spelt)]
    return groups, torch.from_numpy(rows)


def _groups(piece: str) -> list[str]:
    sizes = range(LONGEST_GROUP, 0, -1)
    return [piece[begin : begin + size] for size in sizes for begin in range(len(piece) - size + 1)]
