"""Sentences to speech, with the speech synthesis that is on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Literal, assert_never, get_args

import numpy as np
import soundfile

from ..errors import AudioError, ManifestError, StapesError, UsageError
from ..files import read_json, staged_folder, write_json
from .audio import SAMPLE_RATE_HZ, load_audio, prepare_waveform
from .sample import Sample, write_manifest

Engine = Literal["flite", "espeak-ng", "kokoro"]
ENGINES: tuple[Engine, ...] = get_args(Engine)

_ESPEAK_WORDS_PER_MINUTE = 175
_ESPEAK_PITCHES = (35, 66)
"""espeak-ng's pitch goes from 0 to 99, 50 is the middle; beyond these bounds its voices sound like no one."""

_SETTINGS_FILE = "settings.json"
_KOKORO_FILES = ("kokoro-v1.0.onnx", "voices-v1.0.bin")

Speak = Callable[[str, str, float, np.random.Generator], np.ndarray]
"""Text, voice, rate (1.1 is 10 % faster) and randomness to samples (N,), float32, mono, 16 kHz."""


@dataclass(frozen=True)
class Speaker:
    """A speech synthesiser that was found on this machine, see `open_engine`.

    Attributes:
        engine: its name, which the manifest tells.
        voices: each sentence is spoken by one of them, all equally often; a voice may be listed twice.
        speak: what speaks.
    """

    engine: str
    voices: tuple[str, ...]
    speak: Speak


@dataclass(frozen=True)
class Synthesized:
    """What `synthesize` made.

    Attributes:
        manifest: the new manifest.
        num_samples: its lines.
        num_spoken: clips that were spoken now; the others were there from an interrupted attempt.
        seconds_of_speech: length of all clips together.
    """

    manifest: Path
    num_samples: int
    num_spoken: int
    seconds_of_speech: float


def synthesize(
    sentences: str | Path,
    out_dir: str | Path,
    speaker: Speaker,
    *,
    rates: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Synthesized:
    """Speak each line of a text file: `OUT/NAME/000000.flac` and the manifest `OUT/NAME.jsonl` for transcription.

    Voice and rate of a line are drawn from the seed and the line's number alone: order, number of jobs and
    interruptions change nothing. A run that was killed leaves `OUT/NAME.partial`, and the next one goes on there.

    Args:
        sentences: UTF-8 text, a sentence a line; empty lines are passed over. Its name without suffix is NAME.
        out_dir: a folder; it may hold other manifests already.
        speaker: what speaks, see `open_engine`; a sample's `source` names its engine and voice.
        rates: the tempo is drawn between these two, evenly; 1.1 is 10 % faster.
        seed: of voices and rates.
        jobs: how many clips are spoken at a time.
        progress: called with the numbers of clips done and wanted.

    Raises:
        ManifestError: if the text cannot be read or holds no sentence.
        UsageError: if a rate is not above 0, or no voice is named.
        AudioError: if an engine fails on a sentence.
        StapesError: if the manifest is there already, or the interrupted attempt had other settings.
    """
    sentences, out_dir = Path(sentences), Path(out_dir)
    lines, voices = _read_lines(sentences), speaker.voices
    _check_settings(voices, rates)
    folder, manifest = out_dir / sentences.stem, out_dir / f"{sentences.stem}.jsonl"
    for path in (folder, manifest):
        if path.exists():
            raise StapesError(f"{path}: is there already; remove it or name another folder")
    with staged_folder(folder, keep_on_error=True) as work:
        _claim(
            work, {"lines": lines, "engine": speaker.engine, "voices": list(voices), "rates": list(rates), "seed": seed}
        )

        def make(number: int) -> tuple[Sample, bool]:
            rng = np.random.default_rng((seed, number))
            voice, rate = voices[int(rng.integers(len(voices)))], float(rng.uniform(*rates))
            path = work / f"{number:06d}.flac"
            if spoken := not path.exists():
                _write_flac(path, speaker.speak(lines[number], voice, rate, rng), lines[number])
            duration_s = round(soundfile.info(path).frames / SAMPLE_RATE_HZ, 3)
            name = f"{sentences.stem}-{number:06d}"
            return Sample(
                name, folder / path.name, duration_s, "asr", None, lines[number], f"{speaker.engine} {voice}"
            ), spoken

        made = _make_all(make, len(lines), jobs, progress)
        (work / _SETTINGS_FILE).unlink()
    # Last, so that a manifest's existence means that all its audio is there.
    write_manifest([sample for sample, _ in made], manifest)
    seconds = sum(sample.duration_s or 0.0 for sample, _ in made)
    return Synthesized(manifest, len(made), sum(spoken for _, spoken in made), round(seconds, 3))


def open_engine(engine: Engine, voices: Sequence[str], model_dir: Path | None = None) -> Speaker:
    """Find a speech synthesiser and make sure that it has the voices.

    Args:
        engine: `flite` or `espeak-ng` (programs on the PATH), or `kokoro` (the package `kokoro-onnx`).
        voices: to be used; espeak-ng's may have a variant, as in `en-us+f3`.
        model_dir: for kokoro, the folder with `kokoro-v1.0.onnx` and `voices-v1.0.bin`.

    Raises:
        UsageError: if the engine is not installed or lacks a voice; the message says how to get it.
    """
    match engine:
        case "flite":
            _require_program("flite")
            known = _run(["flite", "-lv"], "flite, listing its voices").partition(":")[2].split()
            _require_voices(engine, voices, known)
            speak = _speak_flite
        case "espeak-ng":
            _require_program("espeak-ng")
            # Its list has the columns Pty, Language, Age/Gender, VoiceName, File, Other; a variant's file is `!v/NAME`.
            languages = [line.split()[1] for line in _list_espeak("--voices")]
            files = [line.partition("!v/")[2] for line in _list_espeak("--voices=variant")]
            _require_voices(engine, [voice.partition("+")[0] for voice in voices], languages)
            # espeak-ng itself leaves out a variant that is not there without a word.
            variants = [voice.partition("+")[2] for voice in voices if "+" in voice]
            _require_voices(engine, variants, [file.partition("(")[0].strip() for file in files])
            speak = _speak_espeak
        case "kokoro":
            speak = _open_kokoro(voices, model_dir)
        case _:
            assert_never(engine)
    return Speaker(engine, tuple(voices), speak)


def _make_all(
    make: Callable[[int], tuple[Sample, bool]], count: int, jobs: int, progress: Callable[[int, int], None] | None
) -> list[tuple[Sample, bool]]:
    made: list[tuple[Sample, bool]] = []
    pool = ThreadPoolExecutor(jobs)
    try:
        for one in pool.map(make, range(count)):
            made.append(one)
            if progress:
                progress(len(made), count)
    finally:
        # After an error or Ctrl-C nothing more is to be spoken.
        pool.shutdown(cancel_futures=True)
    return made


def _check_settings(voices: Sequence[str], rates: tuple[float, float]) -> None:
    if not voices or not 0 < rates[0] <= rates[1]:
        raise UsageError(f"voices {list(voices)}, rates {rates}: wanted a voice, and two rates above 0 in order")


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; it is to hold a sentence a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if "\0" in line:
            raise ManifestError(f"{path}:{number}: holds a null character, which no one can speak; take it out")
        if line.strip():
            lines.append(line.strip())
    if not lines:
        raise ManifestError(f"{path}: holds no sentence")
    return lines


def _claim(work: Path, settings: dict) -> None:
    """Note what the clips in `work` are made from; raise if those that are there were made from something else."""
    path = work / _SETTINGS_FILE
    if path.exists() and read_json(path) != settings:
        raise StapesError(
            f"{work}: holds clips of an interrupted run with another text, engine, voices, rates or another seed; "
            "repeat those, or remove the folder"
        )
    if not path.exists():
        write_json(path, settings)


def _write_flac(path: Path, samples: np.ndarray, text: str) -> None:
    if not np.any(samples):
        raise AudioError(f"{json.dumps(text, ensure_ascii=False)}: was spoken as silence; take the sentence out")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        soundfile.write(temporary, samples, SAMPLE_RATE_HZ, format="FLAC")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _speak_flite(text: str, voice: str, rate: float, rng: np.random.Generator) -> np.ndarray:
    return _speak_program(["flite", "-voice", voice, "--setf", f"duration_stretch={1 / rate:.4f}"], text, "-t", "-o")


def _speak_espeak(text: str, voice: str, rate: float, rng: np.random.Generator) -> np.ndarray:
    pitch, speed = int(rng.integers(*_ESPEAK_PITCHES)), round(_ESPEAK_WORDS_PER_MINUTE * rate)
    return _speak_program(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch)], text, "--stdin", "-w")


def _speak_program(command: list[str], text: str, text_option: str, out_option: str) -> np.ndarray:
    # Never through a shell, and as an option's value or on stdin: a text cannot be taken for anything else.
    stdin = text if text_option == "--stdin" else None
    command = [*command, text_option] if stdin else [*command, text_option, text]
    with tempfile.TemporaryDirectory(prefix="stapes-synth-") as folder:
        path = Path(folder) / "speech.wav"
        what = f"{command[0]}, speaking {text!r:.60}"
        _run([*command, out_option, str(path)], what, stdin)
        return load_audio(path, name=what)


def _run(command: list[str], what: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise AudioError(f"{what}: {reason}")
    return done.stdout


def _list_espeak(option: str) -> list[str]:
    return _run(["espeak-ng", option], "espeak-ng, listing its voices").splitlines()[1:]


def _require_program(name: str) -> None:
    if which(name) is None:
        raise UsageError(
            f"{name} is not on the PATH; install it, e.g. `apt-get install {name}` or `brew install {name}`"
        )


def _require_voices(engine: str, voices: Sequence[str], known: Sequence[str]) -> None:
    for voice in voices:
        if voice not in known:
            raise UsageError(f"{engine} has no voice `{voice}`; it has {', '.join(sorted(set(known)))}")


def _open_kokoro(voices: Sequence[str], model_dir: Path | None) -> Speak:
    try:
        from kokoro_onnx import Kokoro  # pyright: ignore[reportMissingImports]  # installed by those who want it
    except ImportError:
        raise UsageError("kokoro needs the package kokoro-onnx; install it with `pip install kokoro-onnx`") from None
    if model_dir is None or not all((model_dir / name).exists() for name in _KOKORO_FILES):
        raise UsageError(
            f"kokoro needs a folder with {' and '.join(_KOKORO_FILES)} (`--model`), not {model_dir}; "
            "they are among the releases of kokoro-onnx"
        )
    weights, styles = (str(model_dir / name) for name in _KOKORO_FILES)
    model = Kokoro(weights, styles)
    _require_voices("kokoro", voices, model.get_voices())

    def speak(text: str, voice: str, rate: float, rng: np.random.Generator) -> np.ndarray:
        # The first letter of a voice's name is its accent: a for American, b for British English.
        language = "en-gb" if voice.startswith("b") else "en-us"
        samples, sample_rate_hz = model.create(text, voice=voice, speed=rate, lang=language)
        return prepare_waveform(samples, sample_rate_hz, name=f"what kokoro made of {text!r:.60}")

    return speak
