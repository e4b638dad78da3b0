"""What tokens of a byte-level BPE are to one who listens: words without capitals, or signs that nobody hears."""

from __future__ import annotations

import re
from string import ascii_lowercase, ascii_uppercase

_SIGNS = re.compile(r"Ġ?[!-/:-@\[-`{-~]+")
# Of letters alone: Ġ, which stands for a space, is a capital too.
_TO_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def spoken_form(token: str) -> str:
    """Write a token in lower case; Ġ still stands for a space."""
    return token.translate(_TO_LOWER)


def is_sign(token: str) -> bool:
    """Tell whether a token consists of ASCII's signs alone, maybe with a space in front."""
    return _SIGNS.fullmatch(token) is not None
