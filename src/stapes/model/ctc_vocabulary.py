"""The pieces of words that CTC hears: the first merges of the LLM's own BPE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from .token_texts import is_spoken


class CTCVocabulary:
    """Tokens of an LLM that a few hours of speech suffice to teach.

    An LLM's vocabulary has a token for nearly each word, and most words are heard once or never in a small corpus.
    Its first merges make common words and syllables, of which all others consist; each is a token of the LLM.

    Args:
        tokenizer: of the LLM; a fast one with byte-level BPE.
        num_merges: how many of its merges are used. SmolLM2 with 1,500: 1.8 pieces a word of CMU Arctic's
            sentences; with 12,000: 1.3.

    Attributes:
        token_ids: the LLM's id of piece 1, 2, …; 0 is CTC's blank.
        pieces: the pieces themselves, with Ġ for a space in front.

    Raises:
        ValueError: if the tokenizer is of another kind.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_merges: int) -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        settings = json.loads(backend.to_str()) if backend is not None else {}
        model = settings.get("model", {})
        is_bytes = "ByteLevel" in json.dumps(settings.get("pre_tokenizer"))
        if backend is None or model.get("type") != "BPE" or not is_bytes:
            raise ValueError(
                f"{type(tokenizer).__name__} is not a byte-level BPE tokenizer, from whose merges CTC's pieces come; "
                "take another LLM or another kind of connector"
            )
        has_all = num_merges >= len(model["merges"])
        model["merges"] = model["merges"][:num_merges]
        # To make one of 49,152 tokens takes half a second.
        self._tokenizer = backend if has_all else Tokenizer.from_str(json.dumps(settings))
        made = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in model["merges"]}
        pieces = [piece for piece in model["vocab"] if (len(piece) == 1 or piece in made) and is_spoken(piece)]
        self.pieces: list[str] = sorted(pieces, key=model["vocab"].__getitem__)
        self.token_ids: list[int] = [model["vocab"][piece] for piece in self.pieces]
        self._number = {token_id: number for number, token_id in enumerate(self.token_ids, start=1)}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, num_merges: int) -> CTCVocabulary:
        """Return the vocabulary made of a tokenizer, up to a second's work for 49,152 tokens, once only."""
        known = _made.setdefault(tokenizer, {})
        if num_merges not in known:
            known[num_merges] = cls(tokenizer, num_merges)
        return known[num_merges]

    def __len__(self) -> int:
        return len(self.token_ids)

    def encode(self, words: str) -> list[int]:
        """Spell lower-case words as piece numbers; a space is put in front, as before any word.

        Raises:
            ValueError: if anything but a to z, the apostrophe and single spaces is in `words`.
        """
        ids = self.spell(f" {words}") if words else []
        if unknown := [token_id for token_id in ids if token_id not in self._number]:
            raise ValueError(f"{words!r} holds {self._tokenizer.decode(unknown)!r}, which is no piece of a spoken word")
        return [self._number[token_id] for token_id in ids]

    def spell(self, text: str) -> list[int]:
        """Spell any text in tokens of the LLM that no merge beyond the first `num_merges` makes.

        Words in lower case become the pieces that CTC hears, so that an LLM that writes down what was heard has only to
        repeat its tokens; capitals and signs are kept.
        """
        # What was set for the LLM's tokenizer, if it is the same one; transformers sets it anew at each call.
        if self._tokenizer.truncation is not None:
            self._tokenizer.no_truncation()
        if self._tokenizer.padding is not None:
            self._tokenizer.no_padding()
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, numbers: Sequence[int]) -> str:
        """Join pieces to words."""
        return self._tokenizer.decode([self.token_ids[number - 1] for number in numbers]).strip()


_made: WeakKeyDictionary[PreTrainedTokenizerBase, dict[int, CTCVocabulary]] = WeakKeyDictionary()
