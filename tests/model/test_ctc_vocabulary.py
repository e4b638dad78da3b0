from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stapes.model.ctc_vocabulary import CTCVocabulary

MERGES = [("t", "h"), ("Ġ", "th"), ("Ġth", "e"), ("T", "h"), ("c", "a"), ("Ġ", "ca"), ("Ġca", "t")]


def make_tokenizer(pre_tokenizer: object | None = None) -> PreTrainedTokenizerFast:
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_words_become_pieces_of_the_first_merges_only() -> None:
    tokenizer = make_tokenizer()
    for num_merges, pieces in ((0, "Ġ t h e Ġ c a t"), (3, "Ġthe Ġ c a t"), (7, "Ġthe Ġcat")):
        vocabulary = CTCVocabulary(tokenizer, num_merges)
        numbers = vocabulary.encode("the cat")
        ids = [vocabulary.token_ids[number - 1] for number in numbers]
        assert tokenizer.convert_ids_to_tokens(ids) == pieces.split(" ")
        assert vocabulary.decode(numbers) == "the cat"
    assert tokenizer(" the cat")["input_ids"] == ids  # the LLM's own tokenizer still has all its merges


def test_pieces_are_what_lower_case_words_consist_of() -> None:
    # a to z, the apostrophe, the space, and all merges but `Th`.
    assert len(CTCVocabulary(make_tokenizer(), 0)) == 28
    assert len(CTCVocabulary(make_tokenizer(), 7)) == 28 + 6
    with pytest.raises(ValueError, match="'The cat' holds 'T', which is no piece of a spoken word"):
        CTCVocabulary(make_tokenizer(), 3).encode("The cat")
    assert CTCVocabulary(make_tokenizer(), 3).encode("") == []


def test_another_kind_of_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a byte-level BPE tokenizer"):
        CTCVocabulary(make_tokenizer(pre_tokenizers.Whitespace()), 3)


def test_any_text_can_be_spelt_in_the_same_pieces() -> None:
    tokenizer = make_tokenizer()
    for num_merges, pieces in ((0, "T h e Ġ c a t ."), (4, "Th e Ġ c a t ."), (7, "Th e Ġcat .")):
        ids = CTCVocabulary(tokenizer, num_merges).spell("The cat.")
        assert tokenizer.convert_ids_to_tokens(ids) == pieces.split(" ")
        assert tokenizer.decode(ids) == "The cat."


@pytest.mark.parametrize("num_merges", [3, 7])
def test_what_others_let_the_tokenizer_cut_and_pad_is_not_cut_nor_padded_here(num_merges: int) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "!"
    vocabulary = CTCVocabulary(tokenizer, num_merges)
    expected = vocabulary.encode("the cat"), vocabulary.spell("The cat.")
    cut = tokenizer("the cat the cat", truncation=True, max_length=2)["input_ids"]
    for made in (vocabulary, CTCVocabulary(tokenizer, num_merges)):
        assert (made.encode("the cat"), made.spell("The cat.")) == expected
    assert tokenizer("the cat the cat", truncation=True, max_length=2)["input_ids"] == cut
    padded = tokenizer("t", padding="max_length", max_length=30)["input_ids"]
    for made in (vocabulary, CTCVocabulary(tokenizer, num_merges)):
        assert (made.encode("the cat"), made.spell("The cat.")) == expected
    assert tokenizer("t", padding="max_length", max_length=30)["input_ids"] == padded
    assert (len(cut), len(padded)) == (2, 30)


def test_a_vocabulary_is_made_once() -> None:
    tokenizer, other = make_tokenizer(), make_tokenizer()
    made = CTCVocabulary.of(tokenizer, 3)
    assert made.pieces == CTCVocabulary(tokenizer, 3).pieces
    assert CTCVocabulary.of(tokenizer, 3) is made
    assert len(CTCVocabulary.of(tokenizer, 7)) == 28 + 6
    assert CTCVocabulary.of(other, 3) is not made
