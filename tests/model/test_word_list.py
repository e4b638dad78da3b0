"""The words that a transcript may hold, on disk and by how they begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapes.model import WordList

WORDS = {"a": -1.0, "an": -2.0, "and": -1.5, "ant's": -7.0, "bee": -3.0, "o'brien": -7.0}


def test_words_are_found_by_how_they_begin() -> None:
    words = WordList(WORDS)
    an = words.written.narrow(words.written.start, "an")
    assert an is not None
    assert (an.prior, an.best, an.end - an.start) == (-2.0, -1.5, 3)
    ant = words.written.narrow(an, "ant")
    assert ant is not None
    assert (ant.prior, ant.best, ant.end - ant.start) == (None, -7.0, 1)
    assert words.written.narrow(an, "anx") is None
    assert words.written.narrow(an, "anx") is None  # nor the second time
    assert (words.written.start.best, len(words)) == (-1.0, 6)
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
        place = back.written.start
        for end in range(1, 1 + len(word)):
            narrower = back.written.narrow(place, word[:end])
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
        ("-1\ntwo w0rds\n", "line 2: 'two w0rds' is neither"),
        ("-1\ntwo  tu\n", "line 2: 'two  tu' is neither"),
        ("-1\ntwo tu\nto\n", "it is not known how 'to' is spoken, but of other words it is"),
        ("-1\ntwo t2\nto tu\n", "line 2: 'two t2' is neither"),
        ("-1\nword\nto\n-2\nword\n", "'word' stands in it twice"),
        ("-1\nword\n\nto\n", "line 3: '' is neither"),
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


SPOKEN = {"two": -5.0, "to": -1.0, "too": -3.0, "the": -2.0}
WAYS = {"two": ["tu"], "to": ["tu", "tA"], "too": ["tu"], "the": ["DA", "Di"]}


def test_words_are_found_by_how_they_are_spoken(tmp_path: Path) -> None:
    WordList(SPOKEN, WAYS).write(tmp_path / "words.txt")
    assert (tmp_path / "words.txt").read_text() == "-1\nto tu tA\n-2\nthe DA Di\n-3\ntoo tu\n-5\ntwo tu\n"
    words = WordList.read(tmp_path / "words.txt")
    assert words.heard is not None
    t = words.heard.narrow(words.heard.start, "t")
    assert t is not None
    assert (t.prior, t.best, t.end - t.start) == (None, -1.0, 2)
    tu = words.heard.narrow(t, "tu")
    assert tu is not None
    assert tu.prior == -1.0
    assert words.words_for("tu") == ["to", "too", "two"]
    assert words.words_for("tA") == ["to"]
    assert words.pronounce("to the") == "tu DA"
    assert words.pronounce("") == ""
    assert words.prior("too") == -3.0


def test_words_of_a_file_need_no_order(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("-5\ntwo tu\n-1\nto tu tA\nant @nt\n-3\ntoo tu\n")
    words = WordList.read(path)
    assert words.words_for("tu") == ["to", "too", "two"]
    assert words.heard is not None
    assert words.heard.start.best == -1.0
    assert [words.prior(word) for word in ("two", "ant")] == [-5.0, -1.0]
    assert words.pronounce("two ant to") == "tu @nt tu"
    words.write(path)
    assert path.read_text() == "-1\nant @nt\nto tu tA\n-3\ntoo tu\n-5\ntwo tu\n"


@pytest.mark.parametrize("phones", ["tX", "t", "tuu", "", "z"])
def test_no_word_is_spoken_otherwise(phones: str) -> None:
    with pytest.raises(KeyError):
        WordList(SPOKEN, WAYS).words_for(phones)
    with pytest.raises(KeyError):
        WordList(SPOKEN).words_for("tu")


def test_what_is_not_known_of_a_word_is_said() -> None:
    with pytest.raises(ValueError, match="the word list does not tell how 'zebra' is spoken"):
        WordList(SPOKEN, WAYS).pronounce("the zebra")
    assert WordList(SPOKEN).heard is None
    with pytest.raises(ValueError, match="it is not known how 'too' is spoken, but of other words it is"):
        WordList(SPOKEN, {word: ways for word, ways in WAYS.items() if word != "too"})
    with pytest.raises(ValueError, match="'two' cannot be spoken 't2'; wanted some of"):
        WordList(SPOKEN, {**WAYS, "two": ["t2"]})


def test_what_was_looked_up_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stapes.model.word_list.MOST_KNOWN", 5)
    words = WordList(WORDS)
    for beginning in (
        letters[:end] for letters in ("and", "bee", "zebra", "ant's", "and") for end in range(1, len(letters) + 1)
    ):
        assert words.written.narrow(words.written.start, beginning) == WordList(WORDS).written.narrow(
            words.written.start, beginning
        )
        assert len(words.written._known) <= 5
