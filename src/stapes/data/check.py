"""Find bad data before training does: every audio file of a manifest is decoded once, every line judged."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import ManifestError
from .audio import SAMPLE_RATE_HZ, Fault, UnusableAudioError, load_audio
from .sample import GAP_S, Sample, parse_manifest

Kind = Fault | Literal["broken_line", "duplicate_id", "empty_target", "wrong_duration", "silent", "too_long", "clipped"]

LONG_S = 30.0
"""Whisper's window. Longer clips are encoded block by block, which works but costs memory: worth a warning."""

SILENT_PEAK = 1e-3
"""Largest deviation from the mean, of full scale 1 (-60 dBFS), below which nothing can be heard."""

FULL_SCALE = 0.999
CLIPPED_SHARE = 1e-3
"""A clip with more than this share of its samples at `FULL_SCALE` or beyond is called clipped."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one sample.

    Attributes:
        where: `manifest.jsonl:12`.
        id: the sample's id; None if the line cannot be read.
        kind: what is wrong, in one word.
        message: what is wrong, with the value, and the way out.
        warning: the sample can be used all the same (`clipped`; `too_long` when no limit was asked for).
    """

    where: str
    id: str | None
    kind: Kind
    message: str
    warning: bool = False

    def __str__(self) -> str:
        if self.id is None:
            return f"{self.where}: {self.message}"
        return f"{self.where}: sample `{self.id}`: {self.message}"


@dataclass(frozen=True)
class CheckReport:
    """What `check_manifests` found.

    Attributes:
        manifests: the manifests, as they were named.
        num_samples: lines that are there, broken ones included.
        problems: in the order of the manifests' lines.
        samples: for each manifest the samples that can be read, bad ones included.
    """

    manifests: tuple[Path, ...]
    num_samples: int
    problems: tuple[Problem, ...]
    samples: tuple[tuple[Sample, ...], ...]

    @property
    def errors(self) -> list[Problem]:
        """Problems of samples that must not be used."""
        return [problem for problem in self.problems if not problem.warning]

    @property
    def warnings(self) -> list[Problem]:
        """Problems of samples that can be used all the same."""
        return [problem for problem in self.problems if problem.warning]

    def good_samples(self, strict: bool = False) -> list[list[Sample]]:
        """Return, for each manifest, the samples without errors (`strict`: nor warnings)."""
        bad = {problem.where for problem in (self.problems if strict else self.errors)}
        return [[sample for sample in samples if sample.where not in bad] for samples in self.samples]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "manifests": [str(path) for path in self.manifests],
            "num_samples": self.num_samples,
            "errors": dict(Counter(problem.kind for problem in self.errors)),
            "warnings": dict(Counter(problem.kind for problem in self.warnings)),
            "problems": [
                {"where": p.where, "id": p.id, "kind": p.kind, "message": p.message, "warning": p.warning}
                for p in self.problems
            ],
        }


def check_manifests(
    manifests: Sequence[str | Path],
    *,
    min_s: float = 0.1,
    max_s: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every line and decode every audio file of some manifests.

    Errors: broken lines; audio that is missing, unreadable, empty, truncated, silent, with NaN, shorter than `min_s`
    or longer than `max_s`; a length that differs from `duration_s` by more than 5 % + 0.1 s; an id seen before in the
    same manifest; an empty target. Warnings: clipped audio, and without `max_s` audio longer than 30 s.

    Args:
        manifests: see `load_manifest`.
        min_s: shortest audio that is fine, in seconds.
        max_s: longest audio that is fine; None only warns beyond 30 s.
        progress: called with (files done, files in all).

    Raises:
        ManifestError: if a manifest is missing or holds nothing at all.
    """
    paths = tuple(Path(path) for path in manifests)
    entries = [list(parse_manifest(path)) for path in paths]
    samples = tuple(tuple(entry for entry in lines if isinstance(entry, Sample)) for lines in entries)
    clips = list(dict.fromkeys(clip for group in samples for sample in group for clip in _clips(sample)))
    heard = _hear_all(clips, progress)
    problems: list[Problem] = []
    for lines in entries:
        first_seen: dict[str, str] = {}
        for entry in lines:
            if isinstance(entry, ManifestError):
                where, _, message = str(entry).partition(": ")
                problems.append(Problem(where, None, "broken_line", message))
                continue
            problems += _judge_text(entry, first_seen)
            problems += _judge_audio(entry, [heard[clip] for clip in _clips(entry)], min_s, max_s)
    return CheckReport(paths, sum(map(len, entries)), tuple(problems), samples)


@dataclass(frozen=True)
class _Heard:
    """What matters about one decoded clip; levels are relative to full scale 1."""

    duration_s: float
    peak: float
    deviation: float
    full_scale_share: float


def _clips(sample: Sample) -> tuple[Path, ...]:
    return (sample.audio, *sample.extra_audio)


def _hear(clip: Path) -> _Heard | UnusableAudioError:
    try:
        waveform = load_audio(clip)
    except UnusableAudioError as error:
        return error
    magnitude = np.abs(waveform)
    return _Heard(
        duration_s=waveform.shape[0] / SAMPLE_RATE_HZ,
        peak=float(magnitude.max()),
        deviation=float(np.abs(waveform - waveform.mean()).max()),
        full_scale_share=float((magnitude >= FULL_SCALE).mean()),
    )


def _hear_all(
    clips: Sequence[Path], progress: Callable[[int, int], None] | None
) -> dict[Path, _Heard | UnusableAudioError]:
    heard = {}
    # Threads: decoding and resampling leave Python's lock alone.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for number, (clip, facts) in enumerate(zip(clips, pool.map(_hear, clips), strict=True), start=1):
                heard[clip] = facts
                if progress:
                    progress(number, len(clips))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest of the corpus
            raise
    return heard


def _judge_text(sample: Sample, first_seen: dict[str, str]) -> Iterator[Problem]:
    first = first_seen.setdefault(sample.id, sample.where)
    if first != sample.where:
        yield Problem(
            sample.where, sample.id, "duplicate_id", f"has the id of {first}; give each sample an id of its own"
        )
    if not sample.target.strip():
        yield Problem(
            sample.where, sample.id, "empty_target", "has an empty `target`; write what the model is to say, or drop it"
        )


def _judge_audio(
    sample: Sample, heard: Sequence[_Heard | UnusableAudioError], min_s: float, max_s: float | None
) -> Iterator[Problem]:
    facts = []
    for clip in heard:
        if isinstance(clip, UnusableAudioError):
            yield Problem(sample.where, sample.id, clip.fault, str(clip))
        else:
            facts.append(clip)
    if len(facts) < len(heard):
        return
    name = sample.audio if len(heard) == 1 else f"{sample.audio} and {len(heard) - 1} more"
    duration_s = sum(clip.duration_s for clip in facts) + GAP_S * (len(facts) - 1)

    def problem(kind: Kind, what: str, warning: bool = False) -> Problem:
        return Problem(sample.where, sample.id, kind, f"{name}: {what}", warning)

    if duration_s < min_s:
        yield problem("too_short", f"lasts {duration_s:.3f} s; wanted at least {min_s:g} s")
    if duration_s > (max_s or LONG_S):
        way_out = f"wanted at most {max_s:g} s" if max_s else f"more than {LONG_S:g} s cost memory; cut it if you can"
        yield problem("too_long", f"lasts {duration_s:.1f} s; {way_out}", warning=max_s is None)
    promised = sample.duration_s
    if promised is not None and abs(promised - duration_s) > 0.05 * promised + 0.1:
        way_out = "take a whole copy or correct `duration_s`" if duration_s < promised else "correct `duration_s`"
        yield problem("wrong_duration", f"lasts {duration_s:.2f} s but `duration_s` is {promised:g}; {way_out}")
    if max(clip.deviation for clip in facts) < SILENT_PEAK:
        yield problem("silent", "is silent (below -60 dBFS throughout); record or export it again, or drop it")
    if (share := max(clip.full_scale_share for clip in facts)) > CLIPPED_SHARE:
        peak = max(clip.peak for clip in facts)
        yield problem(
            "clipped",
            f"is clipped: {100 * share:.1f} % of its samples are at full scale or beyond, the peak is {peak:.3g}; "
            "record or export it at a lower level",
            warning=True,
        )
