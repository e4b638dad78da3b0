"""From single examples to the padded batch that the model learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ManifestError
from ..model import CTCVocabulary, StapesProcessor, WordList, letter_numbers, phone_numbers
from .prompts import refuse_audio_token
from .spoken import caption_words, spoken_words

IGNORE = -100
"""Positions with this label are not learnt: prompt, audio, padding."""

OF_SPEECH = "a person is speaking"
"""What a clip sounds like in which something is said."""


@dataclass(frozen=True)
class Example:
    """One sample, ready to be batched; `input_features` or `encoder_frames` is set.

    Attributes:
        instruction: what the prompt asks.
        target: what the model is to answer.
        transcript: what is said in the clip; empty if nothing is, None if that is not known.
        input_features: (M, F) log-mel at 100 Hz.
        encoder_frames: (T, D) a frozen encoder's output at 50 Hz.
        sound_features: (F', M') fbank, beside `input_features` if the model has a sound encoder.
    """

    instruction: str
    target: str
    input_features: Tensor | None = None
    encoder_frames: Tensor | None = None
    sound_features: Tensor | None = None
    transcript: str | None = None


def collate(
    examples: Sequence[Example], processor: StapesProcessor, vocabulary: CTCVocabulary | None = None
) -> dict[str, Tensor]:
    """Tokenise and right-pad a batch.

    Args:
        examples: of one batch.
        processor: writes the prompts.
        vocabulary: of a connector that hears pieces of words; transcripts are then spelt in those, not in the
            tokenizer's own way, so that the LLM can repeat them.

    Returns:
        `input_ids`, `attention_mask`, `labels` (B, L), with labels on the target and its end symbol only, and either
        what `pad_features` returns or `encoder_frames` (B, T, D) +
        `encoder_frames_mask` (B, T).

    Raises:
        ManifestError: if an instruction or a target contains the audio token.
    """
    rows = [_tokenize(example, processor, vocabulary) for example in examples]
    length = max(len(ids) for ids, _ in rows)
    pad_id = processor.tokenizer.pad_token_id
    batch = {
        "input_ids": torch.full((len(rows), length), pad_id),
        "attention_mask": torch.zeros(len(rows), length, dtype=torch.int64),
        "labels": torch.full((len(rows), length), IGNORE),
    }
    for row, (ids, num_prompt) in enumerate(rows):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, num_prompt : len(ids)] = torch.tensor(ids[num_prompt:])
    return batch | _pad_audio(examples)


def collate_hearing(
    examples: Sequence[Example],
    vocabulary: CTCVocabulary,
    objective: Literal["ctc", "letters", "phones", "sound"],
    words: WordList | None = None,
    beside: Sequence[Literal["letters", "phones"]] = (),
) -> dict[str, Any]:
    """Spell and right-pad a batch for a connector that learns to hear, which needs no prompt.

    Args:
        examples: of one batch.
        vocabulary: the pieces that the connector hears.
        objective: `ctc` spells what is said in pieces, `letters` in letters, `phones` as it is spoken, `sound` the
            words of the caption, or that someone speaks where a transcript stands.
        words: tells how words are spoken, for phones.
        beside: what else is wanted beside the pieces of `ctc`.

    Returns:
        `labels` (B, 1 + U): numbers of pieces, letters or phones, `IGNORE` in the first column and as padding, and the
        audio as `collate` gives it; for `ctc` maybe `beside`, (B, U') numbers each. The first column is there because
        those who count labels leave it out: a language model predicts none from nothing.

    Raises:
        ValueError: if a transcript is not known, or how it is spoken.
    """
    spell: dict[str, Callable[[str], list[int]]] = {"letters": letter_numbers}
    if words is not None:
        spell["phones"] = lambda text: phone_numbers(words.pronounce(text))
    said = []
    for example in examples:
        if example.transcript is None:
            raise ValueError(
                f"an example with the target {example.target!r:.60} has no transcript; "
                f"`objective: {objective}` cannot learn from it"
            )
        text = spoken_words(example.transcript)
        if objective == "sound":
            text = caption_words(OF_SPEECH if text else example.target)
        said.append(text)
    numbers = spell.get(objective, vocabulary.encode)
    batch: dict[str, Any] = {"labels": _pad_labels([[IGNORE, *numbers(text)] for text in said])}
    batch |= _pad_audio(examples)
    if beside and objective == "ctc":
        batch["beside"] = {name: _pad_labels([spell[name](text) for text in said]) for name in beside}
    return batch


def _pad_labels(rows: Sequence[Sequence[int]]) -> Tensor:
    padded = torch.full((len(rows), max(len(row) for row in rows)), IGNORE)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded


def _tokenize(example: Example, processor: StapesProcessor, vocabulary: CTCVocabulary | None) -> tuple[list[int], int]:
    """Return the ids of prompt, target and end symbol, and how many of them are the prompt's."""
    if example.encoder_frames is not None:
        # Each encoder frame stands for two feature frames.
        num_feature_frames = 2 * example.encoder_frames.shape[0]
    else:
        assert example.input_features is not None
        num_feature_frames = example.input_features.shape[1]
    for what, text in (("instruction", example.instruction), ("target", example.target)):
        refuse_audio_token(text, processor.audio_token, f"the {what} {text!r:.60}", ManifestError)
    audio = processor.audio_token * processor.num_audio_tokens(num_feature_frames)
    prompt = processor.build_prompt(example.instruction).replace(processor.audio_token, audio)
    tokenizer = processor.tokenizer
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if vocabulary is not None and example.target == example.transcript:
        target_ids = vocabulary.spell(example.target)
    else:
        target_ids = tokenizer(example.target, add_special_tokens=False)["input_ids"]
    return [*prompt_ids, *target_ids, tokenizer.eos_token_id], len(prompt_ids)


def _pad_audio(examples: Sequence[Example]) -> dict[str, Tensor]:
    frames = [example.encoder_frames for example in examples if example.encoder_frames is not None]
    if frames:
        padded = torch.nn.utils.rnn.pad_sequence([frame.float() for frame in frames], batch_first=True)
        lengths = torch.tensor([frame.shape[0] for frame in frames])
        return {"encoder_frames": padded, "encoder_frames_mask": _mask(lengths, padded.shape[1])}
    names = ("input_features", "sound_features")
    return pad_features(
        [{name: found for name in names if (found := getattr(example, name)) is not None} for example in examples]
    )


def pad_features(clips: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Right-pad the features of single clips with zeros.

    Args:
        clips: B mappings with `input_features` (M, F), and all or none with `sound_features` (F', M').

    Returns:
        `input_features` (B, M, F) + `input_features_mask` (B, F), and `sound_features` (B, F', M') +
        `sound_features_mask` (B, F') if they are there.
    """
    log_mel, mask = _pad([clip["input_features"].T for clip in clips])
    batch = {"input_features": log_mel.transpose(1, 2).contiguous(), "input_features_mask": mask}
    if any("sound_features" in clip for clip in clips):
        batch["sound_features"], batch["sound_features_mask"] = _pad([clip["sound_features"] for clip in clips])
    return batch


def _pad(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence([*rows], batch_first=True)
    return padded, _mask(torch.tensor([len(row) for row in rows]), padded.shape[1]).long()


def _mask(lengths: Tensor, size: int) -> Tensor:
    return torch.arange(size)[None] < lengths[:, None]
