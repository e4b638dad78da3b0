"""Which metrics belong to which task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

from ..data.sample import Task
from .metrics import PerSample, caption_scores, character_errors, exact_matches, spider_scores, word_errors
from .nota import nota_captions_v1, nota_captions_v11, nota_word_errors
from .spider import why_no_spider

MetricName = Literal["wer", "cer", "cider_d", "cider_d_x100", "spider", "exact_match"]
Protocol = Literal["stapes", "nota-v1", "nota-v1.1"]
"""How predictions are scored: as we do, or as one of the two published scorings of `nota`."""


def measure(
    task: Task, references: Sequence[Sequence[str]], texts: Sequence[str], protocol: Protocol = "stapes"
) -> dict[MetricName, PerSample]:
    """Measure what a model said on all samples of one task, the task's main metric first.

    Args:
        task: of all samples.
        references: of each sample its target and what else would be right, which captions alone are compared with.
        texts: what the model said.
        protocol: how. What cannot be measured is left out; see `unavailable`.
    """
    targets = [texts_of_one[0] for texts_of_one in references]
    measured: dict[MetricName, PerSample] = {}
    missing = unavailable(task, protocol, len(texts))
    match task:
        case "asr":
            if protocol != "stapes":
                return {"wer": nota_word_errors(targets, texts)}
            return {"wer": word_errors(targets, texts), "cer": character_errors(targets, texts)}
        case "audiocaption":
            if protocol == "nota-v1":
                return {"cider_d_x100": nota_captions_v1(targets, texts)}
            if protocol == "stapes":
                measured["cider_d"] = caption_scores(references, texts)
            if "spider" not in missing:
                nota = protocol == "nota-v1.1"
                measured["spider"] = nota_captions_v11(targets, texts) if nota else spider_scores(references, texts)
            return measured
        case "qa":
            return {} if missing else {"exact_match": exact_matches(targets, texts)}
        case _:
            assert_never(task)


def unavailable(task: Task, protocol: Protocol, num_samples: int) -> dict[MetricName, str]:
    """Tell which metrics of a task cannot be had here, and why, with the way to have them."""
    if task == "qa" and protocol != "stapes":
        return {"exact_match": f"{protocol} scores asr and audiocaption only"}
    if task != "audiocaption" or protocol == "nota-v1":
        return {}
    if num_samples < 2:
        return {"spider": "wants at least two samples"}
    reason = why_no_spider()
    return {} if reason is None else {"spider": reason}
