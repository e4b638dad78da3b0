"""A model's name → its configuration, without its weights and without a network."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import WeightsError
from ..files import read_json
from ..weights import find_config
from .published import PUBLISHED

# As in model/token_texts.py; model/ctc_vocabulary.py, which counts with it, needs a tokenizer that is loaded.
_PIECE = re.compile(r"Ġ?[a-z']+|Ġ")
# As in model/speller.py.
MAX_LETTER_GROUPS = 40
# As in model/frame_hearer.py; with the blank.
NUM_LETTERS, NUM_PHONES = 29, 41
FRAME_CONTEXT = 3
# As in model/sound_namer.py.
SOUND_WIDTH = 192


@dataclass(frozen=True)
class FoundConfig:
    """A configuration and where it came from.

    Attributes:
        values: the content of config.json, or what `published` knows of it.
        source: the file, or `published table`.
    """

    values: dict[str, Any]
    source: str


def read_config(name: str) -> FoundConfig:
    """Find the configuration of the model called `name`: its folder, the Hub's cache, ours, the published table.

    Raises:
        WeightsError: if it is in none of them; the message names what is nearest.
    """
    path = find_config(name)
    if path is not None:
        values = read_json(path)
        return FoundConfig({**values, **_tokenizer_length(path.parent)}, str(path))
    if name in PUBLISHED:
        return FoundConfig(PUBLISHED[name], "published table")
    near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.75)
    hint = f"did you mean `{near[0]}`?" if near else "give a folder, or fetch it once (`hf download NAME config.json`)"
    raise WeightsError(
        f"shape of `{name}`: no config.json in a folder of that name, the Hub's cache or ours, "
        f"and not one of the {len(PUBLISHED)} published shapes; {hint}"
    )


class CTCPieces(NamedTuple):
    """How many pieces of words a `ctc_compressor` hears, and of how many groups of letters they consist."""

    num_pieces: int
    num_letter_groups: int


NO_PIECES = CTCPieces(0, 0)


def count_ctc_pieces(name: str, merges: int) -> CTCPieces:
    """Count the pieces of words that a `ctc_compressor` hears with the LLM called `name`, as `CTCVocabulary` does.

    Args:
        name: of the LLM.
        merges: how many of its BPE's merges make pieces.

    Raises:
        WeightsError: if neither its tokenizer.json is on disk nor the published table has the count, or the tokenizer
            is not byte-level BPE.
    """
    path = find_config(name)
    tokenizer = path.parent / "tokenizer.json" if path else None
    if tokenizer is not None and tokenizer.exists():
        return _count_pieces(tokenizer, merges)
    known = PUBLISHED.get(name, {}).get("ctc_pieces", {})
    if merges in known:
        return CTCPieces(*known[merges])
    counted = f"; the published table has it for {', '.join(map(str, known))} merges" if known else ""
    raise WeightsError(
        f"pieces of `{name}` for a ctc_compressor with {merges} merges: no tokenizer.json in a folder of that name, "
        f"the Hub's cache or ours{counted}; fetch it once (`hf download {name} config.json tokenizer.json`)"
    )


def _count_pieces(path: Path, merges: int) -> CTCPieces:
    settings = read_json(path)
    model = settings["model"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(settings.get("pre_tokenizer")):
        raise WeightsError(
            f"{path}: not byte-level BPE, from whose merges a ctc_compressor's pieces come; take another LLM or "
            "another kind of connector"
        )
    made = {"".join(merge if isinstance(merge, list) else merge.split(" ")) for merge in model["merges"][:merges]}
    pieces = [p for p in model["vocab"] if (len(p) == 1 or p in made) and _PIECE.fullmatch(p)]
    groups: set[str] = set()
    for piece in pieces:
        found = [piece[at : at + size] for size in (3, 2, 1) for at in range(len(piece) - size + 1)]
        groups.update(found[:MAX_LETTER_GROUPS])
    return CTCPieces(len(pieces), len(groups))


def _tokenizer_length(folder: Path) -> dict[str, int]:
    """Count the tokens of the tokenizer beside a config.json, if it is there; the table may have more rows."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return {}
    tokenizer = read_json(path)
    vocabulary = tokenizer["model"]["vocab"]
    added = {token["id"] for token in tokenizer.get("added_tokens", ())}
    # A Unigram model lists its pieces, the others map them to ids.
    known = set(range(len(vocabulary))) if isinstance(vocabulary, list) else set(vocabulary.values())
    return {"tokenizer_length": len(known | added)}
