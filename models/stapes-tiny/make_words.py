"""List the words that a transcript may hold, with how common each is.

    python models/stapes-tiny/make_words.py SCOWL TEXTS OUT

SCOWL is the folder of Debian's package `scowl`, /usr/share/dict/scowl: its words of American and British English up to
size 50, names and contractions among them. TEXTS are manifests, separated by commas, of what training spoke; a word's
share of them counts where it is larger than what SCOWL's sizes stand for. OUT is what `WordList.read` reads.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from pathlib import Path

from stapes.data.sample import load_manifest
from stapes.data.spoken import spoken_words
from stapes.model import WordList

LOG_PROBABILITY = {10: -8.0, 20: -9.5, 35: -11.0, 40: -11.5, 50: -13.0}
"""Of a word of each of SCOWL's sizes, by and large: the larger, the rarer."""

_LIST = re.compile(r"(english|american|british)-(words|upper|proper-names|contractions|abbreviations)\.(\d+)")
_WORD = re.compile(r"[a-z']+")


def main(scowl: Path, texts: str, out: Path) -> None:
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
    WordList(words).write(out)
    print(f"{len(words)} words, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
