from __future__ import annotations

import pytest

from stapes.report.diff import Piece, count_word_errors, diff_words, is_same, word_overlap


@pytest.mark.parametrize(
    ("target", "answer", "pieces"),
    [
        ("You are now muted.", "you are now muted", [Piece("same", "you are now muted")]),
        (
            "press one for help",
            "press two for",
            [Piece("same", "press"), Piece("wrong", "two", "one"), Piece("same", "for"), Piece("missing", "help")],
        ),
        (
            "good morning",
            "good good morning",
            [Piece("same", "good"), Piece("extra", "good"), Piece("same", "morning")],
        ),
        (
            "a b c d",
            "x y c d e",
            [Piece("wrong", "x y", "a b"), Piece("same", "c d"), Piece("extra", "e")],
        ),
        ("hello there", "", [Piece("missing", "hello there")]),
        ("", "boo!", [Piece("extra", "boo!")]),
        ("", "", []),
        ("wait", "... wait – …", [Piece("same", "... wait – …")]),
        ("it's fine", "it’s fine", [Piece("same", "it’s fine")]),
    ],
)
def test_pieces(target, answer, pieces):
    assert diff_words(target, answer) == pieces


def test_nothing_that_was_said_is_lost():
    answer = "well , the <b> quick -- fox... jumps over !"
    pieces = diff_words("the quick brown fox jumped", answer)
    assert " ".join(piece.text for piece in pieces if piece.kind != "missing") == answer
    assert [piece.text for piece in pieces if piece.kind == "missing"] or [p.wanted for p in pieces if p.wanted]


def test_errors_overlap_and_sameness():
    assert count_word_errors("Press one, for help.", "press two for") == (2, 4)
    assert count_word_errors("", "a b") == (2, 0)
    assert word_overlap("a drum is hit", "a drum plays") == pytest.approx(2 * 2 / 7)
    assert word_overlap("a drum – hit", "A drum ... hit!") == 1
    assert word_overlap("a", "") == 0
    assert is_same("Yes", "yes.")
    assert not is_same("yes", "yes it is")
