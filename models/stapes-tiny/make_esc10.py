"""Write manifests of the field recordings of ESC-10: to learn from, to choose by, and to measure with.

    git clone https://github.com/karolpiczak/ESC-10
    git -C ESC-10 checkout 553c8f1743b9dba6b282e1323c3ca8fa76923448    # the last commit with audio
    python models/stapes-tiny/make_esc10.py ESC-10 OUT

OUT gets the clips as FLAC, 16 kHz mono, without silence at their ends, and esc10_train.jsonl (folds 1 to 3, 24 clips
of each of ten classes), esc10_valid.jsonl (fold 4) and esc10_test.jsonl (fold 5, 8 of each). No two folds share a
recording. The clips are by users of Freesound, CC BY 3.0, each credited in ESC-10's README; none is shipped with
stapes.

Source: Piczak 2015, ESC: Dataset for Environmental Sound Classification (doi:10.1145/2733373.2806390).
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_more_sounds import without_silence
from make_sounds import write_clip

from stapes.data.audio import load_audio
from stapes.data.sample import Sample, write_manifest

CAPTIONS = {
    "Dog bark": "a dog barks",
    "Rain": "rain falls",
    "Sea waves": "waves wash ashore",
    "Baby cry": "a baby cries",
    "Clock tick": "a clock ticks",
    "Person sneeze": "a person sneezes",
    "Helicopter": "a helicopter flies past",
    "Chainsaw": "a chainsaw runs",
    "Rooster": "a rooster crows",
    "Fire crackling": "a fire crackles",
}
FOLDS = {"1": "train", "2": "train", "3": "train", "4": "valid", "5": "test"}


def main(esc10: Path, out: Path) -> None:
    """Write clips and manifests."""
    samples: dict[str, list[Sample]] = {split: [] for split in FOLDS.values()}
    for path in sorted(esc10.glob("0* - */*.ogg")):
        sound = path.parent.name.partition(" - ")[2]
        name = f"esc10_{sound}_{path.stem}".replace(" ", "_")
        waveform = without_silence(load_audio(path))
        samples[FOLDS[path.stem[0]]].append(write_clip(out / "esc10", name, CAPTIONS[sound], "ESC-10", waveform))
    for split, clips in samples.items():
        write_manifest(clips, out / f"esc10_{split}.jsonl")
        print(f"{split}: {len(clips)} clips")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
