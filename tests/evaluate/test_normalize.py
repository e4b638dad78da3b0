import subprocess
import sys

import pytest

from stapes.evaluate.normalize import normalize_answer, normalize_english

# What openai/whisper's own normaliser gives (whisper-normalization 1.0.0 from PyPI, the same code on its own):
#   python -c "from whisper_normalization import EnglishTextNormalizer as E; print(E()(TEXT))"
PUBLISHED = {
    "Mr. Smith won't pay $20": "mister smith will not pay $20",
    "The colour of twenty one dollars and three cents": "the color of $21.03",
    "I'd've gone": "i would have gone",
    "[laughs] hmm um": "",
    "(aside) ok": "ok",
    "one oh one": "101",
    "two and a half million": "2500000",
    "nineteen ninety nine": "1999",
    "ten percent": "10%",
    "20mm": "20 mm",
    "1,000,000": "1000000",
    "the 21st century": "the 21st century",
    "double seven": "77",
    "e-mail, Café!": "e mail cafe",
    "organisation, grey, theatre": "organization gray theater",
    "": "",
}


@pytest.mark.parametrize(("text", "expected"), PUBLISHED.items())
def test_normalizes_as_whisper(text: str, expected: str) -> None:
    assert normalize_english(text) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        (" twelve ounce ", "12 ounce"),
        ("Latte...", "latte"),
        ("(B)", "b"),
        ("a bit of milk", "a bit of milk"),
        ("Um!", "um"),
        ("...", ""),
    ],
)
def test_answers_lose_their_edges_but_never_all_of_them(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


def test_normalizing_needs_no_torch() -> None:
    code = """
import sys
from stapes.evaluate.normalize import normalize_english
normalize_english("colour")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
