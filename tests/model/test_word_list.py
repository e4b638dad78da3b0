"""The words that a transcript may hold, on disk and by how they begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapes.model import WordList

WORDS = {"a": -1.0, "an": -2.0, "and": -1.5, "ant's": -7.0, "bee": -3.0, "o'brien": -7.0}


def test_words_are_found_by_how_they_begin() -> None:
    words = WordList(WORDS)
    an = words.narrow(words.start, "an")
    assert an is not None
    assert (an.prior, an.best, an.end - an.start) == (-2.0, -1.5, 3)
    ant = words.narrow(an, "ant")
    assert ant is not None
    assert (ant.prior, ant.best, ant.end - ant.start) == (None, -7.0, 1)
    assert words.narrow(an, "anx") is None
    assert words.narrow(an, "anx") is None  # nor the second time
    assert (words.start.best, len(words)) == (-1.0, 6)
    assert "o'brien" in words
    assert "o'b" not in words
    assert "zebra" not in words


@pytest.mark.parametrize("name", ["words.txt", "words.txt.xz"])
def test_a_list_comes_back_as_it_was_and_always_as_the_same_bytes(tmp_path: Path, name: str) -> None:
    path, other = tmp_path / name, tmp_path / f"other-{name}"
    WordList(WORDS).write(path)
    WordList(dict(reversed(WORDS.items()))).write(other)
    assert path.read_bytes() == other.read_bytes()
    back = WordList.read(path)
    assert len(back) == len(WORDS)
    for word, prior in WORDS.items():
        place = back.start
        for end in range(1, 1 + len(word)):
            narrower = back.narrow(place, word[:end])
            assert narrower is not None
            place = narrower
        assert place.prior == prior
    if name == "words.txt":
        assert path.read_text() == "-1\na\n-1.5\nand\n-2\nan\n-3\nbee\n-7\nant's\no'brien\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there are no words in it"),
        ("-1\n", "there are no words in it"),
        ("word\n", "line 1: 'word' is neither a word"),
        ("-1\nword\nWord\n", "line 3: 'Word' is neither a word"),
        ("-1\ntwo words\n", "line 2: 'two words' is neither"),
        ("0.5\nword\n", "line 1: '0.5' is neither"),
        ("nan\nword\n", "line 1: 'nan' is neither"),
    ],
)
def test_what_is_no_list_is_refused_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"words\.txt") as raised:
        WordList.read(path)
    assert problem in str(raised.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.txt.xz"
    WordList(WORDS).write(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="no text, or a damaged one"):
        WordList.read(path)


def test_words_are_of_letters() -> None:
    with pytest.raises(ValueError, match="'2nd' is no word"):
        WordList({"a": -1.0, "2nd": -2.0})


def test_what_was_looked_up_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stapes.model.word_list.MOST_KNOWN", 5)
    words = WordList(WORDS)
    for beginning in (
        letters[:end] for letters in ("and", "bee", "zebra", "ant's", "and") for end in range(1, len(letters) + 1)
    ):
        assert words.narrow(words.start, beginning) == WordList(WORDS).narrow(words.start, beginning)
        assert len(words._known) <= 5
