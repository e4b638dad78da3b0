"""The weights people use, through the mirrors: what was converted hears and speaks as the originals do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    WhisperForConditionalGeneration,
)

from stapes.data.audio import load_audio
from stapes.weights import describe, resolve

# A download and conversion takes about a minute the first time.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPEECH = Path(__file__).parents[2] / "data" / "speech"


def load_strictly(loader: Any, folder: Path) -> Any:
    model, info = loader.from_pretrained(folder, output_loading_info=True)
    assert {name: sorted(keys) for name, keys in info.items() if keys} == {}
    return model.eval()


def test_whisper_base_transcribes() -> None:
    folder = resolve("openai/whisper-base")
    model = load_strictly(WhisperForConditionalGeneration, folder)
    processor = AutoProcessor.from_pretrained(folder)
    for name, expected in {
        "conf-waitforleader": "The conference will begin when the leader arrives.",
        "tt-somethingwrong": "Something is terribly wrong.",
        "vm-intro": "Please leave your message after the tone, when done hang up, or press the pound key.",
    }.items():
        inputs = processor(load_audio(SPEECH / f"{name}.ogg"), sampling_rate=16_000, return_tensors="pt")
        ids = model.generate(**inputs, language="en", task="transcribe", do_sample=False)
        assert processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == expected


def test_whisper_base_is_the_multilingual_one() -> None:
    folder = resolve("openai/whisper-base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Ids of the Hub's tokenizer, which its generation settings and every paper's code rely on.
    known = {"<|endoftext|>": 50257, "<|startoftranscript|>": 50258, "<|en|>": 50259, "<|de|>": 50261}
    known |= {"<|translate|>": 50358, "<|transcribe|>": 50359, "<|notimestamps|>": 50363, "<|30.00|>": 51864}
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in known} == known
    generation: Any = GenerationConfig.from_pretrained(folder)
    assert generation.is_multilingual
    assert len(generation.lang_to_id) == 99
    assert generation.lang_to_id["<|de|>"] == 50261
    assert generation.task_to_id == {"transcribe": 50359, "translate": 50358}


def test_smollm2_answers() -> None:
    folder = resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    model = load_strictly(AutoModelForCausalLM, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == 49_152
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    said = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
    assert said == "The capital of France is Paris.<|im_end|>"
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(ids[0]) == "The capital of France is Paris."


def test_smollm2_splits_text_as_it_was_trained() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("HuggingFaceTB/SmolLM2-135M-Instruct"))
    # Digits are split off first, each alone; two spaces are then a word of their own.
    assert tokenizer.tokenize("a  12, 2026") == ["a", "ĠĠ", "1", "2", ",", "Ġ", "2", "0", "2", "6"]
    text = "Grüße — 3.14 times\n\t«yes»"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("name", ["openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_what_was_fetched_stays(name: str) -> None:
    folder = resolve(name)
    assert resolve(name, offline=True) == folder
    described = describe(folder)
    assert described["source"]["name"] == name
    assert list(described["sha256"]) == ["model.safetensors"]
    json.dumps(described, allow_nan=False)
    assert torch.get_default_dtype() == torch.float32
