"""The run folder: one folder a step, and what is done is not done again.

A step works in `NAME.partial` and is renamed when complete; `step.json` inside says what it was made from. Running the
same recipe again skips finished steps and resumes interrupted ones; a step made from other settings is never mixed in.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ..defaults import find_model
from ..environment import environment
from ..errors import ManifestError, StapesError
from ..files import full_disk_explained, read_json, staged_folder, write_json, write_text
from ..recipe import Recipe, dump_recipe
from .steps import Step, model_files, plan_steps

if TYPE_CHECKING:
    from ..data.sample import Sample

_REPORT = "report"


@dataclass
class RunSummary:
    """What a run did.

    Attributes:
        folder: the run folder.
        report: the self-contained page, None in the other processes of a distributed run.
        made, skipped: names of the steps.
    """

    folder: Path
    report: Path | None = None
    made: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def run_recipe(
    recipe: Recipe, folder: Path, *, redo: bool = False, say: Callable[[str], None] = lambda _: None
) -> RunSummary:
    """Go from audio files to a compared report.

    Args:
        recipe: what to do.
        folder: the run folder; made if it is not there.
        redo: make steps anew whose settings have changed, and those that follow from them.
        say: told one line before each step and about each that is skipped.

    Raises:
        StapesError: if data, weights or an earlier run of other settings stand in the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = RunSummary(folder)
    with _lock(folder):
        steps = plan_steps(recipe, folder)
        if _is_main():
            if not redo:
                _refuse_stale(steps, folder)
            write_text(folder / "recipe.yaml", dump_recipe(recipe))
            write_json(folder / "environment.json", {**environment(), "seed": recipe.seed})
        for number, step in enumerate(steps, start=1):
            made = _take(step, folder, lambda line, n=number: say(f"[{n}/{len(steps)}] {line}"))
            (summary.made if made else summary.skipped).append(step.name)
            if made and step.name != _REPORT and _is_main():
                # A report from before shows what has now been made anew, if from the same settings.
                shutil.rmtree(folder / _REPORT, ignore_errors=True)
    if _is_main():
        summary.report = folder / _REPORT / "report.html"
    return summary


def check_recipe(recipe: Recipe, path: str) -> None:
    """Find before any work what a run would stumble over later: trainer keys, manifests, weights.

    Args:
        recipe: what is to be run.
        path: the recipe's file, for messages.

    Raises:
        StapesError: naming file and key, or what was looked for and where.
    """
    from ..train.stage import check_stage
    from ..weights import admit_code, allow_code, resolve

    for name, stage in recipe.train.items():
        check_stage(path, name, stage)
    check_splits(recipe, path)
    if recipe.start_from is not None:
        model_files(find_model(recipe.start_from))
        return
    resolve(recipe.parts.speech_encoder)
    if recipe.parts.trust_remote_code:
        allow_code(recipe.parts.llm)
    admit_code(recipe.parts.llm)
    if recipe.parts.sound_encoder is not None:
        resolve(recipe.parts.sound_encoder)


def check_splits(recipe: Recipe, path: str) -> dict[Path, int]:
    """Refuse to measure a model on clips that it learns from.

    Args:
        recipe: what is to be run.
        path: the recipe's file, for messages.

    Returns:
        the recipe's manifests, each with the number of its samples.

    Raises:
        ManifestError: naming the two manifests and a clip of both; or if one cannot be read.
    """
    from ..data.sample import load_manifest

    learnt = sorted({manifest for stage in recipe.train.values() for manifest in stage.data})
    tests = {manifest: f"train.{name}.valid" for name, stage in recipe.train.items() for manifest in stage.valid}
    tests |= dict.fromkeys(recipe.evaluate.data if recipe.evaluate else (), "evaluate.data")
    counts, found = dict[Path, int](), dict[Path, Path]()
    for manifest in learnt:
        samples = load_manifest(manifest)
        counts[manifest] = len(samples)
        found |= {clip: manifest for sample in samples for clip in _clips(sample)}
    for manifest, key in tests.items():
        samples = load_manifest(manifest)
        counts[manifest] = len(samples)
        seen = [(sample.id, [clip for clip in _clips(sample) if clip in found]) for sample in samples]
        shared = [(name, found[clips[0]]) for name, clips in seen if clips]
        if shared:
            name, other = shared[0]
            raise ManifestError(
                f"{path}: {key}: {len(shared)} samples of {manifest} are about clips that the model learns from, e.g. "
                f"`{name}`, which {other} has too; is one of them of the wrong split?"
            )
    return counts


def _clips(sample: Sample) -> list[Path]:
    return [clip.resolve() for clip in (sample.audio, *sample.extra_audio)]


def _take(step: Step, folder: Path, say: Callable[[str], None]) -> bool:
    """Make a step unless it is done; tell whether it was made."""
    target = folder / step.name
    if not step.everywhere and not _is_main():
        return False
    if _is_main():
        _clear_stale(step, target)
    _barrier(step)
    if target.exists():
        say(f"{step.name}: done before, skipped")
        _barrier(step)
        return False
    say(step.name)
    started = time.monotonic()
    if not _is_main():
        # The first process waits once more, when its working folder is there.
        _barrier(step)
        step.make(target.with_name(target.name + ".partial"))
        _barrier(step)
        return True
    with staged_folder(target, keep_on_error=step.resumable) as work, full_disk_explained(folder):
        write_json(work / "step.json", {"step": step.name, "fingerprint": step.fingerprint, "complete": False})
        _barrier(step)
        cost = step.make(work)
        seconds = round(time.monotonic() - started, 2)
        done = {"step": step.name, "fingerprint": step.fingerprint, "complete": True, "seconds": seconds}
        write_json(work / "step.json", {**done, "result": cost, "environment": environment()})
    _barrier(step)
    return True


def _refuse_stale(steps: Sequence[Step], folder: Path) -> None:
    """Refuse what an earlier run made from other settings, and what no run made, before anything is changed."""
    for step in steps:
        for place in _stale(step, folder / step.name):
            if (place / "step.json").exists():
                raise StapesError(
                    f"{place} was made from other settings or data; `--redo` makes it and what follows from it anew, "
                    "`--out` starts another run"
                )
            # Half-made folders that a kill left without a mark are nobody's, and a report is soon written again.
            if place == folder / step.name and step.name != _REPORT:
                raise StapesError(
                    f"{place} was not made by a run (`step.json` is missing); move it away, or `--redo` makes it anew"
                )


def _clear_stale(step: Step, target: Path) -> None:
    for place in _stale(step, target):
        shutil.rmtree(place)


def _stale(step: Step, target: Path) -> list[Path]:
    """List the folders of a step, finished or not, that were not made from what it is made from now."""
    stale = []
    for place in (target, target.with_name(target.name + ".partial")):
        mark = place / "step.json"
        if place.exists() and not (mark.exists() and read_json(mark).get("fingerprint") == step.fingerprint):
            stale.append(place)
    return stale


def _is_main() -> bool:
    """Tell whether this is the first process of `accelerate launch`, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _barrier(step: Step) -> None:
    """Let the processes of a distributed run wait for each other around a step that all take part in."""
    if step.everywhere and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ..train.processes import this_process

        this_process().wait_for_everyone()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    if not _is_main():
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise StapesError(
            f"{folder}: another run works in this folder; wait for it, or choose another with `--out`"
        ) from None
    try:
        yield
    finally:
        lock.release()
