"""Instructions: several wordings for training, one fixed wording a task for testing."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np

from ..errors import StapesError
from .sample import Sample, Task

TRAIN_INSTRUCTIONS: dict[Task, tuple[str, ...]] = {
    "asr": (
        "Transcribe the speech.",
        "Write down what is said.",
        "What does the speaker say?",
        "Turn this recording into text.",
        "Repeat the words you hear.",
    ),
    "audiocaption": (
        "Describe the sound.",
        "What can be heard?",
        "Write a short caption for this audio.",
        "Say what makes this sound.",
    ),
    # Questions come with their samples.
    "qa": (),
}

TEST_INSTRUCTIONS: dict[Task, str] = {"asr": "Transcribe the speech.", "audiocaption": "Describe the sound."}

_log = logging.getLogger(__name__)


def refuse_audio_token(text: str, audio_token: str, what: str, kind: type[StapesError]) -> None:
    """Raise if a text holds the token that stands for audio in prompts.

    Args:
        text: an instruction or a target.
        audio_token: of the processor.
        what: what the message calls the text.
        kind: of the error.
    """
    if audio_token in text:
        raise kind(f"{what} holds the audio token '{audio_token}'; take it out")


@cache
def warn_of_long_prompts(limit: int) -> None:
    """Warn, once, that a prompt is longer than the `limit` of positions that an LLM was made for."""
    _log.warning(
        "audio and question are longer than the %d tokens that the LLM was made for (`max_position_embeddings`): "
        "answers may be nonsense; ask about shorter pieces of the audio",
        limit,
    )


def asks_for_transcript(instruction: str) -> bool:
    """Tell whether an instruction asks, in one of the wordings of training, for what is said, word by word."""
    return instruction in TRAIN_INSTRUCTIONS["asr"]


def test_instruction(sample: Sample) -> str:
    """Return the sample's own prompt, or the fixed wording of its task."""
    if sample.prompt is not None:
        return sample.prompt
    if sample.task not in TEST_INSTRUCTIONS:
        raise ValueError(f"{sample.where}: sample `{sample.id}` is a question without `prompt`")
    return TEST_INSTRUCTIONS[sample.task]


def train_instruction(sample: Sample, seed: int) -> str:
    """Return the sample's own prompt, or a wording of its task that `seed` picks."""
    if sample.prompt is not None or not TRAIN_INSTRUCTIONS[sample.task]:
        return test_instruction(sample)
    wordings = TRAIN_INSTRUCTIONS[sample.task]
    return wordings[np.random.default_rng(seed).integers(len(wordings))]
