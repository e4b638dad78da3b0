"""CIDEr-D, the consensus score of captions, as coco-caption computes it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MAX_NGRAM = 4
SIGMA = 6.0
"""Width of the length penalty, in words."""

_Ngram = tuple[str, ...]

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))\b")
_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|n't\b|'(?:s|m|d|re|ve|ll)\b|\w+(?:-\w+)*|[%&]")


def tokenize_caption(caption: str) -> list[str]:
    """Split a caption much as the Penn Treebank tokeniser of coco-caption does: lower case, no punctuation.

    Clitics are words of their own (`man 's`, `do n't`), hyphenated words and numbers stay whole.
    """
    return _TOKEN.findall(_CLITIC.sub(r" \1", caption.lower().replace("’", "'")))


def cider_d(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Callable[[str], list[str]] = tokenize_caption,
) -> np.ndarray:
    """Score captions by the n-grams they share with their references, rare ones counting more.

    Vedantam et al. 2015 (arXiv 1411.5726), section 5, with the choices of coco-caption: n-grams up to 4, sigma 6,
    clipped counts, a factor of 10. Scores lie between 0 and 10; papers print the mean, or 100 times it.

    How rare an n-gram is, is counted over the references given here, so scores from other test sets do not compare,
    and few samples with one reference each give coarse scores: a single sample always scores 0, and an n-gram that
    every sample's references hold counts nothing.

    Args:
        candidates: N captions.
        references: N lists of at least one reference.
        tokenize: text to words; `str.split` for results on whitespace tokens, as NOTA publishes them.

    Returns:
        (N,) scores; their mean is the corpus score.

    Raises:
        ValueError: if the lengths differ or a candidate has no reference.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates but {len(references)} lists of references")
    if not all(references):
        raise ValueError("a candidate has no reference; CIDEr-D compares with at least one")
    reference_counts = [[_count_ngrams(tokenize(text)) for text in texts] for texts in references]
    document_frequency = Counter(
        ngram for counts in reference_counts for ngram in {ngram for count in counts for ngram in count}
    )
    log_num_documents = math.log(len(references)) if references else 0.0

    def weigh(counts: Counter[_Ngram]) -> _Vector:
        return _weigh(counts, document_frequency, log_num_documents)

    scores = []
    for candidate, counts in zip(candidates, reference_counts, strict=True):
        vector = weigh(_count_ngrams(tokenize(candidate)))
        similarities = [_similarity(vector, weigh(reference)) for reference in counts]
        scores.append(10.0 * sum(similarities) / len(similarities))
    return np.array(scores)


@dataclass(frozen=True)
class _Vector:
    """The tf-idf weights of a caption, one dict and one norm for each n, and its number of words."""

    weights: list[dict[_Ngram, float]]
    norms: list[float]
    num_words: int


def _count_ngrams(words: list[str]) -> Counter[_Ngram]:
    return Counter(
        tuple(words[start : start + n]) for n in range(1, MAX_NGRAM + 1) for start in range(len(words) - n + 1)
    )


def _weigh(counts: Counter[_Ngram], document_frequency: Counter[_Ngram], log_num_documents: float) -> _Vector:
    weights: list[dict[_Ngram, float]] = [{} for _ in range(MAX_NGRAM)]
    for ngram, count in counts.items():
        # An n-gram that no reference holds weighs as much as one that a single sample holds.
        weights[len(ngram) - 1][ngram] = count * (log_num_documents - math.log(max(1, document_frequency[ngram])))
    norms = [math.hypot(*weight.values()) for weight in weights]
    num_words = sum(count for ngram, count in counts.items() if len(ngram) == 1)
    return _Vector(weights, norms, num_words)


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Average the clipped cosine similarities over n = 1 … 4, damped by the difference in length."""
    total = 0.0
    for n in range(MAX_NGRAM):
        norm = candidate.norms[n] * reference.norms[n]
        if norm == 0:
            continue
        theirs = reference.weights[n]
        for ngram, weight in candidate.weights[n].items():
            if ngram in theirs:
                # The minimum clips: repeating a word more often than the reference does earns nothing.
                total += min(weight, theirs[ngram]) * theirs[ngram] / norm
    penalty = math.exp(-((candidate.num_words - reference.num_words) ** 2) / (2 * SIGMA**2))
    return penalty * total / MAX_NGRAM
