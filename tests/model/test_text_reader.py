"""How likely an LLM finds texts behind a prompt, against one plain pass of the LLM for each text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, MistralConfig, PreTrainedModel

from stapes.model.text_reader import MOST_NODES, TextReader

VOCABULARY = 50
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION: dict[str, Any] = {**SHAPE, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
LLMS = {
    "llama": LlamaConfig(**ATTENTION),
    "window": MistralConfig(**ATTENTION, sliding_window=6),
    "state": MambaConfig(**SHAPE, state_size=4),
}
TEXTS = [[3, 4, 5], [3, 4, 6, 7], [], [3], [8, 4, 5], [3, 4, 5]]


def made(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config).eval()
    for parameter in llm.parameters():
        parameter.data.mul_(3)  # so that what is read matters
    return llm


def plainly(llm: Any, prompt: Tensor, text: Sequence[int], may_follow: Tensor) -> float:
    tokens = torch.tensor([list(text)], dtype=torch.long)
    embeds = torch.cat([prompt[None], llm.get_input_embeddings()(tokens)], dim=1)
    log_next = llm(inputs_embeds=embeds).logits[0, len(prompt) - 1 :].log_softmax(-1)
    said = sum(float(log_next[at, token]) for at, token in enumerate(text))
    return said + float(log_next[len(text), : len(may_follow)][may_follow].logsumexp(0))


@torch.inference_mode()
@pytest.mark.parametrize("kind", LLMS)
def test_texts_are_as_likely_as_the_llm_finds_each_alone(kind: str) -> None:
    llm, prompt = made(LLMS[kind]), torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    may_follow = torch.zeros(VOCABULARY - 5, dtype=torch.bool)  # fewer tokens than the table has rows
    may_follow[[0, 2]] = True
    found = TextReader(llm, prompt).score(TEXTS, may_follow)
    expected = torch.tensor([plainly(llm, prompt, text, may_follow) for text in TEXTS])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert len(set(found[:5].tolist())) == 5
    alone = TextReader(llm, prompt).score([[]], may_follow)
    torch.testing.assert_close(alone, expected[2:3], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_many_long_texts_are_read_in_parts() -> None:
    llm, prompt = made(LLMS["llama"]), torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    may_follow = torch.ones(VOCABULARY, dtype=torch.bool)
    generator = torch.Generator().manual_seed(2)
    texts = torch.randint(VOCABULARY, (7, MOST_NODES // 3), generator=generator).tolist()
    sizes: list[int] = []
    llm.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]) if "input_ids" in kwargs else None,
        with_kwargs=True,
    )
    found = TextReader(llm, prompt).score(texts, may_follow)
    assert len(sizes) == 3
    assert max(sizes) <= MOST_NODES + len(texts[0])
    expected = torch.tensor([plainly(llm, prompt, text, may_follow) for text in texts])
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", LLMS)
def test_what_was_read_for_good_belongs_to_the_prompt(kind: str) -> None:
    llm, prompt = made(LLMS[kind]), torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    may_follow = torch.zeros(VOCABULARY, dtype=torch.bool)
    may_follow[[0, 2]] = True
    reader = TextReader(llm, prompt)
    reader.score(TEXTS)  # asking leaves no trace
    reader.go_on([7, 9])
    reader.go_on([])
    reader.score(TEXTS)
    reader.go_on([11])
    longer = torch.cat([prompt, llm.get_input_embeddings()(torch.tensor([7, 9, 11]))])
    expected = torch.tensor([plainly(llm, longer, text, may_follow) for text in TEXTS])
    torch.testing.assert_close(reader.score(TEXTS, may_follow), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_it_may_be_left_open_what_follows() -> None:
    llm, prompt = made(LLMS["llama"]), torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    anything = torch.ones(VOCABULARY, dtype=torch.bool)
    reader = TextReader(llm, prompt)
    torch.testing.assert_close(reader.score(TEXTS), reader.score(TEXTS, anything), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", LLMS)
def test_what_is_kept_of_the_prompt_can_be_read_on(kind: str) -> None:
    llm: Any = made(LLMS[kind])
    prompt = torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    reader = TextReader(llm, prompt)
    reader.score(TEXTS)
    reader.go_on([7, 9])
    cache = reader.cache_of_prompt()
    if kind != "llama":
        assert cache is None  # neither a state nor a window can be cut
        return
    assert cache is not None
    assert cache.get_seq_length() == 8
    last = llm(inputs_embeds=prompt[None, -1:], cache=cache).logits[0, -1]
    torch.testing.assert_close(last, llm(inputs_embeds=prompt[None]).logits[0, -1], atol=1e-4, rtol=1e-4)
