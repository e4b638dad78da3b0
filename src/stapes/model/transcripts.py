"""Transcripts that an LLM chooses among what CTC may have heard."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from .alphabets import BLANK, SPACE
from .ctc_prefix import Probabilities
from .ctc_vocabulary import CTCVocabulary
from .text_reader import TextReader
from .word_list import WordList
from .word_search import HeardText, search_phones, search_words

CANDIDATES = 16
"""Texts that the LLM reads."""

TEXT_ALONE = 0.8
"""What the LLM's say consists of: so much of how likely it finds the text as such, the rest of how likely after the
audio. An LLM that was taught for minutes knows English better than it hears."""

OUT_OF_REACH = 15.0
"""A text that is so far behind, without the audio, that the LLM with it would have to find it e^15 times as likely as
the one in front, beside it, is not read again with the audio."""

LONGEST_PART = 300
"""Encoder frames, 6 s, that are decided on at once. Of longer texts the likeliest 16 differ in a few places only, and
have little in common behind the first of them: reading them takes long and chooses little."""


class Chosen(NamedTuple):
    """What was said in a clip.

    Attributes:
        pieces: numbers of the text's pieces, see `CTCVocabulary`.
        cache: what the LLM keeps of the prompt, but for its last position; None where it cannot be used again.
    """

    pieces: list[int]
    cache: Cache | None


class TranscriptChooser:
    """Finds texts that fit the phones or letters that CTC heard, and lets the LLM say which of them it is.

    score = w · log p_CTC + (1 - w) · (0.2 · log p_LLM(text | audio) + 0.8 · log p_LLM(text)), of the texts that
    phones or letters, pieces and the words' commonness, each by its log-probability, like best together. Long clips are
    decided on part by part (`LONGEST_PART`), each behind what was chosen before.

    Source: n-best lists of CTC with a lexicon, scored by a language model (Hannun et al. 2014, arXiv 1408.2873), and
    joint scores of CTC and an attention decoder (Watanabe et al. 2017, Hybrid CTC/Attention Architecture). Where we
    differ: the decoder is a pretrained LLM that has a say with the audio in its prompt and without.

    Args:
        language_model: reads the prompts; with its adapters, if it has any.
        tokenizer: of the LLM.
        words: that a transcript may hold.
        vocabulary: the pieces that CTC hears.
        may_follow: (V,) True for tokens that may follow a whole text: signs and ends.
        by_phones: whether texts are looked for by how they are spoken, not by how they are written.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        words: WordList,
        vocabulary: CTCVocabulary,
        may_follow: Tensor,
        by_phones: bool = False,
    ) -> None:
        self._language_model, self._tokenizer, self.words = language_model, tokenizer, words
        self._vocabulary, self._may_follow, self.by_phones = vocabulary, may_follow, by_phones

    @torch.inference_mode()
    def choose(self, symbols: Tensor, pieces: Tensor, *, prompt: Tensor, bare_prompt: Tensor, weight: float) -> Chosen:
        """Decide what was said in a clip.

        Args:
            symbols: (T, 1 + N) logits of its frames, blank first: phones if `by_phones`, else letters.
            pieces: (S, 1 + C) logits of its steps, blank first.
            prompt: (L, D) embeddings of the prompt, which ends where the answer begins.
            bare_prompt: (L', D) the same without audio.
            weight: w, from 0 (the LLM alone) to 1 (CTC alone).
        """
        readers = Readers(*(TextReader(self._language_model, embeds) for embeds in (prompt, bare_prompt)))
        posteriors = symbols.double().softmax(dim=-1).cpu().numpy()
        steps_per_frame = len(pieces) / len(symbols)
        chosen = ""
        for begin, end in parts(posteriors):
            steps = pieces[round(begin * steps_per_frame) : round(end * steps_per_frame)]
            likely = self._likely(posteriors[begin:end], steps)
            texts = [self._encode(text.words, follows=bool(chosen)) for text in likely]
            is_last = end == len(symbols)
            best = best_text(likely, texts, readers, weight, self._may_follow if is_last else None)
            chosen = f"{chosen} {likely[best].words}".strip()
            if not is_last:
                readers.go_on(texts[best])
        return Chosen(self._vocabulary.encode(chosen), readers.with_audio.cache_of_prompt())

    def _likely(self, posteriors: Probabilities, pieces: Tensor) -> list[HeardText]:
        """List the texts that the LLM is to choose among."""
        search = search_phones if self.by_phones else search_words
        found = search(posteriors, self.words)
        spelt = [self._vocabulary.encode(text.words) for text in found]
        fits = score_pieces(pieces, spelt).cpu().numpy() + [text.log_ctc + text.log_prior for text in found]
        return [found[at] for at in np.argsort(-fits, kind="stable")[:CANDIDATES].tolist()]

    def _encode(self, words: str, *, follows: bool) -> list[int]:
        gap = " " if follows and words else ""
        return self._tokenizer.encode(gap + as_written(words, begins=not follows), add_special_tokens=False)


def as_written(words: str, *, begins: bool) -> str:
    """Give a text the capitals of every English sentence, so that an LLM finds it as likely as it finds sentences.

    Args:
        words: in lower case.
        begins: whether a sentence begins with them.
    """
    written = re.sub(r"\bi\b", "I", words)
    return written[:1].upper() + written[1:] if begins else written


class Readers(NamedTuple):
    """An LLM that has read the prompt with the audio in it, and one that read it without."""

    with_audio: TextReader
    alone: TextReader

    def go_on(self, tokens: Sequence[int]) -> None:
        """See `TextReader.go_on`."""
        for reader in self:
            reader.go_on(tokens)


def best_text(
    likely: Sequence[HeardText],
    texts: Sequence[Sequence[int]],
    readers: Readers,
    weight: float,
    may_follow: Tensor | None,
) -> int:
    """Return the number of the best text.

    Args:
        likely: N texts.
        texts: their tokens.
        readers: have read what comes before them.
        weight: see `TranscriptChooser.choose`.
        may_follow: see `TextReader.score`.
    """
    if len(texts) == 1:
        return 0
    log_ctc = torch.tensor([text.log_ctc for text in likely])
    scores = weight * log_ctc + (1 - weight) * TEXT_ALONE * readers.alone.score(texts, may_follow).cpu()
    share = (1 - weight) * (1 - TEXT_ALONE)
    in_reach = (scores >= scores.max() - share * OUT_OF_REACH).nonzero()[:, 0]
    with_audio = readers.with_audio.score([texts[at] for at in in_reach.tolist()], may_follow).cpu()
    return int(in_reach[(scores[in_reach] + share * with_audio).argmax()])


def parts(posteriors: Probabilities) -> Iterator[tuple[int, int]]:
    """Cut a clip into parts of at most `LONGEST_PART` frames, and at least a quarter of that, in pauses between words.

    Args:
        posteriors: (T, 1 + N) of each encoder frame, blank first.

    Yields:
        the first frame of each part and the one behind it.
    """
    space = posteriors[:, SPACE]
    is_quiet = posteriors[:, BLANK] + space > 0.5
    begin = 0
    while len(space) - begin > LONGEST_PART:
        earliest, latest = begin + LONGEST_PART // 2, min(begin + LONGEST_PART, len(space) - LONGEST_PART // 4)
        cut = earliest + _longest_pause(is_quiet[earliest:latest], space[earliest:latest])
        yield begin, cut
        begin = cut
    yield begin, len(space)


def _longest_pause(is_quiet: np.ndarray, space: np.ndarray) -> int:
    """Return the frame behind the space between words in the longest run of quiet frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_quiet, [False]])))
    runs = edges.reshape(-1, 2).tolist()
    if not runs:
        return len(space)
    # A run without a space lies within a word.
    begin, end = max(runs, key=lambda run: (bool(space[run[0] : run[1]].max() > 0.5), run[1] - run[0]))
    return begin + 1 + int(space[begin:end].argmax())


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
