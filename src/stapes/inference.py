"""Use a trained model: transcribe, describe, ask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from .assembly import load_model
from .data.audio import load_audio, prepare_waveform
from .data.prompts import TEST_INSTRUCTIONS
from .defaults import find_model
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
        lm = stapes.load()  # or a model folder, e.g. "runs/tiny/merge_lora"
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

    def answer(self, waveforms: Sequence[np.ndarray], instructions: Sequence[str], **generate: Any) -> list[Answer]:
        """Answer a batch: one instruction for each waveform (N,), float32, mono, 16 kHz.

        Greedy texts do not depend on the batch. Prompts are left-padded and masked, features padded and masked, but
        matrix products of another size still round differently; an answer in which two tokens came so close that
        rounding may have chosen between them (`rounding_margin`) is therefore asked for again, alone.
        """
        answers, margins = self._answer_batch(waveforms, instructions, **generate)
        if len(answers) > 1:
            limit = rounding_margin(self.model)
            for row in [row for row, margin in enumerate(margins) if margin < limit]:
                answers[row] = self._answer_batch([waveforms[row]], [instructions[row]], **generate)[0][0]
        return answers

    @torch.inference_mode()
    def _answer_batch(
        self, waveforms: Sequence[np.ndarray], instructions: Sequence[str], **generate: Any
    ) -> tuple[list[Answer], list[float]]:
        """Return the answers, and of each how close any two tokens came (infinite where tokens are not the best)."""
        inputs = self.processor.prepare(waveforms, instructions).to(self.model.device)
        generate = {"max_new_tokens": 200, "do_sample": False, **generate}
        greedy = not generate["do_sample"] and generate.get("num_beams", 1) == 1
        margins = _Margins()
        if greedy:
            generate["logits_processor"] = [*generate.get("logits_processor", ()), margins]
        # The protocol that types `generate` asks for attributes that transformers' own models lack.
        output = cast(Any, self.model).generate(**inputs, **generate)
        answers = [self._read(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]
        if not greedy:
            return answers, [math.inf] * len(answers)
        # What a row is given after its end symbol was not chosen.
        steps = torch.stack(margins.steps, dim=1)
        return answers, [float(row[: answer.num_tokens].min()) for row, answer in zip(steps, answers, strict=True)]

    def _read(self, token_ids: list[int]) -> Answer:
        eos = self.model.generation_config.eos_token_id
        ends = {eos} if isinstance(eos, int) else set(eos or ())
        end = next((position for position, token in enumerate(token_ids) if token in ends), None)
        said = token_ids if end is None else token_ids[:end]
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        return Answer(text, len(said) + (end is not None), truncated=end is None)


class _Margins(LogitsProcessor):
    """Notes by how much each row's best token leads at each step; changes nothing."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]  # legacy aliases of Tensor
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


def load(path: str | Path | None = None, device: str | None = None) -> AudioLM:
    """Load a model folder for use.

    Args:
        path: a folder that a run, `save_model` or `save_pretrained` wrote; stapes-tiny, which ships with stapes, if
            none is named.
        device: torch device; the first GPU if there is one, else the CPU.

    Raises:
        ModelFolderError: if the folder is incomplete or damaged.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return AudioLM(*load_model(find_model(path), device=device))
