"""Write a manifest of everyday sounds and instruments out of the OLPC Berklee Sound Library.

    git clone https://github.com/Tonejs/audio    # at efd8296360f9526e379bfbe5c1698ff54d6a1d34; 220 MB
    python models/stapes-tiny/make_berklee.py audio/berklee OUT

OUT gets the clips as FLAC, 16 kHz mono, without silence at their ends, at most 6 s long, and berklee.jsonl. Captions
are those of berklee.csv, written from the files' names without having heard them; `files` are patterns of names without
the number at their end. Names that say too little are left out. Recorded by students and teachers of the Berklee
College of Music, CC BY 3.0; none of it is shipped with stapes.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from make_more_sounds import MOST, without_silence
from make_sounds import write_clip

from stapes.data.audio import load_audio
from stapes.data.sample import Sample, write_manifest


def main(library: Path, out: Path) -> None:
    """Write clips and manifest."""
    samples: list[Sample] = []
    for caption, paths in _captioned(sorted(library.glob("*.mp3"))).items():
        chosen = np.linspace(0, len(paths) - 1, min(len(paths), MOST)).round().astype(int)
        for path in (paths[number] for number in chosen):
            waveform = without_silence(load_audio(path))
            samples.append(write_clip(out / "berklee", f"berklee_{path.stem}", caption, "Berklee", waveform))
    write_manifest(samples, out / "berklee.jsonl")
    print(f"{len(samples)} sounds, {len({sample.target for sample in samples})} captions")


def _captioned(paths: list[Path]) -> dict[str, list[Path]]:
    """Find the files of each caption; what fits two of them is filed under the first."""
    captioned: dict[str, list[Path]] = defaultdict(list)
    with (Path(__file__).parent / "berklee.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for path in paths:
        name = re.sub(r"[_-]?\d+[a-z]?$", "", path.stem)
        caption = next((row["caption"] for row in rows if fnmatchcase(name, row["files"])), None)
        if caption:
            captioned[caption].append(path)
    return captioned


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
