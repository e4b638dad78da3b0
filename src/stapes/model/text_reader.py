"""How likely an LLM finds texts, all of which follow one prompt."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

MOST_NODES = 192
"""Tokens that the LLM reads at once, or a text's length more: their logits are 200 kB each."""


class TextReader:
    """An LLM that has read a prompt and is asked what may follow.

    What texts have in common at their start is read once: they are laid out as a tree, in which a token sees the prompt
    and those on its own branch (tree attention, as in SpecInfer, Miao et al. 2024, arXiv 2305.09781, sec. 4.2).

    Args:
        language_model: a causal LM.
        prompt: (L, D) embeddings of what comes before the texts.
    """

    def __init__(self, language_model: PreTrainedModel, prompt: Tensor) -> None:
        self._llm: Any = language_model  # its class says which arguments it takes
        self._prompt, self._prompt_length = prompt, len(prompt)
        read = self._llm(inputs_embeds=prompt[None], use_cache=True, logits_to_keep=1)
        self._last: Tensor = read.logits[0]
        # Neither a state, as Mamba's, nor a window that slides can branch.
        branches = not (any(read.cache.is_linear) or any(read.cache.is_sliding))
        self._cache: Cache | None = read.cache if branches else None

    def go_on(self, tokens: Sequence[int]) -> None:
        """Read a text for good: what is asked for next follows it."""
        if not tokens:
            return
        ids = torch.tensor([list(tokens)], device=self._prompt.device)
        self._prompt = torch.cat([self._prompt, self._llm.get_input_embeddings()(ids)[0]])
        if self._cache is None:
            self._last = self._llm(inputs_embeds=self._prompt[None], logits_to_keep=1).logits[0]
        else:
            self._last = self._llm(input_ids=ids, cache=self._cache, use_cache=True, logits_to_keep=1).logits[0]

    def score(self, texts: Sequence[Sequence[int]], may_follow: Tensor | None = None) -> Tensor:
        """Tell how likely each text is: (N,) log-probabilities.

        Args:
            texts: N lists of tokens.
            may_follow: (V,) True for the tokens one of which is to follow each text; None where that is left open.
        """
        scores: list[Tensor] = []
        for tree, ends in _trees(texts, 0 if self._cache is None else MOST_NODES):
            log_next = self._read(tree).float().log_softmax(dim=-1)
            said = [log_next.new_zeros(())]
            for token, parent in zip(tree.tokens, tree.parents, strict=True):
                said.append(said[parent] + log_next[parent, token])
            likely = torch.stack([said[end] for end in ends])
            if may_follow is not None:
                missing = log_next.shape[1] - len(may_follow)  # an LLM's table may have more rows than it has tokens
                follows = nn.functional.pad(may_follow.to(log_next.device), (0, missing))
                likely = likely + log_next[ends].masked_fill(~follows, -torch.inf).logsumexp(dim=1)
            scores.append(likely)
        return torch.cat(scores)

    def cache_of_prompt(self) -> Cache | None:
        """Hand over what the LLM keeps of the prompt but for its last position, without what was read for good since.

        The reader is done then. None for an LLM whose cache cannot be cut.
        """
        if self._cache is not None:
            self._cache.crop(self._prompt_length - 1 - len(self._prompt))
        return self._cache

    def _read(self, tree: _Tree) -> Tensor:
        """Return logits of what follows nodes 0, 1, …: (1 + n, V)."""
        if not tree.tokens:
            return self._last
        tokens = torch.tensor([tree.tokens], device=self._prompt.device)
        if self._cache is not None:
            return torch.cat([self._last, self._read_branches(tokens, tree, copy.deepcopy(self._cache))])
        embeds = torch.cat([self._prompt[None], self._llm.get_input_embeddings()(tokens)], dim=1)
        return self._llm(inputs_embeds=embeds, logits_to_keep=1 + len(tree.tokens)).logits[0]

    def _read_branches(self, tokens: Tensor, tree: _Tree, cache: Cache) -> Tensor:
        """Return logits of what follows nodes 1, 2, …: (n, V)."""
        size, prompt_length = len(tree.tokens), len(self._prompt)
        sees = torch.zeros(1 + size, 1 + size, dtype=torch.bool)
        depth = [0]
        for node, parent in enumerate(tree.parents, start=1):
            sees[node] = sees[parent]
            sees[node, node] = True
            depth.append(depth[parent] + 1)
        mask = torch.zeros(1, 1, size, prompt_length + size, dtype=self._prompt.dtype)
        mask[0, 0, :, prompt_length:].masked_fill_(~sees[1:, 1:], torch.finfo(mask.dtype).min)
        outputs = self._llm(
            input_ids=tokens,
            attention_mask=mask.to(tokens.device),
            position_ids=torch.tensor([depth[1:]], device=tokens.device) + prompt_length - 1,
            cache=cache,
            use_cache=True,
        )
        return outputs.logits[0]


class _Tree(NamedTuple):
    """Texts that share their beginnings; node 0 is the prompt's end.

    Attributes:
        tokens: of node 1, 2, …
        parents: the nodes they follow, each before its children.
    """

    tokens: list[int]
    parents: list[int]


def _trees(texts: Sequence[Sequence[int]], most_nodes: int) -> Iterator[tuple[_Tree, list[int]]]:
    """Lay texts out as trees, in their order: each with the nodes where its texts end.

    A tree takes another text while it has fewer than `most_nodes`.
    """
    tree, ends, known = _Tree([], []), list[int](), dict[tuple[int, ...], int]()
    for text in texts:
        if ends and len(tree.tokens) >= most_nodes:
            yield tree, ends
            tree, ends, known = _Tree([], []), [], {}
        node = 0
        for end, token in enumerate(text, start=1):
            beginning = tuple(text[:end])
            if beginning not in known:
                tree.tokens.append(token)
                tree.parents.append(node)
                known[beginning] = len(tree.tokens)
            node = known[beginning]
        ends.append(node)
    if ends:
        yield tree, ends
