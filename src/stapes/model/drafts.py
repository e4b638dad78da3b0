"""An answer that is mostly known beforehand, read by the LLM instead of written token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import BaseStreamer

Draft = Callable[[Sequence[int]], Sequence[int]]
"""Says, from the tokens of an answer that are written, which probably follow."""

MOST_DRAFTED = 24
"""Tokens that are read at once, two lines of text: what stands behind the first wrong one is read in vain."""


class DraftedDecoding:
    """A decoding method for `generate(custom_generate=…)`: greedy, of one prompt whose beginning lies in a cache.

    One pass of the LLM reads a draft; as far as it would have chosen the draft's tokens they are the answer's, and
    where it would not its own token takes their place and what follows is drafted anew. The answer is the one that
    greedy decoding token by token gives, but for the rounding of larger matrix products.

    Source: speculative decoding, of greedy answers (Leviathan et al. 2023, arXiv 2211.17192, sec. 2.3 at temperature
    0). Where we differ: no model drafts, since a chosen transcript tells the words.

    Args:
        draft: see `Draft`.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        streamer: BaseStreamer | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Continue (1, L) tokens; what `generate` hands to its own decoding methods.

        Args:
            model: an audio LM.
            input_ids: (1, L) of the prompt.
            logits_processor, stopping_criteria: as `generate` made them.
            generation_config: not asked for anything: those two were made of it.
            streamer: is told the answer's tokens, those of one pass at once. `generate` hands none to such a method:
                bind it (`partial`).
            inputs: `inputs_embeds` (1, L, D_llm) of the prompt, and a `cache` of all its positions but the last ones,
                at least one; it must be one that can be cut. What else there is does not matter.

        Returns:
            (1, L + N) tokens.
        """
        # Named in the signature they would not be what `generate` prepares.
        cache: Cache = inputs["cache"]
        unread: Tensor = inputs["inputs_embeds"][:, cache.get_seq_length() :]
        table = model.get_input_embeddings()
        prompt_length = input_ids.shape[1]
        while True:
            room = min(MOST_DRAFTED, cast(int, stopping_criteria.max_length) - input_ids.shape[1] - 1)
            draft = list(self._draft(input_ids[0, prompt_length:].tolist()))[: max(0, room)]
            embeds = torch.cat([unread, table(torch.tensor([draft], dtype=torch.long, device=unread.device))], dim=1)
            read = model.language_model(
                inputs_embeds=embeds, cache=cache, use_cache=True, logits_to_keep=1 + len(draft)
            )
            told, ends = input_ids.shape[1], False
            for drafted, logits in zip([*draft, None], read.logits[0].float().split(1), strict=True):
                token = logits_processor(input_ids, logits).argmax(dim=-1)
                input_ids = torch.cat([input_ids, token[None]], dim=1)
                ends = bool(stopping_criteria(input_ids, cast(Any, None)).all())
                if ends or int(token) != drafted:
                    break
            if streamer is not None:
                streamer.put(input_ids[0, told:].cpu())
            if ends:
                if streamer is not None:
                    streamer.end()
                return input_ids
            # The last token is unread yet; of the draft stay those that it follows.
            cache.crop(input_ids.shape[1] - 1 - cache.get_seq_length())
            unread = table(input_ids[:, -1:])
