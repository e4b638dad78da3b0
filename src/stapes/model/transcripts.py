"""Transcripts that an LLM chooses among what CTC may have heard."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from .ctc_vocabulary import CTCVocabulary
from .word_list import WordList
from .word_search import search_words

CANDIDATES = 16
"""Texts that the LLM reads."""

TEXT_ALONE = 0.6
"""What the LLM's say consists of: so much of how likely it finds the text as such, the rest of how likely after the
audio. An LLM that was taught for minutes knows English better than it hears."""

MOST_NODES = 192
"""Tokens that the LLM reads at once, or a text's length more: their logits are 200 kB each."""


class TranscriptChooser:
    """Finds texts that fit the letters that CTC heard, and lets the LLM say which of them it is.

    score = w · log p_letters + (1 - w) · (0.4 · log p_LLM(text | audio) + 0.6 · log p_LLM(text)), of the texts that
    letters, pieces and the words' commonness, each by its log-probability, like best together.

    Source: n-best lists of CTC with a lexicon, scored by a language model (Hannun et al. 2014, arXiv 1408.2873), and
    joint scores of CTC and an attention decoder (Watanabe et al. 2017, Hybrid CTC/Attention Architecture). Where we
    differ: the decoder is a pretrained LLM that has a say with the audio in its prompt and without.

    Args:
        language_model: reads the prompts; with its adapters, if it has any.
        tokenizer: of the LLM.
        words: that a transcript may hold.
        vocabulary: the pieces that CTC hears.
        may_follow: (V,) True for tokens that may follow a whole text: signs and ends.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        words: WordList,
        vocabulary: CTCVocabulary,
        may_follow: Tensor,
    ) -> None:
        self._language_model, self._tokenizer, self._words = language_model, tokenizer, words
        self._vocabulary, self._may_follow = vocabulary, may_follow

    @torch.inference_mode()
    def choose(
        self, letters: Tensor, pieces: Tensor, *, prompt: Tensor, bare_prompt: Tensor, weight: float
    ) -> list[int]:
        """Decide what was said in a clip.

        Args:
            letters: (T, 1 + 28) logits of its frames, blank first.
            pieces: (S, 1 + C) logits of its steps, blank first.
            prompt: (L, D) embeddings of the prompt, which ends where the answer begins.
            bare_prompt: (L', D) the same without audio.
            weight: w, from 0 (the LLM alone) to 1 (CTC alone).

        Returns:
            numbers of the text's pieces, see `CTCVocabulary`.
        """
        found = search_words(letters.double().softmax(dim=-1).cpu().numpy(), self._words)
        spelt = [self._vocabulary.encode(text.words) for text in found]
        fits = score_pieces(pieces, spelt).cpu().numpy() + [text.log_ctc + text.log_prior for text in found]
        best = np.argsort(-fits, kind="stable")[:CANDIDATES].tolist()
        if len(best) == 1:
            return spelt[best[0]]
        texts = [self._tokenizer.encode(found[at].words, add_special_tokens=False) for at in best]
        with_audio, alone = (
            score_texts(self._language_model, embeds, texts, self._may_follow).cpu() for embeds in (prompt, bare_prompt)
        )
        heard = torch.tensor([found[at].log_ctc for at in best])
        liked = (1 - TEXT_ALONE) * with_audio + TEXT_ALONE * alone
        return spelt[best[int((weight * heard + (1 - weight) * liked).argmax())]]


def score_pieces(logits: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """Tell how likely CTC finds each text: (N,) log-probabilities, -inf for what has more pieces than there are steps.

    Args:
        logits: (S, 1 + C) of a clip's steps, blank first.
        texts: N lists of numbers from 1 to C.
    """
    used = sorted({0, *(piece for text in texts for piece in text)})
    number = {piece: index for index, piece in enumerate(used)}
    # A few columns of many thousand, so that N copies of them are small.
    log_probabilities = logits.float().log_softmax(dim=-1)[:, used]
    spelt = [torch.tensor([number[piece] for piece in text], dtype=torch.long) for text in texts]
    labels = nn.utils.rnn.pad_sequence(spelt, batch_first=True)
    return -nn.functional.ctc_loss(
        log_probabilities[:, None].expand(-1, len(texts), -1).contiguous(),
        labels.to(logits.device),
        torch.full((len(texts),), len(logits)),
        torch.tensor([len(text) for text in texts]),
        reduction="none",
    )


def score_texts(
    language_model: PreTrainedModel, prompt: Tensor, texts: Sequence[Sequence[int]], may_follow: Tensor
) -> Tensor:
    """Tell how likely an LLM finds each text, and then its end or a sign: (N,) log-probabilities.

    What texts have in common at their start is read once: they are laid out as a tree, in which a token sees the prompt
    and those on its own branch (tree attention, as in SpecInfer, Miao et al. 2024, arXiv 2305.09781, sec. 4.2).

    Args:
        language_model: a causal LM.
        prompt: (L, D) embeddings of what comes before the text.
        texts: N lists of tokens.
        may_follow: (V,) True for the tokens that may follow.
    """
    llm: Any = language_model  # its class says which arguments it takes
    read = llm(inputs_embeds=prompt[None], use_cache=True, logits_to_keep=1)
    # Neither a state, as Mamba's, nor a window that slides can branch.
    in_line = any(read.cache.is_linear) or any(read.cache.is_sliding)
    scores: list[Tensor] = []
    for tree, ends in _trees(texts, 0 if in_line else MOST_NODES):
        if not tree.tokens:
            logits = read.logits[0]
        elif in_line:
            tokens = torch.tensor([tree.tokens], device=prompt.device)
            embeds = torch.cat([prompt[None], llm.get_input_embeddings()(tokens)], dim=1)
            logits = llm(inputs_embeds=embeds, logits_to_keep=1 + len(tree.tokens)).logits[0]
        else:
            logits = torch.cat([read.logits[0], _read_tree(llm, tree, read.cache, prompt)])
        log_next = logits.float().log_softmax(dim=-1)
        missing = log_next.shape[1] - len(may_follow)  # an LLM's table may have more rows than it has tokens
        follows = nn.functional.pad(may_follow.to(log_next.device), (0, missing))
        said = [log_next.new_zeros(())]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            said.append(said[parent] + log_next[parent, token])
        after = log_next[ends].masked_fill(~follows, -torch.inf).logsumexp(dim=1)
        scores.append(torch.stack([said[end] for end in ends]) + after)
    return torch.cat(scores)


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


def _read_tree(llm: Any, tree: _Tree, cache: Cache, prompt: Tensor) -> Tensor:
    """Return logits of what follows nodes 1, 2, …: (n, V). The cache holds the prompt (L, D), and is left as it is."""
    size, prompt_length = len(tree.tokens), len(prompt)
    sees = torch.zeros(1 + size, 1 + size, dtype=torch.bool)
    depth = [0]
    for node, parent in enumerate(tree.parents, start=1):
        sees[node] = sees[parent]
        sees[node, node] = True
        depth.append(depth[parent] + 1)
    mask = torch.zeros(1, 1, size, prompt_length + size, dtype=prompt.dtype)
    mask[0, 0, :, prompt_length:].masked_fill_(~sees[1:, 1:], torch.finfo(prompt.dtype).min)
    outputs = llm(
        input_ids=torch.tensor([tree.tokens], device=prompt.device),
        attention_mask=mask.to(prompt.device),
        position_ids=torch.tensor([depth[1:]], device=prompt.device) + prompt_length - 1,
        cache=copy.deepcopy(cache),
        use_cache=True,
    )
    return outputs.logits[0]
