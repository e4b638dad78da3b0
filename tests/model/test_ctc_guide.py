"""What CTC and the LLM make of a transcript together, with two-word vocabularies and hand-made opinions."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from stapes.model import CTCGuide, CTCVocabulary, TokenPieces

TOKENS = ["Ġ", "a", "b", "Ġa", "Ġb", "A", "ĠB", ".", "7", "<end>"]
MERGES = [("Ġ", "a"), ("Ġ", "b")]
END = TOKENS.index("<end>")


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(TOKENS[:-1])}, merges=MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


@pytest.fixture
def vocabulary() -> CTCVocabulary:
    return CTCVocabulary(tokenizer(), 2)


@pytest.fixture
def pieces(vocabulary: CTCVocabulary) -> TokenPieces:
    return TokenPieces(tokenizer(), vocabulary)


def hears(vocabulary: CTCVocabulary, *steps: dict[str, float]) -> Tensor:
    """Logits (S, 1 + C) of CTC that finds these pieces this likely, step by step, and is silent with what is left."""
    posteriors = torch.full((len(steps), 1 + len(vocabulary)), 1e-9)
    for step, likely in enumerate(steps):
        for piece, probability in likely.items():
            posteriors[step, 1 + vocabulary.pieces.index(piece)] = probability
        posteriors[step, 0] = 1 - sum(likely.values())
    return posteriors.log()


def thinks(**likely: float) -> Tensor:
    """Logits (1, V) of an LLM that finds these tokens this likely; `Ġ` is written `_`."""
    found = {token.replace("_", "Ġ"): probability for token, probability in likely.items()}
    return torch.tensor([[math.log(found.get(token, 1e-9)) for token in TOKENS]])


def guide(steps: Tensor, pieces: TokenPieces, *, weight: float = 0.5, transcript: bool = True) -> CTCGuide:
    listeners = [pieces.listen(steps) if transcript else None]
    return CTCGuide(listeners, pieces.signs, end_ids=[END], prompt_length=2, weight=weight)


def written(*tokens: str) -> Tensor:
    return torch.tensor([[0, 0, *(TOKENS.index(token) for token in tokens)]])


def test_tokens_are_pieces_whatever_their_case_and_where_a_word_begins_without_a_space(
    vocabulary: CTCVocabulary, pieces: TokenPieces
) -> None:
    def names(numbers: Tensor) -> list[str]:
        kinds = {0: "sign", -1: "never"}
        return [kinds.get(number) or vocabulary.pieces[number - 1] for number in numbers.tolist()]

    # Of:                              Ġ    a    b    Ġa    Ġb    A    ĠB    .       7        <end>
    assert names(pieces.later) == ["Ġ", "a", "b", "Ġa", "Ġb", "a", "Ġb", "sign", "never", "never"]
    assert names(pieces.first) == ["Ġ", "Ġa", "Ġb", "Ġa", "Ġb", "Ġa", "Ġb", "sign", "never", "never"]


def test_what_one_is_sure_of_the_other_may_decide(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    # CTC: a or b alike, once. The LLM: rather b, but rather still the end.
    steps = hears(vocabulary, {"Ġa": 0.5, "Ġb": 0.5}, {})
    mixed = guide(steps, pieces)(written(), thinks(a=0.1, b=0.3, **{"<end>": 0.6}))[0].exp()
    shares = {"a": math.sqrt(0.1 * 0.5), "b": math.sqrt(0.3 * 0.5)}
    for token, share in shares.items():
        assert mixed[TOKENS.index(token)] == pytest.approx(share / sum(shares.values()), abs=1e-3)
    assert mixed[END] < 1e-3
    assert mixed.sum() == pytest.approx(1, abs=1e-3)


def test_with_all_the_weight_ctc_alone_writes(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    steps = hears(vocabulary, {"Ġa": 0.9}, {}, {"Ġb": 0.8})
    guided, text = guide(steps, pieces, weight=1.0), []
    for _ in range(3):
        scores = guided(written(*text), thinks(a=0.25, _a=0.25, _b=0.25, **{"<end>": 0.25}))
        text.append(TOKENS[int(scores.argmax())])
    assert text[1:] == ["Ġb", "<end>"]
    assert text[0] in ("a", "Ġa", "A")


def test_signs_are_the_llms_affair(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    guided = guide(hears(vocabulary, {"Ġa": 1 - 1e-6}, {}), pieces)
    mixed = guided(written("a"), thinks(**{".": 0.7, "_b": 0.2, "<end>": 0.1}))[0].exp()
    assert mixed[TOKENS.index(".")] == pytest.approx(0.7, abs=1e-4)
    assert mixed[END] == pytest.approx(0.3, abs=1e-2)
    # Behind the sign CTC expects what it expected before it.
    assert guided(written("a", "."), thinks(**{"_b": 0.6, "<end>": 0.4}))[0].argmax() == END


def test_what_ctc_cannot_hear_is_not_written(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    mixed = guide(hears(vocabulary, {"Ġa": 0.9}), pieces)(written(), thinks(**{"7": 0.9, "a": 0.1}))[0]
    assert mixed[TOKENS.index("7")] == -math.inf
    assert mixed.argmax() == TOKENS.index("a")


def test_other_answers_and_finished_ones_stay_as_they_are(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    steps, scores = hears(vocabulary, {"Ġa": 0.9}), thinks(**{"7": 0.9, "a": 0.1})
    assert torch.equal(guide(steps, pieces, transcript=False)(written(), scores), scores)
    assert torch.equal(guide(steps, pieces)(written("a", "<end>"), scores), scores)


def test_where_ctc_finds_all_impossible_the_llm_decides(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    guided, scores = guide(hears(vocabulary, {"Ġa": 0.9}), pieces), thinks(a=0.6, b=0.4)
    assert torch.equal(guided(written("a", "b"), scores), scores)  # two pieces in one step


def test_beams_of_a_clip_have_prefixes_of_their_own(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    guided = guide(hears(vocabulary, {"Ġa": 0.6, "Ġb": 0.4}, {}, {"Ġb": 0.5}), pieces)
    both = torch.cat([written("a"), written("b")])
    scores = thinks(_a=0.3, _b=0.3, **{"<end>": 0.4}).repeat(2, 1)
    mixed = guided(both, scores)
    for row in range(2):
        alone = guide(hears(vocabulary, {"Ġa": 0.6, "Ġb": 0.4}, {}, {"Ġb": 0.5}), pieces)
        torch.testing.assert_close(mixed[row], alone(both[row : row + 1], scores[:1])[0])
    assert not torch.allclose(mixed[0], mixed[1])


def test_a_text_that_is_decided_on_is_written_with_the_llms_signs_and_capitals(
    vocabulary: CTCVocabulary, pieces: TokenPieces
) -> None:
    dictation = pieces.dictate(vocabulary.encode("a b a"))
    guided = CTCGuide([dictation], pieces.signs, end_ids=[END], prompt_length=2, weight=0.5)
    text: list[str] = []
    for opinion in (
        thinks(a=0.1, A=0.5, b=0.4),
        thinks(**{"_a": 0.6, "_b": 0.1, "ĠB": 0.3}),
        thinks(**{".": 0.8, "_a": 0.1, "<end>": 0.1}),
        thinks(**{"<end>": 0.7, "_a": 0.2, "A": 0.1}),
        thinks(**{"_b": 0.9, "<end>": 0.1}),
    ):
        scores = guided(written(*text), opinion)
        assert scores.exp().sum() == pytest.approx(1, abs=1e-4)
        text.append(TOKENS[int(scores.argmax())])
    assert text == ["A", "ĠB", ".", "Ġa", "<end>"]


def test_a_sign_within_a_word_does_not_end_the_text(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    dictation = pieces.dictate(vocabulary.encode("ab a"))
    for before, follow in ((("a", "."), {"b"}), (("a", ".", "b"), {"Ġa"}), (("a", ".", "b", "."), {"a", "Ġa", "A"})):
        expected = dictation.expected(tuple(TOKENS.index(token) for token in before))
        assert expected is not None
        assert {TOKENS[at] for at in (expected.tokens == 0).nonzero()[:, 0].tolist()} == follow
        assert expected.end == -math.inf
    assert dictation.expected(tuple(TOKENS.index(token) for token in ("a", ".", "Ġb"))) is None


def test_what_is_left_of_a_text_is_guessed_as_it_is_mostly_written(
    vocabulary: CTCVocabulary, pieces: TokenPieces
) -> None:
    dictation = pieces.dictate(vocabulary.encode("a b a"))
    for written_so_far, rest in (
        ((), ["A", "Ġb", "Ġa"]),
        (("A",), ["Ġb", "Ġa"]),
        (("a", "."), ["Ġb", "Ġa"]),
        (("a", "ĠB", "."), ["Ġa"]),
        (("a", "Ġb", "Ġa"), []),
        (("b",), []),  # another text
    ):
        draft = dictation.draft([TOKENS.index(token) for token in written_so_far])
        assert [TOKENS[token] for token in draft] == rest, written_so_far


def test_a_dictation_has_nothing_to_say_of_other_texts(vocabulary: CTCVocabulary, pieces: TokenPieces) -> None:
    dictation = pieces.dictate(vocabulary.encode("a b"))
    assert dictation.expected((TOKENS.index("b"),)) is None
    assert dictation.expected(tuple(TOKENS.index(token) for token in ("a", "Ġb", "Ġb"))) is None
    empty = pieces.dictate([]).expected(())
    assert empty is not None
    assert empty.end == 0
    assert bool(empty.tokens.isneginf().all())


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_what_others_have_ruled_out_stays_out(vocabulary: CTCVocabulary, pieces: TokenPieces, weight: float) -> None:
    banned = thinks(_a=0.5, _b=0.3)
    a = [TOKENS.index(token) for token in ("Ġa", "a", "A")]
    banned[0, a] = -torch.inf
    both = guide(hears(vocabulary, {"Ġa": 0.6, "Ġb": 0.3}), pieces, weight=weight)(written(), banned)
    assert not both.isnan().any()
    assert both[0, a].isneginf().all()
    assert both[0].argmax() in (TOKENS.index("Ġb"), TOKENS.index("b"), TOKENS.index("ĠB"))
    # With nothing else to come the ban has its way, and the LLM goes on by itself.
    dictation = pieces.dictate([1 + vocabulary.pieces.index("Ġa")])
    alone = thinks(_b=0.5)
    alone[0, a] = -torch.inf
    guided = CTCGuide([dictation], pieces.signs, end_ids=[END], prompt_length=2, weight=weight)
    assert torch.equal(guided(written(), alone), alone)


def test_a_draft_opens_with_one_capital() -> None:
    tokens = ["Ġ", "a", "b", "A", "B", "ab", "Ġab", "AB", "Ab"]
    merges = [("a", "b"), ("Ġ", "ab"), ("A", "B"), ("A", "b")]
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=made)
    vocabulary = CTCVocabulary(fast, 2)
    draft = TokenPieces(fast, vocabulary).dictate(vocabulary.encode("ab ab")).draft([])
    assert [tokens[token] for token in draft] == ["Ab", "Ġab"]
