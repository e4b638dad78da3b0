"""The published scorings, on texts that each of their quirks changes; figures by hand."""

from __future__ import annotations

import pytest

from stapes.errors import StapesError
from stapes.evaluate.metrics import word_errors
from stapes.evaluate.nota import nota_captions_v1, nota_captions_v11, nota_line, nota_word_errors


def test_word_errors_are_counted_after_the_tokeniser_13a() -> None:
    # The normaliser leaves `it costs $20 or 50%`; 13a splits $ and % off, and % alone is punctuation: 6 words, of which
    # the second text lacks `$`. The third says nothing wrong before the end symbol. 1 error of 7 words.
    targets = ["It costs $20, or 50%!", "HELLO"]
    texts = ["it costs 20 or 50 percent", "Hello.</s> nobody hears this"]
    assert nota_word_errors(targets, texts).value == pytest.approx(100 / 7)
    # Ours: 5 words and 1; `20` for `$20`, and three words after the end symbol, which no decoder lets through.
    assert word_errors(targets, texts).value == pytest.approx(100 * (1 + 3) / 6)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("Mr. O'Neil's 3.5 km run", 7),  # mister 0 neil is 3.5 km run: an `o` alone is a zero
        ("£5 and 5 cents", 1),  # £5.05; 13a splits off no sign beyond ASCII
        ("um, well (laughs) colour", 2),
    ],
)
def test_the_normaliser_is_whispers(target: str, words: int) -> None:
    assert nota_word_errors([target], [""]).denominator.tolist() == [words]


def test_errors_are_summed_over_the_corpus() -> None:
    # 1 of 1 and 0 of 3: 25 %, not the mean of 100 % and 0 %.
    assert nota_word_errors(["a", "b c d"], ["x", "b c d"]).value == 25.0


def test_v1_calls_cider_d_times_100_spider() -> None:
    # Two samples, so what one reference holds weighs log 2 and cancels out. `x y` to `x z`: a unigram of two,
    # no bigram, 10 · (1/2) / 4. `p` to `p`: 10 · 1 / 4.
    scores = nota_captions_v1(["x z", "p"], ["X y", "P</s>"])
    assert 100 * scores.numerator == pytest.approx([100 * 125.0, 100 * 250.0])
    assert nota_line("cider_d_x100", scores.value, "nota-v1") == "SPIDEr: 187.5"


def test_v1_lowers_what_is_said_but_not_the_references() -> None:
    assert nota_captions_v1(["X z", "p."], ["X z", "p"]).numerator.tolist() == pytest.approx([100 * 10 / 4 * 0.5, 0.0])


def test_captions_want_two_samples() -> None:
    for score in (nota_captions_v1, nota_captions_v11):
        with pytest.raises(StapesError, match="at least two samples, not 1"):
            score(["a dog"], ["a dog"])


def test_lines_are_those_the_evaluator_prints() -> None:
    assert nota_line("wer", 100 / 7, "nota-v1") == "WER: 14.2857%"
    assert nota_line("cider_d_x100", 27.84004, "nota-v1") == "SPIDEr: 27.84"
    assert nota_line("spider", 0.20296, "nota-v1.1") == "SPIDEr: 0.203"
