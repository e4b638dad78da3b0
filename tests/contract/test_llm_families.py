"""Each family of the table, from its folder to answers: tokens, prompts, training, adapters, folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_llms import TINY_LLMS, TinyLLM, save_tiny_llm, tiny_tokenizer_of
from torch import Tensor, nn
from transformers import LogitsProcessorList

from stapes.assembly import build, load_model, save_model
from stapes.compress.merge import merge_adapters
from stapes.data.collator import Example, collate
from stapes.errors import ModelFolderError, StapesError
from stapes.model import ConnectorConfig, StapesProcessor
from stapes.model.families import FAMILIES, find_family, lora_targets
from stapes.recipe import LoRA
from stapes.train.adapters import give_adapters

Waveforms = Callable[[float, int], np.ndarray]
MLP = {"kind": "stacked_mlp", "frames_per_window": 8, "hidden_size": 64}
MIXTURES = [name for name, llm in TINY_LLMS.items() if "moe" in llm.model_type]


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llms")
    for name, llm in TINY_LLMS.items():
        save_tiny_llm(llm, folder / name)
    return folder


def build_with(parts: Path, llm: Path, **settings: Any) -> tuple[Any, StapesProcessor]:
    return build(str(parts / "encoder"), str(llm), ConnectorConfig(**MLP), **settings)


def batch_of(processor: StapesProcessor, speech_like: Waveforms) -> dict[str, Tensor]:
    features = processor.feature_extractor([speech_like(1.0, 0)])["input_features"][0]
    return collate([Example("Hi?", "yes", input_features=features)], processor)


def linears_of(model: nn.Module) -> set[str]:
    """Name the Linear layers of the LLM's first block, but for the gate of shared experts, of one output."""
    return {
        name.partition("layers.0.")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "layers.0." in name and module.out_features > 1
    }


@pytest.mark.parametrize("name", TINY_LLMS)
def test_tokens_and_prompts(name: str, llms: Path, parts: Path) -> None:
    llm = TINY_LLMS[name]
    model, processor = build_with(parts, llms / name)
    tokenizer = processor.tokenizer
    family = find_family(model.config.text_config.model_type, tokenizer)
    assert family is not None
    assert family.name == llm.family
    assert (processor.audio_token, tokenizer.pad_token, tokenizer.eos_token) == (llm.audio, llm.pad, llm.end)
    assert processor.build_prompt("Hi?") == llm.chat.format(a=llm.audio)
    generation = model.generation_config
    assert generation.eos_token_id == sorted(tokenizer.convert_tokens_to_ids(token) for token in llm.ends)
    assert generation.suppress_tokens == [model.config.audio_token_id] == [tokenizer.convert_tokens_to_ids(llm.audio)]
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == 256 + len(llm.tokens) + llm.extra_rows
    assert model.config.audio_token_id < rows
    _, plain = build_with(parts, llms / name, prompt="plain")
    assert plain.build_prompt("Hi?") == llm.plain.format(a=llm.audio)
    # In a plain prompt there is no turn to end.
    assert plain.tokenizer.eos_token == llm.roles["eos_token"]


def test_the_table_is_tested_whole() -> None:
    assert {llm.family for llm in TINY_LLMS.values()} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("name", TINY_LLMS)
def test_training_answering_and_folders(
    name: str, llms: Path, parts: Path, speech_like: Waveforms, tmp_path: Path
) -> None:
    model, processor = build_with(parts, llms / name)
    give_adapters(model, processor, LoRA.model_validate({"r": 4, "lora_dropout": 0}), "tune", seed=0)
    assert {layer.rpartition(".")[2] for layer, _ in model.lora_layers()} == {"q_proj", "v_proj"}
    model.set_trainable({"connector", "lora"})
    model.config.trained_parts = ["connector", "lora"]
    batch = batch_of(processor, speech_like)
    end = processor.tokenizer.convert_tokens_to_ids(TINY_LLMS[name].end)
    assert batch["labels"][0, -1] == end
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(60):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[5] < 0.8 * losses[0]
    assert losses[-1] < 0.3

    inputs = processor.prepare([speech_like(1.0, 0)], ["Hi?"])
    length = inputs["input_ids"].shape[1]
    answer = model.generate(**inputs, max_new_tokens=16)[0, length:].tolist()
    assert processor.tokenizer.decode(answer, skip_special_tokens=True) == "yes"
    assert answer[-1] == end
    for token in TINY_LLMS[name].ends:
        wanted = processor.tokenizer.convert_tokens_to_ids(token)

        def end_now(ids: Tensor, scores: Tensor, wanted: int = wanted) -> Tensor:
            return scores.scatter(1, torch.full_like(ids[:, :1], wanted), 1e9) if ids.shape[1] > length else scores

        ended = model.generate(**inputs, max_new_tokens=16, logits_processor=LogitsProcessorList([end_now]))
        assert ended[0, length + 1 :].tolist() == [wanted]

    save_model(model, processor, tmp_path / "trained", trained_only=True)
    back, again = load_model(tmp_path / "trained")
    with torch.no_grad():
        assert torch.equal(back(**inputs).logits, model(**inputs).logits)
    assert (again.audio_token, again.tokenizer.eos_token, again.tokenizer.pad_token) == (
        processor.audio_token,
        processor.tokenizer.eos_token,
        processor.tokenizer.pad_token,
    )
    assert back.generation_config.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.parametrize("name", TINY_LLMS)
def test_all_linears_are_adapted_and_nothing_else(name: str, llms: Path, parts: Path) -> None:
    model, processor = build_with(parts, llms / name)
    expected = linears_of(model.language_model)
    lora = LoRA.model_validate({"r": 2, "target_modules": "all-linear"})
    give_adapters(model, processor, lora, "tune", seed=0)
    adapted = {layer.partition("layers.0.")[2] for layer, _ in model.lora_layers() if "layers.0." in layer}
    assert adapted == expected
    assert {"self_attn.q_proj", "self_attn.o_proj"} <= adapted
    # A later stage that asks for the same goes on with them.
    give_adapters(model, processor, lora, "later", seed=1)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_adapted_as_parameters(name: str, llms: Path, parts: Path, speech_like: Waveforms) -> None:
    model, processor = build_with(parts, llms / name)
    family = next(family for family in FAMILIES if family.name == TINY_LLMS[name].family)
    lora = LoRA.model_validate({"r": 2, "lora_dropout": 0, "target_parameters": list(family.experts)})
    batch = batch_of(processor, speech_like)
    before = model(**batch).loss.item()
    give_adapters(model, processor, lora, "tune", seed=0)
    assert model(**batch).loss.item() == pytest.approx(before, abs=1e-6)
    give_adapters(model, processor, lora, "later", seed=1)
    model.set_trainable({"lora"})
    model(**batch).loss.backward()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len([n for n in learning if ".experts." in n and "layers.0." in n]) == 4
    assert [n for n, p in learning.items() if "lora_B" in n and (p.grad is None or not p.grad.any())] == []
    optimizer = torch.optim.AdamW(learning.values(), lr=5e-3)
    for _ in range(8):
        optimizer.step()
        optimizer.zero_grad()
        model(**batch).loss.backward()
    with torch.no_grad():
        adapted = model(**batch).logits
        assert model(**batch).loss.item() < before
        merge_adapters(model)
        torch.testing.assert_close(model(**batch).logits, adapted, atol=1e-4, rtol=1e-4)
    assert not [n for n, _ in model.named_parameters() if "lora" in n or "base_layer" in n]


def test_targets_that_are_not_there(llms: Path, parts: Path) -> None:
    model, processor = build_with(parts, llms / "granite-moe-instruct")
    lora = LoRA.model_validate({"target_modules": ["c_attn"]})
    with pytest.raises(
        StapesError,
        match=r"^stage `tune`: lora: Target modules .*c_attn.* not found.*; GraniteMoE has q_proj, .* for "
        r"`target_modules`, and block_sparse_moe\.experts\.gate_up_proj, .* with `lora_dropout: 0`$",
    ):
        give_adapters(model, processor, lora, "tune", seed=0)


def test_peft_decides_for_unknown_families(tiny_model_and_processor: Callable[..., Any]) -> None:
    _, processor = tiny_model_and_processor()
    assert find_family("llama", processor.tokenizer) is None
    assert lora_targets("all-linear", None) == "all-linear"
    qwen = find_family("qwen2", tiny_tokenizer_of(TINY_LLMS["qwen2.5-base"]))
    assert lora_targets("all-linear", qwen) == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    assert lora_targets(["q_proj"], qwen) == ["q_proj"]


def test_a_full_table_has_no_row_for_audio(llms: Path, parts: Path, tmp_path: Path) -> None:
    llm = TINY_LLMS["qwen1.5-moe-chat"]
    save_tiny_llm(TinyLLM(**{**llm.__dict__, "extra_rows": 0}), tmp_path)
    with pytest.raises(ModelFolderError, match="its tokenizer has no reserved token that stapes knows; name a token"):
        build_with(parts, tmp_path)
