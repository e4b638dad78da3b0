"""LLMs of other families than Llama: tiny random ones with the quirks of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, GenerationConfig

from stapes.data.collator import Example, collate
from stapes.inference import AudioLM
from stapes.model import StapesConfig, StapesForConditionalGeneration, StapesProcessor

Waveforms = Callable[[float, int], np.ndarray]
ModelFactory = Callable[..., tuple[StapesForConditionalGeneration, StapesProcessor]]

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {**_LLAMA_LIKE, "tie_word_embeddings": True},
    "qwen3": {**_LLAMA_LIKE, "head_dim": 16},
    # Embeddings scaled by the square root of the width, and a window that is shorter than the prompt.
    "gemma3_text": {
        **_LLAMA_LIKE,
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    # Queries, keys and values in one layer; no `q_proj`.
    "gpt_neox": {key: value for key, value in _LLAMA_LIKE.items() if key != "num_key_value_heads"},
    # Learnt positions, and other names for width and depth.
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    # ALiBi: no position ids at all.
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    # Convolutions beside attention, with a state of their own in the cache.
    "lfm2": {**_LLAMA_LIKE, "layer_types": ["conv", "full_attention"]},
    "qwen3_moe": {**_LLAMA_LIKE, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    # No attention, so no length in the cache.
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
}


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest, tiny_model_and_processor: ModelFactory) -> AudioLM:
    like, processor = tiny_model_and_processor()
    tokenizer = processor.tokenizer
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config = AutoConfig.for_model(
        request.param, vocab_size=len(tokenizer), initializer_range=0.2, **ids, **FAMILIES[request.param]
    )
    config = StapesConfig(
        speech_config=like.config.speech_config.to_dict(),
        text_config=text_config,
        connector_config=like.config.connector_config.to_dict(),
        audio_token_id=processor.audio_token_id,
    )
    torch.manual_seed(0)
    model: Any = StapesForConditionalGeneration(config).eval()
    # A fresh connector makes nearly the same of every clip.
    for parameter in model.connector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.generation_config = GenerationConfig(**ids, suppress_tokens=[processor.audio_token_id])
    return AudioLM(model, processor)


# What peft has to say about Conv1D and about experts whose weights it treats one by one.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set", "ignore:The following (rank|alpha)_pattern")
def test_every_family_runs(lm: AudioLM, speech_like: Waveforms, tmp_path: Path) -> None:
    clips = [speech_like(duration_s, seed) for seed, duration_s in enumerate([0.5, 1.0, 3.0])]
    instructions = ["Hi?", "And how are you?", "Well."]
    length: Any = {"max_new_tokens": 8, "min_new_tokens": 8}
    together = lm.answer(clips, instructions, **length)
    assert together == lm.answer(clips, instructions, **length, use_cache=False)
    assert together == [lm.answer([c], [i], **length)[0] for c, i in zip(clips, instructions, strict=True)]
    inputs = lm.processor.prepare([clips[1], -clips[1][::-1]], ["Hi?", "Hi?"])
    with torch.no_grad():
        heard = lm.model(**inputs, logits_to_keep=1).logits
    assert float((heard[0] - heard[1]).abs().max()) > 1e-3

    features = [lm.processor.feature_extractor([clip])["input_features"][0] for clip in clips]
    batch = collate(
        [Example(i, "yes", input_features=f) for i, f in zip(instructions, features, strict=True)], lm.processor
    )
    targets: Any = ["in_proj", "x_proj"] if lm.model.config.text_config.model_type == "mamba" else "all-linear"
    expected = lm.model(**batch).loss.item()
    lm.model.add_lora(r=2, lora_alpha=4, target_modules=targets)
    assert lm.model(**batch).loss.item() == pytest.approx(expected, abs=1e-6)
    lm.model.set_trainable({"connector", "lora"})
    lm.model.train()
    lm.model(**batch).loss.backward()
    learning = {name: p for name, p in lm.model.named_parameters() if p.requires_grad}
    lora = {name for name in learning if ".lora_" in name}
    assert lora == {name for name, _ in lm.model.named_parameters() if ".lora_" in name}
    assert {name.partition(".")[0] for name in learning.keys() - lora} == {"connector"}
    assert [name for name, p in learning.items() if p.grad is None or not bool(p.grad.isfinite().all())] == []
    with torch.no_grad():
        for parameter in learning.values():
            parameter -= 0.1 * parameter.grad.sign()  # type: ignore[union-attr]  # checked above
    lm.model.eval()
    trained = lm.model(**batch).loss.item()
    assert trained != pytest.approx(expected, abs=1e-3)

    lm.model.save_pretrained(tmp_path)
    loaded: Any = StapesForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    back, info = loaded
    assert {name: sorted(keys) for name, keys in info.items() if keys} == {}
    assert back.eval()(**batch).loss.item() == trained


def test_a_vocabulary_never_grows(lm: AudioLM) -> None:
    embeddings: Any = lm.model.get_input_embeddings()
    assert embeddings.weight.shape[0] == len(lm.processor.tokenizer) == 262
