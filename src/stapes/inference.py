"""Use a trained model: transcribe, describe, ask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from .assembly import load_model
from .collector import collector_paused
from .data.audio import load_audio, prepare_waveform
from .data.prompts import TEST_INSTRUCTIONS, asks_for_transcript, refuse_audio_token, warn_of_long_prompts
from .defaults import find_model
from .errors import UsageError
from .model import (
    CTCGuide,
    CTCVocabulary,
    DraftedDecoding,
    Heard,
    Listener,
    StapesForConditionalGeneration,
    StapesProcessor,
    TokenPieces,
    TranscriptChooser,
)
from .rounding import Margins, rounding_margin
from .streaming import TokenStream, before_stop, settled

MAX_NEW_TOKENS = 200
"""How long an answer may get, in tokens, where nothing else is said."""

_PLAIN = {"max_new_tokens", "do_sample", "num_beams"}
"""Settings of `generate` that have no say in how a prompt is read or kept, if it is greedy."""


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
        self._made_chooser: TranscriptChooser | None = None

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
        return self.answer([_waveform(audio)], [question], **generate)[0].text

    def stream(
        self, audio: str | Path | np.ndarray, question: str, *, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> AnswerStream:
        """Start a greedy answer and hand it out piece by piece, while the model is still speaking.

        Args:
            audio: a file that soundfile reads, or samples (N,) at 16 kHz, float in [-1, 1]. Any length.
            question: text: a question, or any instruction.
            max_new_tokens: at most this many tokens of answer.

        Returns:
            An iterator over pieces of text. Joined they are what `ask` returns.

        Raises:
            AudioError: if the audio cannot be used.
        """
        return AnswerStream(self, _waveform(audio), question, max_new_tokens)

    def answer(self, waveforms: Sequence[np.ndarray], instructions: Sequence[str], **generate: Any) -> list[Answer]:
        """Answer a batch: one instruction for each waveform (N,), float32, mono, 16 kHz.

        Greedy texts do not depend on the batch. Prompts are left-padded and masked, features padded and masked, but
        matrix products of another size still round differently; an answer in which two tokens came so close that
        rounding may have chosen between them (`rounding_margin`) is therefore asked for again, alone. Not watched is
        what a CTC compressor decides before the LLM writes: where its slots are, and which text was said.

        Where a transcript is asked for in one of the wordings of training (`data.prompts`), the model's connector may
        have a say in it: `ctc_weight` of `ConnectorConfig`. With a list of words it holds no others.

        End symbols and stop strings are those of the model's `generation_config`, not of `generate`'s keywords.
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
        inputs, guides = self.prepare(waveforms, instructions)
        generate = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False, "num_beams": 1, **generate}
        greedy = not generate["do_sample"] and generate["num_beams"] == 1
        margins = Margins()
        seen_by = [margins] if greedy else []
        if not greedy or generate.keys() - _PLAIN:
            # Beams are copies of a prompt, but not of what is kept of it; other settings want a cache of their own.
            for name in ("cache", "custom_generate"):
                inputs.pop(name, None)
        generate["logits_processor"] = [*guides, *generate.get("logits_processor", ()), *seen_by]
        if self.stop_strings:
            generate["tokenizer"] = self.processor.tokenizer
        # The protocol that types `generate` asks for attributes that transformers' own models lack.
        output = cast(Any, self.model).generate(**inputs, **generate)
        answers = [self.read(row) for row in output[:, inputs["input_ids"].shape[1] :].tolist()]
        if not greedy:
            return answers, [math.inf] * len(answers)
        # What a row is given after its end symbol was not chosen.
        steps = torch.stack(margins.steps, dim=1)
        return answers, [float(row[: answer.num_tokens].min()) for row, answer in zip(steps, answers, strict=True)]

    @torch.inference_mode()
    def prepare(
        self, waveforms: Sequence[np.ndarray], instructions: Sequence[str]
    ) -> tuple[dict[str, Any], list[LogitsProcessor]]:
        """Make what `generate` takes: its inputs, on the model's device, and what has a say in the answers.

        For greedy answers the inputs may have a `cache` of the prompt in them, and how to go on from it
        (`custom_generate`).
        """
        for instruction in instructions:
            refuse_audio_token(instruction, self.processor.audio_token, "the question", UsageError)
        inputs = self.processor.prepare(waveforms, instructions).to(self.model.device)
        limit = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if limit is not None and inputs["input_ids"].shape[1] > limit:
            warn_of_long_prompts(limit)
        transcripts = [asks_for_transcript(instruction) for instruction in instructions]
        weight = self.model.config.connector_config.ctc_weight
        if not (weight and any(transcripts)):
            return dict(inputs), []
        features = {name: inputs.pop(name) for name in list(inputs) if "features" in name}
        heard = self.model.hear(*self.model.encode(**features))
        input_ids = inputs["input_ids"]
        audio = heard.slots[heard.slots_mask]
        embeds = self.model.place_audio(input_ids, self.model.get_input_embeddings()(input_ids), audio)
        listeners: list[Listener | None] = [None] * len(transcripts)
        read_before: dict[str, Any] = {}
        for clip in (clip for clip, asked in enumerate(transcripts) if asked):
            listeners[clip], read_before = self._listener(clip, heard, inputs, embeds)
        guide = CTCGuide(
            listeners, self._pieces.signs, end_ids=self._end_ids, prompt_length=input_ids.shape[1], weight=weight
        )
        # Of prompts that are padded to one length a cache would hold one alone.
        return {**inputs, "inputs_embeds": embeds, **(read_before if len(transcripts) == 1 else {})}, [guide]

    def _listener(
        self, clip: int, heard: Heard, inputs: Mapping[str, Tensor], embeds: Tensor
    ) -> tuple[Listener, dict[str, Any]]:
        """Return what is to guide the transcript of a clip: the text that was chosen, or what CTC hears in pieces.

        Beside it stands what `generate` can make use of if the LLM has read the prompt to choose.
        """
        pieces = heard.pieces[clip, heard.pieces_mask[clip]]
        symbols = heard.phones if self._chooser is not None and self._chooser.by_phones else heard.letters
        if self._chooser is None or symbols is None:
            return self._pieces.listen(pieces), {}
        is_prompt = inputs["attention_mask"][clip].bool()
        is_text = is_prompt & (inputs["input_ids"][clip] != self.model.config.audio_token_id)
        chosen = self._chooser.choose(
            symbols[clip, heard.frames_mask[clip]],
            pieces,
            prompt=embeds[clip, is_prompt],
            bare_prompt=embeds[clip, is_text],
            weight=self.model.config.connector_config.ctc_weight,
        )
        dictation = self._pieces.dictate(chosen.pieces)
        if chosen.cache is None:
            return dictation, {}
        if self.stop_strings:  # `generate` looks for them token by token
            return dictation, {"cache": chosen.cache}
        ending = self.processor.tokenizer.encode(".", add_special_tokens=False)
        decoding = DraftedDecoding(lambda written: [*dictation.draft(written), *ending])
        return dictation, {"cache": chosen.cache, "custom_generate": decoding}

    @property
    def _end_ids(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or ())

    @property
    def _vocabulary(self) -> CTCVocabulary:
        return CTCVocabulary.of(self.processor.tokenizer, self.model.config.connector_config.ctc_merges)

    @cached_property
    def _pieces(self) -> TokenPieces:
        """What the LLM's tokens are to one who hears pieces of words."""
        return TokenPieces(self.processor.tokenizer, self._vocabulary)

    @property
    def _chooser(self) -> TranscriptChooser | None:
        """Who chooses transcripts, where it is known which words there are."""
        words = self.processor.words
        if words is None:
            return None
        if self._made_chooser is None or self._made_chooser.words is not words:
            may_follow = self._pieces.signs.clone()
            may_follow[self._end_ids] = True
            self._made_chooser = TranscriptChooser(
                self.model.language_model,
                self.processor.tokenizer,
                words,
                self._vocabulary,
                may_follow=may_follow,
                by_phones=self.model.config.connector_config.ctc_phones > 0 and words.heard is not None,
            )
        return self._made_chooser

    @property
    def stop_strings(self) -> list[str]:
        """Texts that end an answer, beside the LLM's end symbols."""
        stops = self.model.generation_config.stop_strings
        return [stops] if isinstance(stops, str) else list(stops or ())

    def read(self, token_ids: Sequence[int]) -> Answer:
        """Turn generated tokens into an answer; what follows the end symbol is not part of it."""
        answer = self.read_as_it_is(token_ids)
        return replace(answer, text=answer.text.strip())

    def read_as_it_is(self, token_ids: Sequence[int]) -> Answer:
        """Do as `read` does, and leave white space at both ends of the text."""
        end = next((position for position, token in enumerate(token_ids) if token in self._end_ids), None)
        said = token_ids if end is None else token_ids[:end]
        stops = self.stop_strings
        # An end that is spelt may share a token with the answer; what follows it in a batch is padding.
        for num_tokens in range(1, len(said) + 1) if stops else ():
            text = self._decode(said[:num_tokens])
            if found := [text.index(stop) for stop in stops if stop in text]:
                return Answer(text[: min(found)], num_tokens, truncated=False)
        return Answer(self._decode(said), len(said) + (end is not None), truncated=end is None)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.processor.tokenizer.decode(list(token_ids), skip_special_tokens=True)


class AnswerStream:
    """An answer in pieces of text, as the model makes it; then the whole of it and what it cost.

    Example:
        ```python
        stream = lm.stream("clip.ogg", "Is someone speaking?")
        for piece in stream:
            print(piece, end="", flush=True)
        print(stream.answer, stream.ttft_s)
        ```

    Attributes:
        num_audio_tokens: A, the audio tokens of the prompt.
        ttft_s: from the samples to the first token (features, encoder, connector, prefill); None before it.
        tokens_per_s: of the tokens after the first, so that the prompt's length does not matter, or after those that
            came with it (a transcript that is decided on is read several tokens at a time); None before there is one.
        answer: what `AudioLM.answer` would have returned; None until the last piece was taken, or if closed before.
    """

    def __init__(self, lm: AudioLM, waveform: np.ndarray, instruction: str, max_new_tokens: int) -> None:
        self._lm = lm
        self._started_s = perf_counter()
        inputs, guides = lm.prepare([waveform], [instruction])
        self.num_audio_tokens = int((inputs["input_ids"] == lm.model.config.audio_token_id).sum())
        self.answer: Answer | None = None
        self._token_ids: list[int] = []
        self._first_s = self._last_s = 0.0
        self._num_first = 0
        self._given = ""
        self._closed = False
        self._tokens = TokenStream(
            lm.model,
            inputs,
            max_new_tokens=max_new_tokens,
            guides=guides,
            tokenizer=lm.processor.tokenizer if lm.stop_strings else None,
        )

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the samples to the first token."""
        return self._first_s - self._started_s if self._token_ids else None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first one."""
        later = len(self._token_ids) - self._num_first
        return later / (self._last_s - self._first_s) if later > 0 else None

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        for token_id, at_s in self._tokens:
            if not self._token_ids:
                self._first_s = at_s
            self._token_ids.append(token_id)
            self._num_first += at_s == self._first_s
            self._last_s = at_s
            if piece := self._piece(settled(self._decoded())):
                return piece
        if self._closed or self.answer is not None:
            raise StopIteration
        self.answer = self._lm.read(self._token_ids)
        assert self.answer.text.startswith(self._given)
        if piece := self._piece(self.answer.text):
            return piece
        raise StopIteration

    def close(self) -> None:
        """Stop the model and wait until it has; any thread may. An answer that is not complete stays away."""
        self._closed = True
        self._tokens.close()

    def _decoded(self) -> str:
        tokenizer = self._lm.processor.tokenizer
        # Such a tokenizer turns "do n't" into "don't" when the last piece is there: nothing is settled before the end.
        if getattr(tokenizer, "clean_up_tokenization_spaces", False):
            return ""
        return before_stop(self._lm.read_as_it_is(self._token_ids).text, self._lm.stop_strings)

    def _piece(self, text: str) -> str:
        """Return what `text` adds to the pieces given so far."""
        if not text.startswith(self._given):  # less is settled than was: the end brings the rest
            return ""
        piece = text[len(self._given) :]
        self._given = text
        return piece


def _waveform(audio: str | Path | np.ndarray) -> np.ndarray:
    return prepare_waveform(audio, 16_000) if isinstance(audio, np.ndarray) else load_audio(audio)


def load(path: str | Path | None = None, device: str | None = None) -> AudioLM:
    """Load a model folder for use.

    LoRA adapters of a trained-part folder are added to the LLM's weights on the way (`load_model`, `fold_lora`).

    Args:
        path: a folder that a run, `save_model` or `save_pretrained` wrote; stapes-tiny, which ships with stapes, if
            none is named.
        device: torch device; the first GPU if there is one, else the CPU.

    Raises:
        ModelFolderError: if the folder is incomplete or damaged.
        UsageError: if there is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)  # before the seconds that loading takes
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device `{device}` cannot be used: {str(error).splitlines()[0]}") from error
    with collector_paused():
        return AudioLM(*load_model(find_model(path), device=device, fold_lora=True))
