"""Whisper-base and SmolLM2-135M joined: nothing of either is lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor, WhisperModel

from stapes.assembly import build, load_model, save_model
from stapes.data.audio import load_audio
from stapes.inference import AudioLM
from stapes.model import ConnectorConfig, StapesProcessor
from stapes.weights import resolve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPEECH = Path(__file__).parents[2] / "data" / "speech"
WHISPER, SMOLLM = "openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def joined() -> tuple[Any, StapesProcessor]:
    connector = ConnectorConfig(kind="stacked_mlp", frames_per_window=8, hidden_size=512)
    return build(WHISPER, SMOLLM, connector)


def test_the_llm_speaks_as_before(joined: tuple[Any, StapesProcessor]) -> None:
    model, processor = joined
    tokenizer = AutoTokenizer.from_pretrained(resolve(SMOLLM))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    llm: Any = AutoModelForCausalLM.from_pretrained(resolve(SMOLLM))
    expected = llm.generate(**inputs, max_new_tokens=20, do_sample=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=20), expected)
    assert processor.tokenizer.decode(expected[0]).endswith("The capital of France is Paris.<|im_end|>")


def test_tokens_of_the_vocabulary_serve(joined: tuple[Any, StapesProcessor]) -> None:
    model, processor = joined
    assert len(processor.tokenizer) == model.get_input_embeddings().num_embeddings == 49_152
    assert processor.tokenizer.eos_token == "<|im_end|>"
    # Marks of SmolLM2's training on code, which no chat uses; the first two by their ids.
    assert (processor.audio_token, processor.tokenizer.pad_token) == ("<gh_stars>", "<issue_comment>")


@torch.no_grad()
def test_the_encoder_hears_as_whisper(joined: tuple[Any, StapesProcessor]) -> None:
    model, _ = joined
    whisper: Any = WhisperModel.from_pretrained(resolve(WHISPER)).eval()
    waveform = load_audio(SPEECH / "vm-intro.ogg")
    features = WhisperFeatureExtractor()(waveform, sampling_rate=16_000, return_tensors="pt")["input_features"]
    frames, mask = model.encode(features, torch.ones(1, 3000, dtype=torch.int64))
    torch.testing.assert_close(frames, whisper.encoder(features).last_hidden_state, atol=1e-5, rtol=0)
    assert bool(mask.all())


def test_batches_and_folders(joined: tuple[Any, StapesProcessor], tmp_path: Path) -> None:
    model, processor = joined
    lm = AudioLM(model, processor)
    names = ("tt-somethingwrong", "conf-waitforleader", "vm-intro", "im-sorry")
    clips = [load_audio(SPEECH / f"{name}.ogg") for name in names]
    instructions = ["Transcribe the speech."] * 4
    together = lm.answer(clips, instructions, max_new_tokens=12)
    assert together == [lm.answer([clip], instructions[:1], max_new_tokens=12)[0] for clip in clips]
    save_model(model, processor, tmp_path / "align", trained_only=True)
    assert (tmp_path / "align" / "trained.safetensors").stat().st_size < 20_000_000
    back = AudioLM(*load_model(tmp_path / "align"))
    assert back.answer(clips, instructions, max_new_tokens=12) == together
