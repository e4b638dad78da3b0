"""What CTC may hear at each encoder frame: letters, or the phones of English."""

from __future__ import annotations

from string import ascii_lowercase

BLANK, SPACE = 0, 1
"""Numbers of CTC's blank and of the space between words, in either alphabet."""

LETTERS = f" {ascii_lowercase}'"
"""What is written with, numbered from 1 on."""

ARPABET = {
    **{"AA": "a", "AE": "@", "AH": "A", "AO": "c", "AW": "W", "AY": "Y", "EH": "E", "ER": "R", "EY": "e", "IH": "I"},
    **{"IY": "i", "OW": "o", "OY": "O", "UH": "U", "UW": "u", "B": "b", "CH": "C", "D": "d", "DH": "D", "F": "f"},
    **{"G": "g", "HH": "h", "JH": "J", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "G", "P": "p", "R": "r"},
    **{"S": "s", "SH": "S", "T": "t", "TH": "T", "V": "v", "W": "w", "Y": "y", "Z": "z", "ZH": "Z"},
}
"""The 39 phones of the CMU Pronouncing Dictionary, without stress, and ARPAbet's signs of one letter for them."""

PHONES = f" {''.join(sorted(ARPABET.values()))}"
"""What is spoken with, numbered from 1 on."""


def letter_numbers(words: str) -> list[int]:
    """Spell words as numbers of `LETTERS` from 1 on.

    Raises:
        ValueError: if anything but a to z, the apostrophe and spaces is in `words`.
    """
    return [1 + LETTERS.index(letter) for letter in words]


def phone_numbers(phones: str) -> list[int]:
    """Write what `WordList.pronounce` returns as numbers of `PHONES` from 1 on.

    Raises:
        ValueError: if anything but the signs of `ARPABET` and spaces is in `phones`.
    """
    return [1 + PHONES.index(phone) for phone in phones]
