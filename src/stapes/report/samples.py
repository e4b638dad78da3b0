"""A few samples to look at and listen to: chosen by seed, from each task, from easy to hard."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import soundfile
import soxr

from .collect import Variant
from .diff import Piece, count_word_errors, diff_words, is_same, word_overlap

MAX_AUDIO_S = 60.0
"""Longer clips are cut in the page, which says so, so that it stays small."""

_SAMPLE_RATE_HZ = 16_000

_Key = tuple[str, str, str]


@dataclass(frozen=True)
class Answer:
    """What one or several variants said.

    Attributes:
        labels: the variants that said exactly this.
        text: what they said.
        pieces: its words beside the target's, for asr; None for other tasks.
        verdict: how it compares with the target, in words.
        truncated: the limit of tokens ended it.
    """

    labels: tuple[str, ...]
    text: str
    pieces: tuple[Piece, ...] | None
    verdict: str
    truncated: bool


@dataclass(frozen=True)
class Clip:
    """The audio of a sample inside a page.

    Attributes:
        uri: a data URI; empty if the file cannot be read.
        note: what a listener should know: cut, or why there is nothing to hear.
    """

    uri: str
    note: str


@dataclass(frozen=True)
class ShownSample:
    """One sample with all that was said about it.

    Attributes:
        id, task, prompt, target: as in `predictions.jsonl`.
        clip: its audio.
        answers: in the order of the variants.
        not_asked: variants that were not given it.
    """

    id: str
    task: str
    prompt: str
    target: str
    clip: Clip
    answers: tuple[Answer, ...]
    not_asked: tuple[str, ...]


def choose_samples(variants: Sequence[Variant], num_samples: int, seed: int) -> list[ShownSample]:
    """Choose samples that as many variants as possible have answered.

    Tasks take turns. The samples of a task are sorted by how hard the variants found them on average and cut into as
    many equal parts as there are samples to choose; the seed decides which one of each part.

    Args:
        variants: those without predictions are left aside.
        num_samples: how many at most.
        seed: of the choice.

    Returns:
        Samples task by task, the easiest first.
    """
    answering = [variant for variant in variants if variant.predictions]
    said: dict[_Key, dict[str, dict[str, Any]]] = {}
    for variant in answering:
        for line in variant.predictions:
            said.setdefault((line["task"], line["id"], line["target"]), {})[variant.label] = line
    most = max(map(len, said.values()), default=0)
    pools: dict[str, list[_Key]] = {}
    for key, lines in said.items():
        if len(lines) == most:
            pools.setdefault(key[0], []).append(key)
    rng = random.Random(seed)
    chosen = []
    for task, number in _share(pools, num_samples).items():
        keys = pools[task]
        rng.shuffle(keys)
        keys.sort(key=lambda key: _difficulty(key, said[key]))
        bounds = [len(keys) * part // number for part in range(number + 1)]
        chosen += [rng.choice(keys[low:high]) for low, high in pairwise(bounds)]
    return [_show(key, said[key], [variant.label for variant in answering]) for key in chosen]


def embed_audio(path: Path) -> Clip:
    """Turn an audio file into a data URI that every browser plays.

    It is what the models heard, mono at 16 kHz, as MP3: a tenth of a WAV file's size.
    """
    try:
        with path.open("rb") as stream, soundfile.SoundFile(stream) as sound:
            duration_s = sound.frames / sound.samplerate
            samples = sound.read(int(MAX_AUDIO_S * sound.samplerate), dtype="float32", always_2d=True)
            mono = soxr.resample(samples.mean(axis=1), sound.samplerate, _SAMPLE_RATE_HZ, quality="HQ")
    except FileNotFoundError:
        return Clip("", f"{path.name} is not to be heard: the file is gone, or named from another folder")
    except (OSError, soundfile.LibsndfileError) as error:
        return Clip("", f"{path.name} cannot be read: {error}")
    encoded = io.BytesIO()
    soundfile.write(encoded, mono.clip(-1, 1), _SAMPLE_RATE_HZ, format="MP3")
    uri = "data:audio/mpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
    return Clip(uri, f"the first {MAX_AUDIO_S:g} of {duration_s:.0f} s" if duration_s > MAX_AUDIO_S else "")


def _share(pools: dict[str, list[_Key]], number: int) -> dict[str, int]:
    """Let tasks take turns until there are `number` samples or no more."""
    shares = dict.fromkeys(pools, 0)
    while sum(shares.values()) < number:
        open_tasks = [task for task in pools if shares[task] < len(pools[task])]
        if not open_tasks:
            break
        for task in open_tasks[: number - sum(shares.values())]:
            shares[task] += 1
    return {task: share for task, share in shares.items() if share}


def _difficulty(key: _Key, lines: dict[str, dict[str, Any]]) -> float:
    """Say how far off the answers are on average, from 0 (all right) to 1."""
    task, _, target = key
    return sum(_distance(task, target, line["text"]) for line in lines.values()) / len(lines)


def _distance(task: str, target: str, text: str) -> float:
    if task == "asr":
        errors, num_words = count_word_errors(target, text)
        return min(1.0, errors / max(1, num_words))
    if task == "audiocaption":
        return 1 - word_overlap(target, text)
    return 0.0 if is_same(target, text) else 1.0


def _show(key: _Key, lines: dict[str, dict[str, Any]], labels: Sequence[str]) -> ShownSample:
    task, id_, target = key
    by_text: dict[tuple[str, bool], list[str]] = {}
    for label in labels:
        if label in lines:
            by_text.setdefault((lines[label]["text"], bool(lines[label]["truncated"])), []).append(label)
    answers = tuple(
        Answer(
            tuple(some),
            text,
            tuple(diff_words(target, text)) if task == "asr" else None,
            _verdict(task, target, text),
            truncated,
        )
        for (text, truncated), some in by_text.items()
    )
    first = next(iter(lines.values()))
    clip = embed_audio(Path(first["audio"]))
    not_asked = tuple(label for label in labels if label not in lines)
    return ShownSample(id_, task, first["prompt"], target, clip, answers, not_asked)


def _verdict(task: str, target: str, text: str) -> str:
    if task == "asr":
        errors, num_words = count_word_errors(target, text)
        # Not "errors": those are counted without regard to hyphens, numbers and spelling, see `diff_words`.
        return f"as written, {errors} word{' differs' if errors == 1 else 's differ'} from the target's {num_words}"
    if task == "audiocaption":
        return f"words in common: F1 {100 * word_overlap(target, text):.0f} %"
    return "the target's words" if is_same(target, text) else "other words than the target's"
