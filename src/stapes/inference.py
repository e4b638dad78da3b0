"""Use a trained model: transcribe, describe, ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from .assembly import load_model
from .data.audio import load_audio, prepare_waveform
from .data.prompts import TEST_INSTRUCTIONS
from .model import StapesForConditionalGeneration, StapesProcessor


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer without special tokens, stripped.
        num_tokens: tokens generated, the end symbol included.
        truncated: whether `max_new_tokens` ended it rather than the model.
    """

    text: str
    num_tokens: int
    truncated: bool


class AudioLM:
    """A model with its processor, ready to answer.

    Example:
        ```python
        lm = stapes.load("runs/tiny/merge_lora")
        lm.transcribe("clip.ogg")
        lm.ask("clip.ogg", "Is someone speaking?")
        ```
    """

    def __init__(self, model: StapesForConditionalGeneration, processor: StapesProcessor) -> None:
        self.model = model
        self.processor = processor

    def transcribe(self, audio: str | Path | np.ndarray, **generate: Any) -> str:
        """Write down the speech in `audio` (a file, or samples at 16 kHz); `generate` goes to transformers."""
        return self.ask(audio, TEST_INSTRUCTIONS["asr"], **generate)

    def describe(self, audio: str | Path | np.ndarray, **generate: Any) -> str:
        """Say in a sentence what can be heard in `audio` (a file, or samples at 16 kHz)."""
        return self.ask(audio, TEST_INSTRUCTIONS["audiocaption"], **generate)

    def ask(self, audio: str | Path | np.ndarray, question: str, **generate: Any) -> str:
        """Answer a question, or follow an instruction, about `audio`.

        Args:
            audio: a file that soundfile reads, or samples (N,) at 16 kHz, float in [-1, 1]. Any length.
            question: text.
            generate: keyword arguments of transformers' `generate`; `max_new_tokens` is 200 unless given.

        Raises:
            AudioError: if the audio cannot be used.
        """
        waveform = prepare_waveform(audio, 16_000) if isinstance(audio, np.ndarray) else load_audio(audio)
        return self.answer([waveform], [question], **generate)[0].text

    @torch.inference_mode()
    def answer(self, waveforms: Sequence[np.ndarray], instructions: Sequence[str], **generate: Any) -> list[Answer]:
        """Answer a batch: one instruction for each waveform (N,), float32, mono, 16 kHz.

        The texts do not depend on the batch: prompts are left-padded and masked, features padded and masked.
        """
        inputs = self.processor.prepare(waveforms, instructions).to(self.model.device)
        generate = {"max_new_tokens": 200, "do_sample": False, **generate}
        # The protocol that types `generate` asks for attributes that transformers' own models lack.
        output = cast(Any, self.model).generate(**inputs, **generate)
        return [self._answer(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _answer(self, token_ids: list[int]) -> Answer:
        eos = self.model.generation_config.eos_token_id
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        end = next((position for position, token in enumerate(token_ids) if token in ends), None)
        said = token_ids if end is None else token_ids[:end]
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        return Answer(text, len(said) + (end is not None), truncated=end is None)


def load(path: str | Path, device: str | None = None) -> AudioLM:
    """Load a model folder for use.

    Args:
        path: a folder that a run, `save_model` or `save_pretrained` wrote.
        device: torch device; the first GPU if there is one, else the CPU.

    Raises:
        ModelFolderError: if the folder is incomplete or damaged.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return AudioLM(*load_model(path, device=device))
