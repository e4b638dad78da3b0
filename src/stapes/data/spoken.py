"""From written text to the words that are said, for CTC, which learns by ear."""

from __future__ import annotations

import re
import unicodedata

_TO_NINE = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
    "ten",
    "eleven",
    "twelve",
    *(f"{part}teen" for part in ("thir", "four", "fif", "six", "seven", "eigh", "nine")),
)
_BELOW_TWENTY = _TO_NINE + _TEENS
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_IN_ALL_CAPTIONS = {"a", "an", "the", "is", "are", "it", "and", "of", "with", "by"}
_THOUSANDS = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"))


def spoken_words(text: str) -> str:
    """Write English text as lower-case words of a to z and the apostrophe, with single spaces between them.

    What stands in brackets is not said ("(5 seconds of silence)"); whole numbers become words ("12" → "twelve"), digit
    by digit from 13 digits on or after a leading zero; accents and all other signs go. It is a rule of thumb: dates,
    sums of money and formulas are read in other ways than this.

    Returns:
        the words; empty if nothing is said.
    """
    text = re.sub(r"\([^)]*\)|\[[^\]]*\]|<[^>]*>", " ", text.lower().replace("’", "'"))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"\d+", lambda match: f" {_number(match[0])} ", text)
    text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    text = re.sub(r"[^a-z' ]", " ", text)
    # An apostrophe belongs to a word only between letters; else it is a quotation mark.
    return " ".join(re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text).split())


def caption_words(text: str) -> str:
    """Keep of a caption the words that tell sounds apart, as `spoken_words` writes them."""
    return " ".join(word for word in spoken_words(text).split() if word not in _IN_ALL_CAPTIONS)


def _number(digits: str) -> str:
    if len(digits) > 12 or (digits[0] == "0" and len(digits) > 1):
        return " ".join(_BELOW_TWENTY[int(digit)] for digit in digits)
    return _words(int(digits))


def _words(number: int) -> str:
    for size, name in _THOUSANDS:
        if number >= size:
            return f"{_words(number // size)} {name} {_words(number % size) if number % size else ''}"
    if number >= 100:
        return f"{_BELOW_TWENTY[number // 100]} hundred {_words(number % 100) if number % 100 else ''}"
    if number >= 20:
        return f"{_TENS[number // 10 - 2]} {_BELOW_TWENTY[number % 10] if number % 10 else ''}"
    return _BELOW_TWENTY[number]
