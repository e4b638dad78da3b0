"""Write manifests of sounds of many more kinds, out of packages: to learn from, and to choose by.

    apt-get download 0ad-data hydrogen-drumkits openclonk-data …    # those of more_sounds.csv
    mkdir packages; for package in *.deb; do dpkg -x "$package" "packages/${package%%_*}"; done
    python models/stapes-tiny/unpack_sounds.py packages
    python models/stapes-tiny/make_more_sounds.py packages OUT

    git -C packages clone https://github.com/AntumMT/mod-sounds     # at a002ea8e3b254081101ebe5372bdfe4e473dce48
    git -C packages clone https://github.com/VoxeLibre/VoxeLibre    # at 26455efb810bfba20a5937bdd9b07cf48cc63825
    git -C packages clone https://github.com/ElCeejo/animalia       # at 5895f403fd43a9464e06b3675af3495f50565a3f
    python models/stapes-tiny/make_more_sounds.py packages OUT game_sounds

OUT gets the clips as FLAC, 16 kHz mono, without silence at their ends, 0.1 to 6 s long, and of the table that is named,
more_sounds where none is, TABLE_train.jsonl and TABLE_valid.jsonl. Captions are those of TABLE.csv, written from the
files' names as make_sounds.py's are, and likewise after the captions of sounds_test had been seen. The packages of
more_sounds.csv are of Debian main, under free licences; those of game_sounds.csv are add-ons of Luanti and a game for
it, most of it animals: mod-sounds and VoxeLibre say of each file who made it (CC0, CC BY, CC BY-SA, MIT), animalia is
under MIT. None of it is shipped with stapes.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from make_sounds import Found, write_clip

from stapes.data.audio import SAMPLE_RATE_HZ, load_audio
from stapes.data.sample import Sample, write_manifest

SHORTEST_S = 0.1

VALID = {"supertux-data", "lugaru-data", "freedink-data", "animalia"}
"""Packages whose sounds are not learnt."""

MOST = 12
"""How many files of one package are taken with one caption."""

FEW = 4
OF_FEW = {
    *("supertux-data", "lugaru-data", "freedink-data"),
    *("hedgewars-data", "lomiri-sounds", "micropolis-data", "minetest-data", "openttd-opensfx", "pekka-kana-2-data"),
    *("sound-icons", "tuxtype-data"),
}
"""Packages of which fewer are taken: they were gathered to measure with."""


def main(packages: Path, out: Path, table: str = "more_sounds") -> None:
    """Write clips and manifests of one table."""
    samples: dict[str, Sample] = {}
    for name, caption, package, waveform in _listed(packages, table):
        if len(waveform) >= SHORTEST_S * SAMPLE_RATE_HZ:
            samples[name] = write_clip(out / table, name, caption, package, waveform)
    for split in ("train", "valid"):
        chosen = [sample for sample in samples.values() if (sample.source in VALID) == (split == "valid")]
        write_manifest(chosen, out / f"{table}_{split}.jsonl")
        print(f"{split}: {len(chosen)} sounds, {len({sample.target for sample in chosen})} captions")


def _listed(packages: Path, table: str) -> Iterator[Found]:
    """Take the files of a table: of copies of one recording the first, and a few of many with one caption."""
    with (Path(__file__).parent / f"{table}.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    seen: set[bytes] = set()
    for package, of_package in groupby(rows, key=lambda row: row["package"]):
        files = sorted(path for path in (packages / package).rglob("*.*") if path.is_file())
        captioned: dict[str, list[Path]] = {}
        for row in of_package:
            paths = [path for path in files if path.match(row["files"])]
            if not paths:
                raise FileNotFoundError(f"no {row['files']} under {packages / package}")
            captioned.setdefault(row["caption"], []).extend(paths)
        most = FEW if package in OF_FEW else MOST
        for caption, paths in captioned.items():
            chosen = np.linspace(0, len(paths) - 1, min(len(paths), most)).round().astype(int)
            for path in (paths[number] for number in chosen):
                if (content := path.read_bytes()) not in seen:
                    seen.add(content)
                    name = f"{package}_{path.parent.name}_{path.stem}".replace(" ", "_")
                    yield name, caption, package, without_silence(load_audio(path))


def without_silence(waveform: np.ndarray) -> np.ndarray:
    """Cut off what is under a hundredth of the peak at both ends."""
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max(initial=0.0))
    return waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
