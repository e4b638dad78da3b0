"""What a stage teaches with that lets a connector learn to hear."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..data.collator import Example, collate, collate_hearing
from ..data.sample import Sample, transcript_of
from ..data.spoken import spoken_words
from ..errors import ManifestError, StapesError
from ..model import CTCCompressor, CTCVocabulary, Objective, StapesForConditionalGeneration, StapesProcessor, WordList
from ..recipe import Stage


def collator(
    model: StapesForConditionalGeneration, processor: StapesProcessor, objective: Objective
) -> Callable[[Sequence[Example]], dict[str, Any]]:
    """Return what makes a stage's batches; of objectives but `answer` the connector has to be a `CTCCompressor`."""
    vocabulary = None
    if isinstance(model.connector, CTCCompressor):
        vocabulary = CTCVocabulary.of(processor.tokenizer, model.config.connector_config.ctc_merges)
    if objective == "answer":
        return partial(collate, processor=processor, vocabulary=vocabulary)
    assert vocabulary is not None, "stages of other connectors are refused"
    settings = model.config.connector_config
    widths: dict[Literal["letters", "phones"], int] = {"letters": settings.ctc_letters, "phones": settings.ctc_phones}
    return partial(
        collate_hearing,
        vocabulary=vocabulary,
        objective=objective,
        words=processor.words,
        beside=[symbols for symbols, width in widths.items() if width],
    )


def check_heard(stage: Stage, name: str, corpora: Sequence[Sequence[Sample]]) -> None:
    """Refuse samples of which it is not known what is said in them, in a stage that teaches to hear that.

    Args:
        stage, name: the stage.
        corpora: of `stage.data`, then of `stage.valid`.

    Raises:
        ManifestError: naming the first of them.
    """
    for path, samples in zip((*stage.data, *stage.valid), corpora, strict=True):
        for sample in samples:
            if transcript_of(sample) is None:
                raise ManifestError(
                    f"{path}: sample `{sample.id}` is for {sample.task} and does not tell what is said; stage `{name}` "
                    f"with `objective: {stage.objective}` learns from samples for asr and audiocaption"
                )


def teacher_of_phones(
    model: StapesForConditionalGeneration, processor: StapesProcessor, stage: Stage, name: str
) -> WordList | None:
    """Return the list that tells how words are spoken, or None if the stage does not teach that.

    Raises:
        StapesError: if it does and there is none.
    """
    has_phones = model.config.connector_config.ctc_phones > 0
    if stage.objective != "phones" and not (stage.objective == "ctc" and has_phones):
        return None
    if processor.words is None or processor.words.heard is None:
        raise StapesError(
            f"stage `{name}`: to teach phones it has to be known how words are spoken; give the connector `words` with "
            "the ways to speak them"
        )
    return processor.words


def check_spoken(words: WordList, stage: Stage, name: str, corpora: Sequence[Sequence[Sample]]) -> None:
    """Refuse samples of training with words of which it is not known how they are spoken.

    Raises:
        ManifestError: naming the first of them.
    """
    for path, samples in zip(stage.data, corpora, strict=True):
        for sample in samples:
            if unknown := _unknown_word(words, sample):
                raise ManifestError(
                    f"{path}: sample `{sample.id}` holds {unknown!r}, and `words` do not tell how that is spoken; "
                    f"stage `{name}` teaches phones"
                )


def known_alone(words: WordList, valid: Sequence[tuple[Path, Sequence[Sample]]]) -> list[list[Sample]]:
    """Leave out validation samples that hold words which the list lacks, and warn of them: new texts have some."""
    kept = []
    for path, samples in valid:
        kept.append([sample for sample in samples if not _unknown_word(words, sample)])
        if left_out := len(samples) - len(kept[-1]):
            warnings.warn(
                f"{path}: {left_out} of {len(samples)} samples hold words that `words` lack; they are left out of the "
                "validation loss",
                stacklevel=2,
            )
    return kept


def _unknown_word(words: WordList, sample: Sample) -> str | None:
    said = spoken_words(transcript_of(sample) or "")
    return next((word for word in said.split() if word not in words), None)
