from __future__ import annotations

import pytest

from stapes.data.spoken import spoken_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("So she said, the irate skipper dashed on.", "so she said the irate skipper dashed on"),
        ("'Tis the dogs' “well-known” o'clock; don’t!", "tis the dogs well known o'clock don't"),
        ("(5 seconds of silence)", ""),
        ('IAX (note: does not say "2") <beep> [noise]', "iax"),
        ("Press 1, then 12 or 40", "press one then twelve or forty"),
        ("100 of 1,205,013", "one hundred of one million two hundred five thousand thirteen"),
        ("room 007, 99 bottles", "room zero zero seven ninety nine bottles"),
        ("3D café", "three d cafe"),
        ("1234567890123", "one two three four five six seven eight nine zero one two three"),
        ("*", ""),
    ],
)
def test_text_is_written_as_it_is_said(text: str, words: str) -> None:
    assert spoken_words(text) == words
