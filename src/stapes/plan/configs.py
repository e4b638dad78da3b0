"""A model's name → its configuration, without its weights and without a network."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from ..files import read_json
from ..weights import find_config
from .published import PUBLISHED


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
