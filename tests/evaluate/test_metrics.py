import pytest

from stapes.errors import StapesError
from stapes.evaluate.metrics import caption_scores, character_errors, exact_matches, word_errors


def test_word_errors_are_summed_over_the_corpus() -> None:
    # One word of one wrong, none of nine: 1 / 10, not the mean of 100 % and 0 %.
    metric = word_errors(
        ["yes", "one small step for a man said the astronaut"], ["no", "One small step for a man, said the astronaut!"]
    )
    assert metric.numerator.tolist() == [1, 0]
    assert metric.denominator.tolist() == [1, 9]
    assert metric.value == 10.0
    assert (metric.unit, metric.better) == ("%", "lower")


def test_word_errors_count_substitutions_deletions_and_insertions() -> None:
    # cat → cap, "on" missing, "very" added; normalisation makes colour and color one word.
    metric = word_errors(["the cat sat on the mat of grey colour"], ["The cap sat the very mat of gray color."])
    assert metric.numerator.tolist() == [3]
    assert metric.denominator.tolist() == [9]


def test_a_reference_without_words_adds_the_words_of_its_hypothesis() -> None:
    metric = word_errors(["", "[noise]", "yes sir"], ["a b c", "", "yes sir"])
    assert metric.numerator.tolist() == [3, 0, 0]
    assert metric.denominator.tolist() == [0, 0, 2]
    assert metric.value == 150.0


def test_an_empty_hypothesis_misses_every_word() -> None:
    assert word_errors(["yes sir"], [""]).value == 100.0


def test_no_reference_with_words_is_an_error() -> None:
    with pytest.raises(StapesError, match="none of the 2 targets holds a word"):
        _ = word_errors(["", "(cough)"], ["a", "b"]).value


def test_character_errors_count_spaces() -> None:
    # "ab cd" → "abcd": the space is one of five characters.
    metric = character_errors(["ab cd", "xyz"], ["abcd", "xyz"])
    assert metric.numerator.tolist() == [1, 0]
    assert metric.denominator.tolist() == [5, 3]
    assert metric.value == 12.5


def test_exact_matches() -> None:
    metric = exact_matches(["latte", "twelve ounce", "yes", "um"], ["Latte.", "12 ounce", "yes it is", ""])
    assert metric.numerator.tolist() == [1, 1, 0, 0]
    assert metric.value == 50.0
    assert (metric.unit, metric.better) == ("%", "higher")


def test_caption_scores_average_over_samples() -> None:
    metric = caption_scores([["A dog barks."], ["rain falls on a roof"]], ["a dog barks", "a bell"])
    # Three words hold no 4-gram, and "a" is in both references: 10 · (1 + 1 + 1 + 0) / 4, and nothing for the other.
    assert metric.numerator.tolist() == pytest.approx([7.5, 0.0])
    assert metric.value == pytest.approx(3.75)
    assert (metric.unit, metric.better) == ("", "higher")


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        word_errors(["a", "b"], ["a"])
