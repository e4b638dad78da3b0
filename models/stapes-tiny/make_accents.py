"""Write manifests of English sentences that 250 learners of it read: to learn from, to choose by, and to measure with.

    git clone https://github.com/jimbozhang/speechocean762
    python models/stapes-tiny/make_accents.py speechocean762 WORDS OUT

WORDS is the word list that make_words.py wrote (the model's `words.txt.xz`). OUT gets accents_adults.jsonl and
accents_children.jsonl, the clips of the corpus's own training half whose words are all listed; accents_valid.jsonl, 4
clips of each of 15 adults and 5 children who were taken out of that; and accents_test.jsonl, 2 clips of each adult of
its test half. No two of valid, test and the others share a speaker. Audio stays where it is.

The readers are Chinese, half of them children; the texts are what they were to read, and not all did so. The corpus is
free for commercial use, too (its README; CC BY 4.0 at OpenSLR, 101); nothing of it is shipped with stapes.

Source: Zhang et al. 2021, speechocean762 (arXiv 2104.01378).
"""

from __future__ import annotations

import random
import re
import sys
from collections import defaultdict
from pathlib import Path

import soundfile

from stapes.data.sample import Sample, write_manifest
from stapes.model.word_list import WordList

ADULT_YEARS = 16
SHORTEST_S, LONGEST_S = 1.0, 12.0


def read_half(half: Path) -> dict[str, list[Sample]]:
    """Return the samples of `train` or `test` by speaker, in the corpus's order, written as sentences are."""
    speakers = dict(line.split() for line in (half / "utt2spk").read_text("utf-8").splitlines())
    paths = dict(line.split() for line in (half / "wav.scp").read_text("utf-8").splitlines())
    samples: dict[str, list[Sample]] = defaultdict(list)
    for line in (half / "text").read_text("utf-8").splitlines():
        name, text = line.split("\t")
        audio = half.parent / paths[name]
        written = re.sub(r"\bi\b", "I", text.strip().lower())
        sample = Sample(
            f"so-{name}", audio, round(soundfile.info(audio).duration, 3), "asr", None, written[0].upper() + written[1:]
        )
        samples[speakers[name]].append(sample)
    return samples


def adults(half: Path) -> set[str]:
    """Return the speakers of 16 years and more."""
    ages = (line.split() for line in (half / "spk2age").read_text("utf-8").splitlines())
    return {speaker for speaker, years in ages if int(years) >= ADULT_YEARS}


def main(corpus: Path, words: Path, out: Path) -> None:
    """Write the manifests."""
    listed = WordList.read(words)
    random_ = random.Random(1)
    train, grown = read_half(corpus / "train"), adults(corpus / "train")
    old, young = sorted(grown), sorted(train.keys() - grown)
    random_.shuffle(old)
    random_.shuffle(young)
    held_out = {speaker: train.pop(speaker) for speaker in sorted(old[:15] + young[:5])}
    test, grown_test = read_half(corpus / "test"), sorted(adults(corpus / "test"))
    clips = {
        "valid": [s for spoken in held_out.values() for s in draw(spoken, 4, random_)],
        "test": [s for speaker in grown_test for s in draw(test[speaker], 2, random_)],
        "adults": [s for speaker in train if speaker in grown for s in train[speaker] if is_fit(s, listed)],
        "children": [s for speaker in train if speaker not in grown for s in train[speaker] if is_fit(s, listed)],
    }
    for name, samples in clips.items():
        write_manifest(samples, out / f"accents_{name}.jsonl")
        print(f"{name}: {len(samples)} clips")


def draw(samples: list[Sample], count: int, random_: random.Random) -> list[Sample]:
    """Return some samples, drawn at random."""
    shuffled = list(samples)
    random_.shuffle(shuffled)
    return shuffled[:count]


def is_fit(sample: Sample, listed: WordList) -> bool:
    """Tell whether to learn from a sample: all its words are listed, and it is neither short nor long."""
    spoken = re.findall(r"[a-z']+", sample.target.lower())
    plain = re.fullmatch(r"[A-Za-z' ]+", sample.target) is not None
    return plain and SHORTEST_S <= sample.duration_s <= LONGEST_S and all(word in listed for word in spoken)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
