"""Transcripts chosen among what CTC may have heard."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from stapes.model import HeardText
from stapes.model.alphabets import BLANK, LETTERS, SPACE
from stapes.model.text_reader import TextReader
from stapes.model.transcripts import (
    LONGEST_PART,
    OUT_OF_REACH,
    TEXT_ALONE,
    Readers,
    as_written,
    best_text,
    parts,
    score_pieces,
)


def heard(*stretches: tuple[int, int]) -> np.ndarray:
    """Posteriors of frames that hear one symbol each: so many of each."""
    return np.concatenate([np.eye(1 + len(LETTERS))[[symbol] * count] for symbol, count in stretches])


A = 2


@pytest.mark.parametrize(
    ("stretches", "cuts"),
    [
        ([(A, LONGEST_PART)], []),
        # The longest pause, behind its space.
        ([(A, 160), (BLANK, 2), (SPACE, 1), (BLANK, 1), (A, 20), (BLANK, 1), (SPACE, 1), (BLANK, 5), (A, 211)], [186]),
        # Silence without a space lies within a word.
        ([(A, 170), (SPACE, 1), (A, 10), (BLANK, 40), (A, 180)], [171]),
        # Pauses too early or too late do not count; without any the part is as long as may be.
        ([(A, 100), (SPACE, 9), (A, 331), (SPACE, 9), (A, 10)], [300]),
        # The last part is no scrap.
        ([(A, 301)], [226]),
        ([(A, 155), (SPACE, 1), (A, 299), (SPACE, 1), (A, 200)], [156, 456]),
        ([(BLANK, 700)], [151, 302, 453]),
    ],
)
def test_a_long_clip_is_cut_between_words(stretches: list[tuple[int, int]], cuts: list[int]) -> None:
    posteriors = heard(*stretches)
    assert list(parts(posteriors)) == list(zip([0, *cuts], [*cuts, len(posteriors)], strict=True))


@pytest.mark.parametrize(
    ("words", "begins", "written"),
    [
        ("he said i was in", True, "He said I was in"),
        ("i'd say i'm", True, "I'd say I'm"),
        ("it is i", False, "it is I"),
        ("", True, ""),
    ],
)
def test_the_llm_reads_texts_as_they_are_written(words: str, begins: bool, written: str) -> None:
    assert as_written(words, begins=begins) == written


def test_pieces_are_as_likely_as_ctc_finds_them_alone() -> None:
    logits = torch.randn(6, 1 + 40, generator=torch.Generator().manual_seed(0))
    texts = [[5, 7], [], [40], [1, 1, 2], [1] * 7]
    found = score_pieces(logits, texts)
    for text, log_probability in zip(texts, found.tolist(), strict=True):
        expected = -torch.nn.functional.ctc_loss(
            logits.log_softmax(-1)[:, None], torch.tensor([text], dtype=torch.long), [6], [len(text)], reduction="sum"
        )
        assert log_probability == pytest.approx(float(expected), abs=1e-4)
    assert found[4] == -torch.inf  # more pieces than steps


@torch.inference_mode()
def test_the_best_text_is_that_of_the_whole_formula() -> None:
    torch.manual_seed(0)
    llm: Any = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    ).eval()
    for parameter in llm.parameters():
        parameter.data.mul_(6)
    texts = torch.randint(50, (12, 4)).tolist()
    readers = Readers(*(TextReader(llm, torch.randn(length, 32)) for length in (9, 5)))
    with_audio, alone = (reader.score(texts) for reader in readers)
    chosen = set[int]()
    for weight, spread in ((0.5, 3.0), (0.5, 30.0), (0.0, 30.0), (0.2, 300.0), (1.0, 3.0)):
        log_ctc = torch.randn(12) * spread
        likely = [HeardText("", log, 0.0) for log in log_ctc.tolist()]
        formula = weight * log_ctc + (1 - weight) * ((1 - TEXT_ALONE) * with_audio + TEXT_ALONE * alone)
        found = best_text(likely, texts, readers, weight, None)
        assert found == int(formula.argmax())
        chosen.add(found)
    assert len(chosen) > 2
    texts = [[1, 2], [3, 4], [5, 6]]
    as_good = -TEXT_ALONE * readers.alone.score(texts)  # without the audio all are alike
    as_good[1] -= 100 * OUT_OF_REACH
    read: list[int] = []
    llm.register_forward_pre_hook(
        lambda module, inputs, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    best_text([HeardText("", log, 0.0) for log in as_good.tolist()], texts, readers, 0.5, None)
    assert read == [6, 4]  # all without the audio, and with it those that may be the best
