"""Waveforms and instructions in, model inputs out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import (
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    WhisperFeatureExtractor,
)
from transformers.utils import cached_file

from .beats import BeatsFeatureExtractor
from .configuration import num_audio_tokens
from .eat import EatFeatureExtractor
from .sound_tower import SoundTowerFeatureExtractor
from .word_list import WordList

MIN_SAMPLES = 400
"""One 25 ms analysis window at 16 kHz; shorter clips hold no frame."""

WORDS_FILE = "words.txt.xz"

_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Settings of `from_pretrained` that say where files are found."""


class StapesFeatureExtractor(WhisperFeatureExtractor):
    """Whisper's log-mel features at each clip's true length.

    Where we differ from Whisper: clips are not padded to 30 s and never cut; each is transformed on its own, so that
    its features do not depend on what else is in the batch. `pad_to_s=30.0` gives Whisper's padding back, for models
    that were trained with it.

    Args:
        pad_to_s: pad shorter clips to this length.
        sound: the settings of a sound encoder's front end (`to_dict` of it), which then hears the clips too, never
            padded by `pad_to_s`.
        kwargs: see `WhisperFeatureExtractor`.
    """

    model_input_names = ["input_features", "input_features_mask"]  # noqa: RUF012 - the base class declares it so

    def __init__(self, pad_to_s: float | None = None, sound: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pad_to_s = pad_to_s
        self.sound = sound
        if sound is not None:
            _sound_front_end(sound)  # an unknown one is refused at once

    def __call__(  # type: ignore[override]  # only what an audio LM needs
        self, raw_speech: np.ndarray | Sequence[np.ndarray], sampling_rate: int | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Transform waveforms.

        Args:
            raw_speech: one waveform (N,), float, mono, 16 kHz, or several of any length.
            sampling_rate: of the waveforms, in Hz, to be checked if it is known.
            kwargs: Whisper's other settings change nothing; processors pass on those of the tokenizer (`max_length`).

        Returns:
            `input_features` (B, M, F), float32 log-mel at 100 Hz with F = floor(N / 160), right-padded with zeros;
            `input_features_mask` (B, F), int64; for a sound encoder `sound_features` and `sound_features_mask`, too.

        Raises:
            ValueError: if a waveform is not one-dimensional, shorter than 25 ms, or at another rate, or for
                `truncation=True`: nothing is ever cut.
        """
        if kwargs.get("truncation"):
            raise ValueError("truncation: audio is never cut here; a clip's features follow its true length")
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"the audio is at {sampling_rate} Hz, the model wants {self.sampling_rate}; resample it")
        if isinstance(raw_speech, np.ndarray) and raw_speech.ndim == 1:
            raw_speech = [raw_speech]
        features = [self._one(np.asarray(waveform, dtype=np.float32)) for waveform in raw_speech]
        longest = max(feature.shape[1] for feature in features)
        batch = torch.zeros(len(features), self.feature_size, longest)
        mask = torch.zeros(len(features), longest, dtype=torch.int64)
        for row, feature in enumerate(features):
            batch[row, :, : feature.shape[1]] = feature
            mask[row, : feature.shape[1]] = 1
        found = {"input_features": batch, "input_features_mask": mask}
        if self.sound is not None:
            waveforms = [np.asarray(waveform, dtype=np.float32) for waveform in raw_speech]
            found |= _sound_front_end(self.sound)(waveforms)
        return BatchFeature(found)

    def _one(self, waveform: np.ndarray) -> torch.Tensor:
        if waveform.ndim != 1 or waveform.shape[0] < MIN_SAMPLES:
            raise ValueError(
                f"a waveform has shape {waveform.shape}; wanted (N,) with N ≥ {MIN_SAMPLES} (25 ms at 16 kHz)"
            )
        if self.pad_to_s is not None:
            missing = round(self.pad_to_s * self.sampling_rate) - waveform.shape[0]
            waveform = np.pad(waveform, (0, max(0, missing)))
        features = super().__call__(
            waveform, sampling_rate=self.sampling_rate, padding="do_not_pad", truncation=False, return_tensors="pt"
        )
        return features["input_features"][0]


def _sound_front_end(
    settings: dict[str, Any],
) -> BeatsFeatureExtractor | EatFeatureExtractor | SoundTowerFeatureExtractor:
    kind = settings.get("feature_extractor_type")
    match kind:
        case "BeatsFeatureExtractor":
            return BeatsFeatureExtractor(**settings)
        case "EatFeatureExtractor":
            return EatFeatureExtractor(**settings)
        case "SoundTowerFeatureExtractor":
            return SoundTowerFeatureExtractor(**settings)
        case _:
            raise ValueError(
                f"sound: the front end is {kind!r}; wanted BeatsFeatureExtractor, EatFeatureExtractor or "
                "SoundTowerFeatureExtractor"
            )


class StapesProcessor(ProcessorMixin):
    """A Whisper feature extractor and the LLM's tokenizer, joined by the prompt.

    Args:
        feature_extractor: see `StapesFeatureExtractor`.
        tokenizer: the LLM's, unchanged: no token is added.
        audio_token: a reserved token of the tokenizer; the processor repeats it once per audio embedding.
        prompt_template: text with `{audio}` and `{instruction}`, up to where the answer begins.
        frames_per_window, queries_per_window, tail: those of the model's connector; they fix the number of tokens.

    Attributes:
        words: that a transcript may hold, for a connector that hears letters; None where there is no list. It is saved
            and loaded with the rest, in a file of its own.

    Raises:
        ValueError: if the tokenizer does not know the audio token, or the template lacks or repeats a field.
    """

    def __init__(
        self,
        feature_extractor: StapesFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        audio_token: str,
        prompt_template: str,
        frames_per_window: int,
        queries_per_window: int,
        tail: Literal["pad", "drop"],
        chat_template: str | None = None,
    ) -> None:
        added: dict[str, int] = cast(Any, tokenizer).get_added_vocab()  # every tokenizer has it, their base class not
        if audio_token not in added:
            raise ValueError(
                f"audio_token {audio_token!r} is not a token that the tokenizer keeps whole; choose another"
            )
        for field in ("{audio}", "{instruction}"):
            if prompt_template.count(field) != 1:
                raise ValueError(f"prompt_template wants {field} once, not {prompt_template.count(field)} times")
        self.audio_token = audio_token
        self.audio_token_id = added[audio_token]
        self.prompt_template = prompt_template
        self.frames_per_window = frames_per_window
        self.queries_per_window = queries_per_window
        self.tail: Literal["pad", "drop"] = tail
        self.words: WordList | None = None
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as other processors are, and the word list, too."""
        if self.words is not None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self.words.write(Path(save_directory) / WORDS_FILE)
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> StapesProcessor:  # type: ignore[override]  # keywords are the base class's
        """Load as other processors are, and the word list if there is one.

        Raises:
            ValueError: if the list is damaged.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        found = cached_file(
            str(pretrained_model_name_or_path),
            WORDS_FILE,
            _raise_exceptions_for_missing_entries=False,
            **{name: kwargs[name] for name in _WHERE if name in kwargs},
        )
        processor.words = WordList.read(Path(found)) if found else None
        return processor

    def build_prompt(self, instruction: str) -> str:
        """Write the prompt that asks `instruction` about one clip; the answer is to follow it directly.

        Raises:
            ValueError: if the instruction contains the audio token.
        """
        if self.audio_token in instruction:
            raise ValueError(f"the instruction holds the audio token {self.audio_token!r}; take it out")
        # One pass over the template: braces in an instruction are text, not fields.
        fields = {"{audio}": self.audio_token, "{instruction}": instruction}
        return re.sub(r"\{audio\}|\{instruction\}", lambda field: fields[field[0]], self.prompt_template)

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs: Any) -> str:
        """Repeat the audio token once for each embedding that clip `audio_idx` will give."""
        num_feature_frames = int(audio_inputs["input_features_mask"][audio_idx].sum())
        return self.audio_token * self.num_audio_tokens(num_feature_frames)

    def num_audio_tokens(self, num_feature_frames: int) -> int:
        """Count the audio tokens of a clip of `num_feature_frames` log-mel frames (100 Hz)."""
        return num_audio_tokens(num_feature_frames, self.frames_per_window, self.queries_per_window, self.tail)

    def prepare(self, waveforms: Sequence[np.ndarray], instructions: Sequence[str]) -> BatchFeature:
        """Make `generate`'s inputs: left-padded prompts and the features of their clips.

        Args:
            waveforms: B arrays (N,), float32, mono, 16 kHz.
            instructions: B texts.
        """
        prompts = [self.build_prompt(instruction) for instruction in instructions]
        return self(
            text=prompts,
            audio=list(waveforms),
            text_kwargs={"padding": True, "padding_side": "left", "add_special_tokens": False, "return_tensors": "pt"},
        )
