"""What tokens of a byte-level BPE are to one who listens: words without capitals, or signs that nobody hears.

In byte-level BPE a leading space is written Ġ.
"""

from __future__ import annotations

import re
from string import ascii_lowercase, ascii_uppercase

# Speech has neither capitals nor digits nor punctuation.
_SPOKEN = re.compile(r"Ġ?[a-z']+|Ġ")
_SIGNS = re.compile(r"Ġ?[!-/:-@\[-`{-~]+")
# Of letters alone: Ġ, which stands for a space, is a capital too.
_TO_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def spoken_form(token: str) -> str:
    """Write a token in lower case; Ġ still stands for a space."""
    return token.translate(_TO_LOWER)


def is_spoken(text: str) -> bool:
    """Tell whether a token in lower case is a piece of a spoken word, or the space between two."""
    return _SPOKEN.fullmatch(text) is not None


def is_sign(token: str) -> bool:
    """Tell whether a token consists of ASCII's signs alone, maybe with a space in front."""
    return _SIGNS.fullmatch(token) is not None
