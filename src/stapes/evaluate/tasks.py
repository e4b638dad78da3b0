"""Which metrics belong to which task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

from ..data.sample import Task
from .metrics import PerSample, caption_scores, character_errors, exact_matches, word_errors

MetricName = Literal["wer", "cer", "cider_d", "exact_match"]


def measure(task: Task, targets: Sequence[str], texts: Sequence[str]) -> dict[MetricName, PerSample]:
    """Measure what a model said on all samples of one task, the task's main metric first."""
    match task:
        case "asr":
            return {"wer": word_errors(targets, texts), "cer": character_errors(targets, texts)}
        case "audiocaption":
            return {"cider_d": caption_scores([[target] for target in targets], texts)}
        case "qa":
            return {"exact_match": exact_matches(targets, texts)}
        case _:
            assert_never(task)
