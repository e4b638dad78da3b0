"""A recipe that runs whole in seconds: parts in miniature as folders, generated speech-like clips, both stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

RECIPE = """
name: small
seed: 1
model:
  speech_encoder: ./encoder
  llm: ./llm
  connector: {kind: stacked_mlp, stack: 8, hidden_size: 64}
train:
  align:
    data: {train.jsonl: 1}
    valid: [valid.jsonl]
    max_steps: 4
    per_device_train_batch_size: 2
    save_steps: 2
    logging_steps: 1
    clip: {kind: dynamic, percentile: 50}
  tune:
    data: {train.jsonl: 1}
    trainable: [connector, lora]
    lora: {r: 2, lora_alpha: 4}
    max_steps: 3
    per_device_train_batch_size: 2
    save_steps: 1
    logging_steps: 1
compress:
  - {kind: merge_lora}
  - {kind: quantize}
evaluate: {data: [test.jsonl], batch_size: 4, max_new_tokens: 8}
bench: {audio_s: 1, new_tokens: 4, warmup: 1, repeats: 3}
report: {samples: 2}
"""


@pytest.fixture(scope="session")
def small_parts(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model_and_processor: Callable,
    tiny_tokenizer: PreTrainedTokenizerFast,
    speech_like: Callable[[float, int], np.ndarray],
) -> Path:
    """A folder with `encoder/`, `llm/`, clips and manifests that `RECIPE` names; copy what you change."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 64}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    whisper = WhisperForConditionalGeneration(WhisperConfig(**sizes, **decoder, **tokens, num_mel_bins=80))
    whisper.save_pretrained(folder / "encoder")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "encoder")
    llm = tiny_model_and_processor()[0].language_model
    assert isinstance(llm, LlamaForCausalLM)
    llm.save_pretrained(folder / "llm")
    tiny_tokenizer.save_pretrained(folder / "llm")
    (folder / "clips").mkdir()
    for split, count in (("train", 6), ("valid", 2), ("test", 4)):
        lines = []
        for number in range(count):
            name, duration_s = f"clips/{split}{number}.wav", 0.4 + 0.3 * number
            soundfile.write(folder / name, speech_like(duration_s, number), 16_000)
            line = {"id": f"{split}{number}", "audio": name, "duration_s": duration_s, "target": f"word {number}"}
            lines.append(json.dumps(line) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return folder
