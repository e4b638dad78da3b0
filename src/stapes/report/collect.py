"""Read run folders: which variants were scored and measured, how training went, and what is not there yet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import StapesError
from ..files import read_json

_PARTIAL = ".partial"
_PLACES = ("*", "eval/*", "bench/*")
"""Where steps lie in a run folder."""

LEFT_OUT = "made by an earlier recipe, and left out here"
"""What is said of the folders in `Run.left_out`."""
_PREDICTION_KEYS = ("id", "task", "audio", "prompt", "target", "text", "num_tokens", "truncated")


@dataclass(frozen=True)
class Variant:
    """A model folder that was scored, measured, or both.

    Attributes:
        run: the run's label.
        name: the folder's name, e.g. `quantize`.
        label: what tables call it: its name, with the run before it if there are several.
        folder: the model folder, where a run has it.
        baseline: label of the variant of the same run that it is compared with; its own for the baseline.
        scores: `scores.json`, None if it was not scored.
        bench: `bench.json`, None if it was not measured.
        predictions: the lines of `predictions.jsonl`; none if the file is not there.
    """

    run: str
    name: str
    label: str
    folder: Path
    baseline: str
    scores: dict[str, Any] | None
    bench: dict[str, Any] | None
    predictions: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Stage:
    """The losses of one stage of training.

    Attributes:
        name: of the stage.
        lines: those of `losses.jsonl`.
        is_finished: False while the stage is under way, or after it was interrupted.
    """

    name: str
    lines: tuple[dict[str, Any], ...]
    is_finished: bool


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: as given.
        label: its name, or its path if several are called the same.
        stages: of training, in order.
        steps: `step.json` of each finished step, in the order they were made.
        missing: what a reader would look for in vain, one line each.
        left_out: folders of steps that an earlier recipe made and the present one does not have; nothing of them is
            read, as what they were made from may be gone.
        recipe: text of the resolved recipe, None if there is none.
    """

    folder: Path
    label: str
    stages: tuple[Stage, ...]
    steps: tuple[dict[str, Any], ...]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]
    recipe: str | None


@dataclass(frozen=True)
class Collected:
    """What some run folders hold.

    Attributes:
        runs: in the order given.
        variants: of all runs; within a run the baseline first, the others in the order they were made.
    """

    runs: tuple[Run, ...]
    variants: tuple[Variant, ...]


def collect(folders: Sequence[Path]) -> Collected:
    """Read run folders, finished or not.

    Raises:
        StapesError: if one is no run folder, is given twice, or holds a file that cannot be read.
    """
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise StapesError(f"{folder}: is given twice; name each run once")
    names = [folder.resolve().name for folder in folders]
    runs: list[Run] = []
    variants: list[Variant] = []
    for folder, name in zip(folders, names, strict=True):
        label = name if names.count(name) == 1 else str(folder)
        planned, recipe = _read_recipe(folder)
        stale = _find_stale(folder, planned)
        run = _read_run(folder, label, planned, stale, recipe)
        found = _read_variants(folder, label, planned, stale, prefix=f"{label}/" if len(folders) > 1 else "")
        if not (found or run.stages or run.steps or run.recipe is not None):
            reason = "holds no recipe.yaml, eval/, bench/ nor losses" if folder.is_dir() else "no such folder"
            raise StapesError(f"{folder}: is no run folder: {reason}; `stapes run RECIPE --out {folder}` makes one")
        runs.append(run)
        variants += found
    return Collected(tuple(runs), tuple(variants))


def _read_recipe(folder: Path) -> tuple[list[str], str | None]:
    """List the steps that the run wants to make, as `run.plan_steps` does, and return the recipe's text.

    Only names are taken from it: the recipe that lies in a run folder is resolved, nothing is to be filled in.
    """
    path = folder / "recipe.yaml"
    if not path.exists():
        return [], None
    text = path.read_text(encoding="utf-8")
    try:
        recipe = yaml.safe_load(text)
        base = ["base"] if recipe.get("start_from") is not None else []
        # A model that is built has to learn; one that was trained need not learn any more.
        stages = list((recipe.get("train") or {}) if base else recipe["train"])
        kinds = [step["kind"] for step in recipe.get("compress") or ()]
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        raise StapesError(f"{path}: is not the resolved recipe of a run; `stapes run` writes it anew") from None
    variants = [*base, *stages[-1:], *kinds]
    measured = [f"{part}/{name}" for key, part in (("evaluate", "eval"), ("bench", "bench")) if recipe.get(key)
                for name in variants]  # fmt: skip
    return ["data_check", *base, *stages, *kinds, *measured], text


def _find_stale(folder: Path, planned: list[str]) -> list[Path]:
    """List what a run made of an earlier recipe, in which it had other steps; without a recipe there is no telling.

    Only steps bear a `step.json`: what was trained or measured by hand beside them stays.
    """
    marks = [mark for place in _PLACES for mark in sorted(folder.glob(f"{place}/step.json"))] if planned else []
    return [mark.parent for mark in marks if _step(folder, mark.parent) not in (*planned, "report")]


def _read_run(folder: Path, label: str, planned: list[str], stale: list[Path], recipe: str | None) -> Run:
    marks = sorted(_finished(folder, stale, *(f"{place}/step.json" for place in _PLACES)))
    steps = [mark for mark in map(read_json, marks) if mark.get("step") != "report"]
    steps.sort(key=_date)
    dates = {step.get("step"): _date(step) for step in steps}
    stages = [
        Stage(_plain(path.parent), _read_losses(path), path.parent.suffix != _PARTIAL)
        for path in folder.glob("*/losses.jsonl")
        if path.parent not in stale
    ]
    # One under way has no date yet, and comes last.
    stages.sort(key=lambda stage: (_position(planned, stage.name), dates.get(stage.name, "~"), stage.name))
    begun = [
        _step(folder, path)
        for place in _PLACES
        for path in sorted(folder.glob(place + _PARTIAL))
        if _plain(path) != "report" and path not in stale
    ]
    wanted = [step for step in planned if not (folder / step).is_dir()]
    missing = [f"{step}: {'begun, not finished' if step in begun else 'not made yet'}" for step in wanted]
    missing += [f"{step}: begun, not finished" for step in begun if step not in wanted]
    left_out = tuple(path.relative_to(folder).as_posix() for path in stale)
    return Run(folder, label, tuple(stages), tuple(steps), tuple(missing), left_out, recipe)


def _read_variants(folder: Path, label: str, planned: list[str], stale: list[Path], *, prefix: str) -> list[Variant]:
    scored = {path.parent.name: path.parent for path in _finished(folder, stale, "eval/*/scores.json")}
    measured = {path.parent.name: path for path in _finished(folder, stale, "bench/*/bench.json")}
    scores = {name: _read_document(path / "scores.json", "tasks") for name, path in scored.items()}
    bench = {name: _read_document(path, "latency_ms") for name, path in measured.items()}
    names = {*scores, *bench}
    against = [document["paired"]["against"] for document in scores.values() if "paired" in document]

    def order(name: str) -> tuple[bool, int, str, str]:
        mark = folder / name / "step.json"
        date = _date(read_json(mark) if mark.exists() else scores.get(name) or bench[name])
        return name not in against, _position(planned, name), date, name

    ordered = sorted(names, key=order)
    return [
        Variant(
            run=label,
            name=name,
            label=prefix + name,
            folder=folder / name,
            baseline=prefix + ordered[0],
            scores=scores.get(name),
            bench=bench.get(name),
            predictions=_read_predictions(scored[name] / "predictions.jsonl") if name in scored else (),
        )
        for name in ordered
    ]


def _finished(folder: Path, stale: list[Path], *patterns: str) -> Iterable[Path]:
    found = (path for pattern in patterns for path in folder.glob(pattern))
    return (path for path in found if path.parent.suffix != _PARTIAL and path.parent not in stale)


def _read_document(path: Path, key: str) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get(key), dict):
        command = "eval" if path.name == "scores.json" else "bench"
        raise StapesError(f"{path}: is no {path.name}: lacks `{key}`; `stapes {command}` writes such files")
    return document


def _read_predictions(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.exists():
        return ()
    lines = _read_lines(path, is_partial=False)
    for number, line in enumerate(lines, start=1):
        lacking = [key for key in _PREDICTION_KEYS if key not in line]
        if lacking:
            raise StapesError(f"{path}:{number}: is no prediction: lacks {', '.join(lacking)}; evaluate again")
    return tuple(lines)


def _read_losses(path: Path) -> tuple[dict[str, Any], ...]:
    return tuple(_read_lines(path, is_partial=path.parent.suffix == _PARTIAL))


def _read_lines(path: Path, *, is_partial: bool) -> list[dict[str, Any]]:
    # Not splitlines(): texts may hold U+2028 and the like, which end no line of JSON Lines.
    texts = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            # What is still being written, or was when it was killed, may end in the middle of a line.
            if is_partial and number == len(texts):
                break
            raise StapesError(f"{path}:{number}: not JSON: {error.msg}") from error
        if not isinstance(line, dict):
            raise StapesError(f"{path}:{number}: holds {text[:40]}; wanted one JSON object a line")
        lines.append(line)
    return lines


def _step(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix().removesuffix(_PARTIAL)


def _plain(path: Path) -> str:
    return path.name.removesuffix(_PARTIAL)


def _position(planned: list[str], step: str) -> int:
    return planned.index(step) if step in planned else len(planned)


def _date(document: dict[str, Any]) -> str:
    """Return the moment of a step or measurement, in UTC, which sorts as text; empty if it is not told."""
    return str((document.get("environment") or {}).get("date", ""))
