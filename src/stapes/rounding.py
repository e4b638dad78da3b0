"""When rounding may have chosen between two tokens: matrix products of another batch size round differently."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .model import StapesForConditionalGeneration


class Margins(LogitsProcessor):
    """Notes by how much each row's best token leads at each step; changes nothing.

    Attributes:
        steps: of each step, (B,) logits.
    """

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]  # legacy aliases of Tensor
        """Return the scores (B, V) as they are."""
        best = scores.topk(2, dim=-1).values
        self.steps.append(best[:, 0] - best[:, 1])
        return scores


def rounding_margin(model: StapesForConditionalGeneration) -> float:
    """Tell from which lead on, in logits, a token is the best one whatever the batch size.

    Taken several times as large as the largest change of a logit between a batch of 8 and batches of 1:
    `benchmarks/batch_rounding.py` saw 2.3e-4 in float32 (24 clips, untrained whisper-base and SmolLM2-135M). Rounding
    to int8 makes more of such noise, up to 0.13 (see `model.int8`); half precision was not measured.
    """
    if model.config.int8 is not None:
        return 0.25
    if model.dtype != torch.float32:
        return 0.5
    return 2e-3
