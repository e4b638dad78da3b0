"""Transcripts that CTC and the LLM choose together, token by token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from .ctc_compressor import CTCSteps
from .ctc_prefix import CTCPrefix, Probabilities
from .ctc_vocabulary import CTCVocabulary

_FREE, _NEVER = 0, -1
_SIGNS = re.compile(r"Ġ?[!-/:-@\[-`{-~]+")
# Of letters alone: Ġ, which stands for a space, is a capital too.
_TO_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)
_LEAST = 1e-30
"""What CTC holds for impossible counts as this likely: an LLM that is sure of it can still not be overruled by far."""


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
        for token_id, token in known.items():
            if token_id in special:
                continue
            text = token.translate(_TO_LOWER)
            later[token_id] = number.get(text, _FREE if _SIGNS.fullmatch(token) else _NEVER)
            first[token_id] = number.get(f"Ġ{text}", later[token_id])
        self.first, self.later = torch.tensor(first), torch.tensor(later)


class CTCGuide(LogitsProcessor):
    """Weighs the LLM's next token with what CTC expects to come next.

    Signs are the LLM's affair and keep its probabilities; what they leave is shared out among words and the end by
    p_LLM^(1 - w) · p_CTC^w, p_CTC being the conditional probability of `CTCPrefix`. An LLM alone writes down what is
    likely, and may swap a word for one of like meaning; CTC alone cannot spell. Rows that are no transcripts stay as
    they are.

    Source: joint decoding of Watanabe et al. 2017 (Hybrid CTC/Attention Architecture for End-to-End Speech
    Recognition), there of one model's two heads. Where we differ: signs, which CTC does not hear.

    Args:
        steps: what CTC hears of the B clips.
        transcripts: of each clip, whether a transcript is asked for.
        pieces: see `TokenPieces`.
        end_ids: the LLM's end symbols.
        prompt_length: L, tokens before the answer.
        weight: w, from 0 (the LLM alone) to 1 (CTC alone).
    """

    def __init__(
        self,
        steps: CTCSteps,
        transcripts: Sequence[bool],
        pieces: TokenPieces,
        *,
        end_ids: Sequence[int],
        prompt_length: int,
        weight: float,
    ) -> None:
        self._pieces, self._end_ids = pieces, sorted(end_ids)
        self._prompt_length, self._weight = prompt_length, weight
        self._transcripts = list(transcripts)
        self._prefixes: list[dict[tuple[int, ...], CTCPrefix]] = [
            {(): CTCPrefix(logits[real].double().softmax(dim=-1).cpu().numpy())} if asked else {}
            for logits, real, asked in zip(steps.logits, steps.mask, transcripts, strict=True)
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]  # legacy aliases of Tensor
        """Return the scores of the next tokens, (B · beams, V)."""
        beams = len(scores) // len(self._transcripts)
        guided = scores.clone()
        for row, written in enumerate(input_ids[:, self._prompt_length :].tolist()):
            clip = row // beams
            if self._transcripts[clip] and not any(token in self._end_ids for token in written):
                expected = self._prefix(clip, tuple(written)).next
                if expected is not None:
                    guided[row] = self._mix(scores[row], expected, self._numbers(written))
        return guided

    def _numbers(self, written: Sequence[int]) -> Tensor:
        """Return the pieces that tokens are, behind those written."""
        begins = not written or self._pieces.later[written[-1]] == _FREE
        return self._pieces.first if begins else self._pieces.later

    def _prefix(self, clip: int, written: tuple[int, ...]) -> CTCPrefix:
        known = self._prefixes[clip]
        if written not in known:
            before = self._prefix(clip, written[:-1])
            piece = int(self._numbers(written[:-1])[written[-1]])
            known[written] = before.extended(piece) if piece > 0 else before
        return known[written]

    def _mix(self, scores: Tensor, expected: Probabilities, numbers: Tensor) -> Tensor:
        log_llm = scores.float().log_softmax(dim=-1)
        numbers = torch.nn.functional.pad(numbers, (0, len(scores) - len(numbers)), value=_NEVER).to(scores.device)
        log_ctc = torch.from_numpy(np.log(np.maximum(expected, _LEAST))).float().to(scores.device)
        is_word = numbers > 0
        mixed = torch.full_like(log_llm, -torch.inf)
        mixed[is_word] = (1 - self._weight) * log_llm[is_word] + self._weight * log_ctc[numbers[is_word]]
        mixed[self._end_ids] = (1 - self._weight) * log_llm[self._end_ids] + self._weight * log_ctc[0]
        is_sign = numbers == _FREE
        is_sign[self._end_ids] = False
        left = torch.log1p(-log_llm[is_sign].exp().sum().clamp(max=1 - 1e-6))
        mixed = mixed - mixed.logsumexp(dim=-1) + left
        return torch.where(is_sign, log_llm, mixed).to(scores.dtype)
