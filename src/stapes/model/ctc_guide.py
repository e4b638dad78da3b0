"""Transcripts that CTC and the LLM choose together, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor

LEAST = 1e-30
"""What CTC holds for impossible counts as this likely: an LLM that is sure of it can still not be overruled by far."""


class Expected(NamedTuple):
    """What CTC expects to come next.

    Attributes:
        tokens: (V,) log-probability of each of the LLM's tokens; -inf for those that cannot be in a guided transcript.
            Those of signs do not matter.
        end: log-probability of the text's end.
    """

    tokens: Tensor
    end: float


class Listener(Protocol):
    """What CTC heard of one clip, told in tokens of the LLM."""

    def expected(self, written: tuple[int, ...]) -> Expected | None:
        """Say what is to come after these tokens; None if CTC finds them impossible."""


class CTCGuide(LogitsProcessor):
    """Weighs the LLM's next token with what CTC expects to come next.

    Signs are the LLM's affair and keep its probabilities; what they leave is shared out among words and the end by
    p_LLM^(1 - w) · p_CTC^w, p_CTC being what a listener expects. An LLM alone writes down what is
    likely, and may swap a word for one of like meaning; CTC alone cannot spell. Rows that are no transcripts stay as
    they are.

    Source: joint decoding of Watanabe et al. 2017 (Hybrid CTC/Attention Architecture for End-to-End Speech
    Recognition), there of one model's two heads. Where we differ: signs, which CTC does not hear.

    Args:
        listeners: of each of the B clips; None where no transcript is asked for.
        signs: (V,) True for tokens that are signs.
        end_ids: the LLM's end symbols.
        prompt_length: L, tokens before the answer.
        weight: w, from 0 (the LLM alone) to 1 (CTC alone).
    """

    def __init__(
        self,
        listeners: Sequence[Listener | None],
        signs: Tensor,
        *,
        end_ids: Sequence[int],
        prompt_length: int,
        weight: float,
    ) -> None:
        self._listeners, self._signs, self._end_ids = list(listeners), signs, sorted(end_ids)
        self._prompt_length, self._weight = prompt_length, weight

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]  # legacy aliases of Tensor
        """Return the scores of the next tokens, (B · beams, V).

        What other processors have ruled out (-inf) stays so; a row that would have nothing left is theirs alone.
        """
        beams = len(scores) // len(self._listeners)
        guided = scores.clone()
        for row, written in enumerate(input_ids[:, self._prompt_length :].tolist()):
            listener = self._listeners[row // beams]
            if listener is not None and not any(token in self._end_ids for token in written):
                expected = listener.expected(tuple(written))
                if expected is not None:
                    guided[row] = self._mix(scores[row], expected)
        return guided

    def _mix(self, scores: Tensor, expected: Expected) -> Tensor:
        log_llm = scores.float().log_softmax(dim=-1)
        missing = (0, len(scores) - len(expected.tokens))  # an LLM's table may have more rows than it has tokens
        log_ctc = torch.nn.functional.pad(expected.tokens, missing, value=-torch.inf).to(scores)
        log_ctc[self._end_ids] = expected.end
        is_sign = torch.nn.functional.pad(self._signs, missing).to(scores.device)
        is_sign[self._end_ids] = False
        mixed = (1 - self._weight) * log_llm + self._weight * log_ctc
        mixed = mixed.masked_fill(is_sign | log_ctc.isneginf() | log_llm.isneginf(), -torch.inf)
        if mixed.isneginf().all():
            return scores
        left = torch.log1p(-log_llm[is_sign].exp().sum().clamp(max=1 - 1e-6))
        mixed = mixed - mixed.logsumexp(dim=-1) + left
        return torch.where(is_sign, log_llm, mixed).to(scores.dtype)
