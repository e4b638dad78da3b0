"""A loaded model in use: what it is asked, what it says, and what it does not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import stapes
from stapes.data.prompts import TEST_INSTRUCTIONS
from stapes.errors import AudioError, ModelFolderError
from stapes.inference import Answer, AudioLM, load, rounding_margin
from stapes.model import StapesForConditionalGeneration, StapesProcessor

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]


@pytest.fixture
def lm(tiny_model_and_processor: ModelFactory) -> AudioLM:
    return AudioLM(*tiny_model_and_processor())


def force(lm: AudioLM, text: str, *, end: bool = True) -> None:
    """Make a model say `text` whatever it is given, and then end, or go on with spaces."""
    tokenizer = lm.processor.tokenizer
    script = tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if end else tokenizer(" " * 500)["input_ids"])
    steps = iter(script)

    def say(_module: torch.nn.Module, _inputs: Any, output: Any) -> torch.Tensor:
        logits = torch.full_like(output, -100.0)
        logits[..., next(steps)] = 100.0
        return logits

    lm.model.get_output_embeddings().register_forward_hook(say)  # type: ignore[union-attr]  # an LLM has a head


def test_a_folder_is_loaded_ready_to_use(tiny_model_folder: Path, speech_like: Waveforms) -> None:
    lm = stapes.load(tiny_model_folder)
    assert isinstance(lm, AudioLM)
    assert lm.model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not lm.model.training
    assert load(str(tiny_model_folder), device="cpu").ask(speech_like(1.0, 0), "Hi?", max_new_tokens=4) == lm.ask(
        speech_like(1.0, 0), "Hi?", max_new_tokens=4
    )


def test_a_folder_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"nowhere: no such model folder$"):
        stapes.load(tmp_path / "nowhere")


def test_what_is_asked(lm: AudioLM, speech_like: Waveforms, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], dict[str, Any]]] = []
    original = lm.answer

    def note(waveforms: Any, instructions: Any, **generate: Any) -> list[Answer]:
        asked.append((list(instructions), generate))
        return original(waveforms, instructions, **generate)

    monkeypatch.setattr(lm, "answer", note)
    clip = speech_like(1.0, 0)
    lm.transcribe(clip, max_new_tokens=2)
    lm.describe(clip, max_new_tokens=3)
    lm.ask(clip, "Who?", max_new_tokens=4, num_beams=2)
    assert asked == [
        ([TEST_INSTRUCTIONS["asr"]], {"max_new_tokens": 2}),
        ([TEST_INSTRUCTIONS["audiocaption"]], {"max_new_tokens": 3}),
        (["Who?"], {"max_new_tokens": 4, "num_beams": 2}),
    ]


def test_a_file_is_as_good_as_its_samples(lm: AudioLM, speech_like: Waveforms, tmp_path: Path) -> None:
    waveform = speech_like(1.0, 0)
    soundfile.write(tmp_path / "clip.wav", waveform, 16_000, subtype="FLOAT")
    texts = {
        lm.ask(audio, "Hi?", max_new_tokens=8)
        for audio in (waveform, tmp_path / "clip.wav", str(tmp_path / "clip.wav"))
    }
    assert len(texts) == 1
    # Two channels, other rate: mixed and resampled on the way in.
    stereo = np.stack([waveform, waveform], axis=1)
    assert lm.ask(stereo, "Hi?", max_new_tokens=8) in texts


def test_an_answer_ends_where_the_model_says(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, " good morning ")
    assert lm.answer([speech_like(1.0, 0)], ["Hi?"]) == [Answer("good morning", 15, truncated=False)]


def test_an_answer_that_is_cut_off_says_so(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "good morning", end=False)
    assert lm.answer([speech_like(1.0, 0)], ["Hi?"], max_new_tokens=4) == [Answer("good", 4, truncated=True)]


def test_an_answer_has_200_tokens_unless_asked_otherwise(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "", end=False)
    assert lm.answer([speech_like(1.0, 0)], ["Hi?"]) == [Answer("", 200, truncated=True)]


def test_special_tokens_are_not_part_of_the_text(lm: AudioLM, speech_like: Waveforms) -> None:
    force(lm, "a<|im_start|>b")
    assert lm.answer([speech_like(1.0, 0)], ["Hi?"]) == [Answer("ab", 4, truncated=False)]


def test_sampling_and_beams_go_through(lm: AudioLM, speech_like: Waveforms) -> None:
    clips, instructions = [speech_like(1.0, 0), speech_like(2.0, 1)], ["Hi?", "Who?"]
    greedy = lm.answer(clips, instructions, max_new_tokens=8)
    assert lm.answer(clips, instructions, max_new_tokens=8, num_beams=1, do_sample=True, top_k=1) == greedy
    assert len(lm.answer(clips, instructions, max_new_tokens=8, num_beams=3)) == 2


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), r"^audio: holds 0 samples"),
        (np.zeros(399, np.float32), r"^audio: lasts 24\.9 ms; wanted at least 25 ms"),
        (np.full(16_000, np.nan, np.float32), r"^audio: 16000 of 16000 samples are NaN or infinite"),
        ("nowhere.wav", r"^nowhere\.wav: no such file$"),
    ],
)
def test_audio_that_cannot_be_used(lm: AudioLM, audio: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        lm.transcribe(audio)


def test_an_answer_needs_a_lead_that_rounding_cannot_take(lm: AudioLM) -> None:
    assert rounding_margin(lm.model) == 2e-3
    assert rounding_margin(lm.model.bfloat16()) == 0.5  # type: ignore[arg-type]  # transformers' `bfloat16` is loosely typed
