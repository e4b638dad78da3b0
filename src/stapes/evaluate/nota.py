"""The two scorings behind published figures of the SALMONN family, as NOTA's evaluator (audiolm-evaluator) has them.

`nota-v1` (January 9, 2025) prints CIDEr-D × 100 under the name SPIDEr; `nota-v1.1` (four days later) prints SPIDEr.
Word error rates are the same in both. They differ from ours; see each function.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

import jiwer
import numpy as np

from ..errors import StapesError
from .cider import cider_d
from .metrics import PerSample
from .normalize import normalize_english
from .spider import spider

NotaProtocol = Literal["nota-v1", "nota-v1.1"]

_END = "</s>"

# What sacrebleu's tokeniser 13a (mteval-v13a) does to text of one line without entities.
_STEPS_13A = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def nota_answer(text: str) -> str:
    """Take what a model said as the evaluator does: up to the end symbol, lower-cased."""
    return text.partition(_END)[0].lower()


def nota_word_errors(targets: Sequence[str], texts: Sequence[str]) -> PerSample:
    """Word error rate in %, edits over reference words, summed over the corpus.

    After Whisper's English normaliser come the tokeniser 13a and the removal of tokens that are punctuation alone,
    which ours does not have: `50%` becomes `50`, and `$20` two words, `$` and `20`.
    """
    counts = []
    for target, text in zip(targets, texts, strict=True):
        edits = jiwer.process_words(" ".join(_words(target)), " ".join(_words(nota_answer(text))))
        errors = edits.substitutions + edits.deletions + edits.insertions
        counts.append((errors, len(edits.references[0])))
    errors, lengths = np.array(counts, dtype=np.float64).reshape(-1, 2).T
    return PerSample(errors, lengths, unit="%", better="lower")


def nota_captions_v1(targets: Sequence[str], texts: Sequence[str]) -> PerSample:
    """CIDEr-D × 100 on whitespace tokens with one reference, which `nota-v1` prints as "SPIDEr".

    What the model said is lower-cased, its reference is not: `A dog` shares `dog` alone with `a dog`; a full stop is
    part of the word before it.

    Raises:
        StapesError: for fewer than two samples, which the evaluator refuses too.
    """
    _refuse_one(targets)
    scores = 100 * cider_d([nota_answer(text) for text in texts], [[target] for target in targets], tokenize=str.split)
    return PerSample(scores, np.ones(len(scores)), unit="", better="higher")


def nota_captions_v11(targets: Sequence[str], texts: Sequence[str]) -> PerSample:
    """SPIDEr, a fraction: (CIDEr-D + SPICE) / 2 on the texts of `nota_captions_v1`, as `nota-v1.1` prints it.

    Raises:
        StapesError: for fewer than two samples, or where SPICE cannot be computed.
    """
    _refuse_one(targets)
    scores = spider([nota_answer(text) for text in texts], [[target] for target in targets], tokenize=str.split)
    return PerSample(scores, np.ones(len(scores)), unit="", better="higher")


def nota_line(metric: str, value: float, protocol: NotaProtocol) -> str:
    """Write the line that the evaluator prints for a metric (`wer`, `cider_d_x100`, `spider`)."""
    if metric == "wer":
        return f"WER: {value:0.4f}%"
    return f"SPIDEr: {float(f'{value:.4f}')}" if protocol == "nota-v1" else f"SPIDEr: {round(value, 4)}"


def _words(text: str) -> list[str]:
    line = f" {normalize_english(text)} "
    for pattern, replacement in _STEPS_13A:
        line = pattern.sub(replacement, line)
    return [word for word in line.split() if not all(unicodedata.category(letter)[0] == "P" for letter in word)]


def _refuse_one(targets: Sequence[str]) -> None:
    if len(targets) < 2:
        raise StapesError(f"NOTA's scoring of captions wants at least two samples, not {len(targets)}")
