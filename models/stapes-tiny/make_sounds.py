"""Write a manifest of more sounds to learn from: out of Debian packages, and rendered with a General MIDI sound font.

    apt-get download gcompris-qt-data hydrogen-data timgm6mb-soundfont qabcs-data lmms-common scratch megaglest-data \
        widelands-data scorched3d-data wesnoth-1.16-data
    for package in *.deb; do dpkg -x "$package" packages; done
    python models/stapes-tiny/make_sounds.py packages OUT

Needs `fluidsynth` on the PATH. OUT gets the clips as FLAC, 16 kHz mono, at most 6 s long, and sounds_more.jsonl.
Captions are written here and in sounds.csv, from the files' names, in the words of those that stapes-tiny's first
sounds have, and after the captions of sounds_test had been seen: a model that learnt from them has to say so beside
its score. Licences: gcompris GPL-3 and CC BY-SA, hydrogen and the sound font GPL-2, the others free ones (Debian
main); none of it is shipped with stapes.
"""

from __future__ import annotations

import csv
import io
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from stapes.data.audio import SAMPLE_RATE_HZ, load_audio, prepare_waveform
from stapes.data.sample import Sample, write_manifest

MAX_S = 6.0

# Resource file of gcompris and beginning of a clip in it, and what that sounds like.
GCOMPRIS = {
    "explore_farm_animals/cat": "a cat meows",
    "explore_farm_animals/chickens": "a hen clucks",
    "explore_farm_animals/cow": "a cow moos",
    "explore_farm_animals/dog": "a dog barks",
    "explore_farm_animals/duck": "a duck quacks",
    "explore_farm_animals/horse": "a horse neighs",
    "explore_farm_animals/owl": "an owl hoots",
    "explore_farm_animals/pig": "a pig oinks",
    "explore_farm_animals/sheep": "a sheep bleats",
    "memory-sound/LRBark": "a dog barks",
    "memory-sound/LRFrogs": "a frog croaks",
    "memory-sound/LRApplauses": "people clap their hands",
    "memory-sound/LRBuddhist_gong": "a gong is struck",
    "memory-sound/LRDoor_Open": "a door creaks",
    "memory-sound/LRFactory": "a machine runs",
    "memory-sound/LRHeart": "a heart beats",
    "memory-sound/LRRain": "rain falls",
    "memory-sound/LRRing": "a telephone rings",
    "memory-sound/LRStartAndStopCar": "a car engine starts",
    "memory-sound/LRTrain": "a train slows down",
    "memory-sound/guitar": "a guitar is strummed",
    "canal_lock/door": "a door slams",
    "canal_lock/water_fill": "water runs",
    "clickgame/drip": "water drips",
    "core/water": "water splashes",
    "core/bleep": "a short electronic beep",
    "core/audioclick": "a glitchy electronic click",
    "guessnumber/helicopter": "a helicopter flies past",
    "melody/knock": "a hammer knocks",
    "melody/xylofon": "a xylophone is struck",
    "mining/pickaxe": "a heavy object hits metal",
    "scalesboard/metal_hit": "a heavy object hits metal",
    "morse_code/d": "a short electronic beep",
    "railroad/train": "a train whistles",
    "traffic/car": "a car passes",
    "watercycle/bubble": "water bubbles",
    "watercycle/harbor": "a seagull cries",
    "instruments/accordion": "an accordion plays",
    "instruments/banjo": "a banjo is plucked",
    "instruments/bongo": "a bongo drum is hit",
    "instruments/castanets": "castanets click",
    "instruments/cello": "a cello plays",
    "instruments/clarinet": "a clarinet plays",
    "instruments/cymbal": "a cymbal is hit",
    "instruments/drum_kit": "a drum beat loops",
    "instruments/electric_guitar": "an electric guitar is strummed",
    "instruments/flute": "a flute plays",
    "instruments/guitar": "a guitar is strummed",
    "instruments/harmonica": "a harmonica plays",
    "instruments/harp": "a harp is plucked",
    "instruments/horn": "a horn plays",
    "instruments/maracas": "maracas are shaken",
    "instruments/organ": "an organ plays",
    "instruments/piano": "a piano chord rings",
    "instruments/saxophone": "a saxophone plays",
    "instruments/snare_drum": "a drum roll plays",
    "instruments/tambourine": "a tambourine is shaken",
    "instruments/timpani": "a timpani drum roll plays",
    "instruments/triangle": "a triangle is struck",
    "instruments/trombone": "a trombone plays",
    "instruments/trumpet": "a trumpet plays",
    "instruments/tuba": "a tuba plays",
    "instruments/violin": "a violin plays",
}

# Beginning of a hydrogen sample's name.
HYDROGEN = {
    "808_Snare": "an electronic snare drum is hit",
    "808_Hat": "an electronic cymbal is hit",
    "808_Tom": "a tom drum is hit",
    "808_Clap": "hands clap",
    "808_Conga": "a conga drum is hit",
    "808_Clave": "a wood block is hit",
    "808_Cymbal": "an electronic cymbal is hit",
    "808_Cowbell": "a cowbell is hit",
    "808_Shaker": "a shaker is shaken",
    "808_Kick": "a soft electronic kick drum is hit",
    "Crash": "a cymbal crashes",
    "HatOpen": "an open cymbal is hit",
    "HatPedal": "a closed cymbal is hit",
    "HatClosed": "a closed cymbal is hit",
    "HatSemi": "an open cymbal is hit",
    "Ride": "a cymbal is hit",
    "24Ride": "a cymbal is hit",
    "Splash": "a splash cymbal is hit",
    "Tom": "a tom drum is hit",
    "Kick": "a bass drum is hit",
    "Snare": "a snare drum is hit",
    "SideStick": "a wood block is hit",
    "Bell": "a bell rings",
    "Cowbell": "a cowbell is hit",
    "HandClap": "hands clap",
}

# General MIDI programs (from 0) and what a note or chord of them sounds like.
PROGRAMS = {
    0: "a piano chord rings",
    9: "a glockenspiel is struck",
    11: "a vibraphone is struck",
    14: "a bell rings",
    19: "an organ plays",
    21: "an accordion plays",
    24: "a guitar is strummed",
    25: "a guitar is strummed",
    27: "an electric guitar is strummed",
    30: "a distorted guitar is strummed",
    38: "a synthesizer plays a low bass note",
    39: "a synthesizer plays a low bass note",
    40: "a violin plays",
    42: "a cello plays",
    46: "a harp is plucked",
    52: "a choir sings a sustained note",
    56: "a trumpet plays",
    57: "a trombone plays",
    59: "a muted trumpet plays",
    60: "a horn plays",
    65: "a saxophone plays",
    68: "an oboe plays",
    70: "a bassoon plays",
    71: "a clarinet plays",
    73: "a flute plays",
    89: "a synthesizer drone hums",
    95: "a synthesizer drone hums",
    105: "a banjo is plucked",
    124: "a telephone rings",
}
_LOW = {38, 39, 42, 57, 70}
_CHORDS = {0, 19, 24, 25, 27, 30}
BEAT = "a drum beat loops"
NOTES = 5
"""How many clips each program gives."""


def main(packages: Path, out: Path) -> None:
    """Write clips and manifest."""
    rng = np.random.default_rng(0)
    found = [*_gcompris(packages), *_hydrogen(packages), *_rendered(packages, rng), *_listed(packages)]
    samples = [write_clip(out / "sounds_more", *clip) for clip in found]
    write_manifest(samples, out / "sounds_more.jsonl")
    print(f"{len(samples)} sounds, {len({sample.target for sample in samples})} captions")


def write_clip(folder: Path, name: str, caption: str, source: str, waveform: np.ndarray) -> Sample:
    """Write the first `MAX_S` of a clip as `folder`/NAME.flac, and describe it."""
    path = folder / f"{name}.flac"
    folder.mkdir(parents=True, exist_ok=True)
    waveform = waveform[: round(MAX_S * SAMPLE_RATE_HZ)]
    soundfile.write(path, waveform, SAMPLE_RATE_HZ)
    return Sample(name, path, round(len(waveform) / SAMPLE_RATE_HZ, 3), "audiocaption", None, caption, source)


Found = tuple[str, str, str, np.ndarray]
"""Name, caption, source and samples of a clip."""


def _gcompris(packages: Path) -> Iterator[Found]:
    for path in sorted(packages.glob("**/gcompris-qt/rcc/*.rcc")):
        for name, content in sorted(_resources(path.read_bytes())):
            stem, suffix = Path(name).stem, Path(name).suffix
            caption = next((c for key, c in GCOMPRIS.items() if f"{path.stem}/{stem}".startswith(key)), None)
            if suffix in (".ogg", ".wav") and caption:
                waveform = prepare_waveform(*soundfile.read(io.BytesIO(content), dtype="float32"), name=name)
                yield f"gcompris_{path.stem}_{stem}", caption, "gcompris", waveform


def _resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """List the files of a Qt resource file: a tree of entries, names and contents, each at an offset of its own."""
    version, tree, data, names = struct.unpack(">4xIIII", content[:20])
    size = 22 if version >= 2 else 14
    pending = [0]
    while pending:
        entry = content[tree + pending[0] * size :][:size]
        del pending[0]
        name_at, flags = struct.unpack(">IH", entry[:6])
        if flags & 2:  # a folder: number of children, number of the first
            count, first = struct.unpack(">II", entry[6:14])
            pending += range(first, first + count)
            continue
        (data_at,) = struct.unpack(">I", entry[10:14])
        (length,) = struct.unpack(">I", content[data + data_at :][:4])
        found = content[data + data_at + 4 :][:length]
        (name_length,) = struct.unpack(">H", content[names + name_at :][:2])
        name = content[names + name_at + 6 :][: 2 * name_length].decode("utf-16-be")
        yield name, zlib.decompress(found[4:]) if flags & 1 else found


def _hydrogen(packages: Path) -> Iterator[Found]:
    for path in sorted(packages.glob("**/hydrogen/data/drumkits/**/*")):
        caption = next((c for key, c in HYDROGEN.items() if path.stem.startswith(key)), None)
        if path.suffix in (".wav", ".flac") and caption:
            yield f"hydrogen_{path.stem}", caption, "hydrogen", load_audio(path)


def _listed(packages: Path) -> Iterator[Found]:
    """Take the files of sounds.csv; of copies of one recording the first."""
    seen: set[bytes] = set()
    files = sorted(packages.rglob("*.*"))
    with (Path(__file__).parent / "sounds.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            paths = [path for path in files if row["package"] in path.as_posix() and path.match(row["files"])]
            if not paths:
                raise FileNotFoundError(f"no {row['files']} of {row['package']} under {packages}")
            for path in paths:
                if (content := path.read_bytes()) not in seen:
                    seen.add(content)
                    name = f"{row['package']}_{path.parent.name}_{path.stem}".replace(" ", "_")
                    yield name, row["caption"], row["package"], load_audio(path)


def _rendered(packages: Path, rng: np.random.Generator) -> Iterator[Found]:
    font = next(packages.glob("**/*.sf2"))
    for program, caption in PROGRAMS.items():
        for number in range(NOTES):
            low, high = (28, 52) if program in _LOW else (52, 80)
            root = int(rng.integers(low, high))
            notes = [root, root + 4, root + 7] if program in _CHORDS else [root]
            length_s = float(rng.uniform(0.5, 2.5))
            events = [(0.0, length_s, note, int(rng.integers(70, 120))) for note in notes]
            yield f"midi_{program}_{number}", caption, "timgm6mb", _render(font, _midi(program, 0, events))
    for number in range(3 * NOTES):
        yield f"midi_beat_{number}", BEAT, "timgm6mb", _render(font, _midi(0, 9, _beat(rng)))


def _beat(rng: np.random.Generator) -> list[tuple[float, float, int, int]]:
    """Two bars of kick (36), snare (38) and closed hi-hat (42), some of them left out."""
    eighth_s = 60 / float(rng.uniform(80, 150)) / 2
    events = []
    for place in range(16):
        kick = place % 8 == 0 or rng.random() < 0.2
        snare = place % 8 == 4 or rng.random() < 0.1
        hat = rng.random() < 0.8
        for drum, is_hit in ((36, kick), (38, snare), (42, hat)):
            if is_hit:
                events.append((place * eighth_s, eighth_s, drum, int(rng.integers(70, 120))))
    return events


def _midi(program: int, channel: int, events: list[tuple[float, float, int, int]]) -> bytes:
    """Write a MIDI file of notes (start in s, length in s, note, velocity), at 1,000 ticks a second."""
    changes = []
    for start, length, note, velocity in events:
        changes += [(start, 0x90, note, velocity), (start + length, 0x80, note, 0)]
    track, before = bytes([0, 0xC0 | channel, program]), 0
    for at, kind, note, velocity in sorted(changes):
        track += _variable(round(1000 * at) - before) + bytes([kind | channel, note, velocity])
        before = round(1000 * at)
    track += bytes([0, 0xFF, 0x2F, 0])
    # 500 ticks to a quarter of half a second.
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500) + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable(number: int) -> bytes:
    """Write a number as MIDI does: seven bits a byte, all but the last marked."""
    parts = [number & 0x7F]
    while number := number >> 7:
        parts.append(0x80 | (number & 0x7F))
    return bytes(reversed(parts))


def _render(font: Path, midi: bytes) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        score, sound = Path(folder) / "score.mid", Path(folder) / "sound.wav"
        score.write_bytes(midi)
        command = ["fluidsynth", "-ni", "-q", "-r", str(SAMPLE_RATE_HZ), "-F", sound, font, score]
        subprocess.run(command, check=True, capture_output=True)
        waveform = load_audio(sound)
    loud = np.flatnonzero(np.abs(waveform) > 0.003 * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
