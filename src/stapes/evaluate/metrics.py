"""Metrics of text, each kept as two numbers a sample so that resampling them is cheap. No model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer
import numpy as np

from ..errors import StapesError
from .cider import cider_d
from .normalize import normalize_answer, normalize_english
from .spider import spider


@dataclass(frozen=True)
class PerSample:
    """A metric over N samples: Σ numerator / Σ denominator, times 100 if its unit is %.

    Attributes:
        numerator: (N,) errors, hits or scores.
        denominator: (N,) what they are counted against: reference words, or 1 for each sample.
        unit: `%`, or nothing for a plain score.
        better: which way is up.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    unit: Literal["%", ""]
    better: Literal["lower", "higher"]

    @property
    def scale(self) -> float:
        """What the ratio is multiplied with."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def value(self) -> float:
        """The metric over all samples.

        Raises:
            StapesError: if there is nothing to count against, e.g. no reference holds a word.
        """
        total = self.denominator.sum()
        if total == 0:
            raise StapesError(
                f"none of the {len(self.denominator)} targets holds a word once normalised, so there is no error rate; "
                "mend the `target` of the manifest"
            )
        return float(self.scale * self.numerator.sum() / total)


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> PerSample:
    """Word error rate in %: edits over reference words, summed over the corpus, after `normalize_english`.

    A reference without words (silence) adds all words of its hypothesis as errors and nothing to the denominator, as
    jiwer counts it; leaving it out would hide a model that talks when nobody does. The rate may exceed 100 %.
    """

    def count(reference: str, hypothesis: str) -> tuple[int, int]:
        edits = jiwer.process_words(reference, hypothesis)
        return edits.substitutions + edits.deletions + edits.insertions, len(edits.references[0])

    return _error_rate(references, hypotheses, count)


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> PerSample:
    """Character error rate in %, spaces included, after `normalize_english`; else as `word_errors`."""

    def count(reference: str, hypothesis: str) -> tuple[int, int]:
        edits = jiwer.process_characters(reference, hypothesis)
        return edits.substitutions + edits.deletions + edits.insertions, len(edits.references[0])

    return _error_rate(references, hypotheses, count)


def exact_matches(references: Sequence[str], hypotheses: Sequence[str]) -> PerSample:
    """Answers to closed questions that are right in %: equal after `normalize_answer`, articles included."""
    hits = [
        normalize_answer(reference) == normalize_answer(hypothesis)
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    return PerSample(np.array(hits, dtype=np.float64), np.ones(len(hits)), unit="%", better="higher")


def caption_scores(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> PerSample:
    """CIDEr-D of captions, from 0 to 10, with `tokenize_caption`; see `cider_d` for what it depends on."""
    scores = cider_d(hypotheses, references)
    return PerSample(scores, np.ones(len(scores)), unit="", better="higher")


def spider_scores(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> PerSample:
    """SPIDEr of captions, from 0 to 5.5, with `tokenize_caption`; see `spider` for what it needs."""
    scores = spider(hypotheses, references)
    return PerSample(scores, np.ones(len(scores)), unit="", better="higher")


def _error_rate(
    references: Sequence[str], hypotheses: Sequence[str], count: Callable[[str, str], tuple[int, int]]
) -> PerSample:
    counts = [
        count(normalize_english(reference), normalize_english(hypothesis))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    errors, lengths = np.array(counts, dtype=np.float64).reshape(-1, 2).T
    return PerSample(errors, lengths, unit="%", better="lower")
