"""Whisper's English text normalisation, so that word errors are about words and not about how they are written."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files

# Whisper's normaliser leaves some of these standing at the end of a text ("wait..."); an answer is not about them.
_EDGES = " \t\r\n.,;:!?()[]\"'"


def normalize_english(text: str) -> str:
    """Bring English text into the form that Whisper's published error rates compare.

    Lower case; no punctuation, fillers (uh, um, hmm) nor text in brackets; contractions and titles written out;
    numbers in digits; American spelling. Radford et al. 2022 (arXiv 2212.04356), appendix C.

    Returns:
        Words with single spaces between them; may be empty.
    """
    return _normalizer()(text)


def normalize_answer(text: str) -> str:
    """Bring an answer to a closed question into the form that exact match compares.

    Punctuation and brackets around it go, then `normalize_english`. An answer that this leaves nothing of ("um") is
    only lower-cased, so that two such answers do not become equal.
    """
    bare = text.strip(_EDGES)
    return normalize_english(bare) or bare.casefold()


@cache
def _normalizer() -> Callable[[str], str]:
    # Importing transformers costs about a second, which scoring captions need not pay.
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    # transformers has Whisper's rules but not its table of British spellings, which comes with each checkpoint instead.
    # Ours is whisper/normalizers/english.json of openai/whisper, unchanged; its licence lies beside it.
    spelling = files("stapes.evaluate").joinpath("english_spelling.json").read_text(encoding="utf-8")
    return EnglishTextNormalizer(json.loads(spelling))
