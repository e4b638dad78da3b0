"""From predictions to scores, and from two sets of predictions to a paired comparison. Strings in, numbers out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from ..data.sample import TASKS, Task
from ..errors import StapesError
from .bootstrap import interval, paired_difference
from .metrics import PerSample
from .nota import nota_line
from .tasks import Protocol, measure, unavailable


class _Answer(TypedDict):
    """What each line of `predictions.jsonl` holds.

    Attributes:
        id, task, target: those of the sample.
        audio: its file.
        prompt: the instruction that the model was given.
        text: what the model said.
        num_tokens: tokens generated, the end symbol included.
        truncated: whether `max_new_tokens` ended it rather than the model.
    """

    id: str
    task: Task
    audio: str
    prompt: str
    target: str
    text: str
    num_tokens: int
    truncated: bool


class Prediction(_Answer, total=False):
    """A line of `predictions.jsonl`.

    Attributes:
        references: further targets of the sample, if it has some.
    """

    references: list[str]


def read_predictions(path: Path) -> list[Prediction]:
    """Read a `predictions.jsonl`.

    Raises:
        StapesError: if it is missing or a line is not a prediction; the message names file and line.
    """
    try:
        # Not splitlines(): texts may hold U+2028 and the like, which end no line of JSON Lines.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise StapesError(f"{path}: no such file; `stapes eval` writes it") from None
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def score_predictions(predictions: Sequence[Prediction], *, seed: int, protocol: Protocol = "stapes") -> dict[str, Any]:
    """Score predictions task by task.

    Returns:
        The `tasks` part of `scores.json`: for each task n and its metrics with value, 95 % interval, unit and which
        way is better, and `unavailable`: which metrics cannot be had here, and why. Empty if there are no predictions.

    Raises:
        StapesError: if a metric has nothing to count against.
    """
    scored: dict[str, Any] = {}
    for task, chosen in _by_task(predictions).items():
        scored[task] = {
            "n": len(chosen),
            "metrics": _describe(_measure(task, chosen, protocol), chosen, seed, protocol),
        }
        if missing := unavailable(task, protocol, len(chosen)):
            scored[task]["unavailable"] = missing
    return scored


def compare(
    predictions: Sequence[Prediction],
    others: Sequence[Prediction],
    *,
    against: str,
    seed: int,
    protocol: Protocol = "stapes",
) -> dict[str, Any]:
    """Compare a variant with another on the same samples.

    Args:
        predictions: of the variant.
        others: of the one that it is compared with, in any order.
        against: the other's name.
        seed: of the resampling.
        protocol: how both are scored.

    Returns:
        The `paired` part of `scores.json`: for each metric the difference (variant minus other), its 95 % interval and
        a two-sided p-value; see `paired_difference`.

    Raises:
        StapesError: if the two are not about the same samples.
    """
    by_id = {other["id"]: other for other in others}
    check_same_samples(
        {prediction["id"]: (prediction["task"], prediction["target"]) for prediction in predictions},
        {id_: (other["task"], other["target"]) for id_, other in by_id.items()},
        against,
    )
    theirs = _by_task([by_id[prediction["id"]] for prediction in predictions])
    metrics = {}
    for task, chosen in _by_task(predictions).items():
        other = _measure(task, theirs[task], protocol)
        for name, metric in _measure(task, chosen, protocol).items():
            difference = paired_difference(metric, other[name], seed=seed)
            metrics[f"{task}.{name}"] = {
                "difference": difference.value,
                "low": difference.low,
                "high": difference.high,
                "p_value": difference.p_value,
                "n": len(chosen),
            }
    return {"against": against, "metrics": metrics}


def check_same_samples(
    ours: Mapping[str, tuple[Task, str]], theirs: Mapping[str, tuple[Task, str]], against: str
) -> None:
    """Make sure that two variants were asked the same.

    Args:
        ours, theirs: task and target by id.
        against: the other variant's name, for messages.

    Raises:
        StapesError: if ids, tasks or targets differ.
    """
    for missing, who in ((ours.keys() - theirs.keys(), against), (theirs.keys() - ours.keys(), "this variant")):
        if missing:
            raise StapesError(
                f"{len(missing)} samples have no prediction of {who}, e.g. `{min(missing)}`; only variants "
                "evaluated on the same manifests with the same `limit` can be compared"
            )
    for id_, (task, target) in ours.items():
        if theirs[id_] != (task, target):
            raise StapesError(
                f"sample `{id_}` has target `{target}` ({task}) here but `{theirs[id_][1]}` ({theirs[id_][0]}) with "
                f"{against}; the manifest has changed: evaluate both again"
            )


def _parse(line: str, where: str) -> Prediction:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise StapesError(f"{where}: not JSON: {error.msg}") from error
    missing = sorted(Prediction.__required_keys__ - entry.keys()) if isinstance(entry, dict) else ["everything"]
    if missing:
        raise StapesError(f"{where}: is no prediction: lacks {', '.join(missing)}; `stapes eval` writes such files")
    if entry["task"] not in TASKS:
        raise StapesError(f"{where}: task is `{entry['task']}`; known are {', '.join(TASKS)}")
    return cast(Prediction, entry)


def _by_task(predictions: Sequence[Prediction]) -> dict[Task, list[Prediction]]:
    chosen: dict[Task, list[Prediction]] = {}
    for task in TASKS:
        some = [prediction for prediction in predictions if prediction["task"] == task]
        if some:
            chosen[task] = some
    return chosen


def _references(prediction: Prediction) -> list[str]:
    return [prediction["target"], *prediction.get("references", ())]


def _measure(task: Task, predictions: Sequence[Prediction], protocol: Protocol) -> dict[Any, PerSample]:
    return measure(task, [_references(p) for p in predictions], [p["text"] for p in predictions], protocol)


def _describe(
    metrics: dict[Any, PerSample], predictions: Sequence[Prediction], seed: int, protocol: Protocol
) -> dict[str, Any]:
    described: dict[str, Any] = {}
    counts = {len(_references(prediction)) for prediction in predictions} if protocol == "stapes" else {1}
    for name, metric in metrics.items():
        value = metric.value
        low, high = interval(metric, seed=seed)
        described[name] = {"value": value, "low": low, "high": high, "unit": metric.unit, "better": metric.better}
        if name in ("cider_d", "cider_d_x100", "spider"):
            # Figures with five references are higher than those with one and do not compare.
            described[name]["references"] = min(counts) if len(counts) == 1 else [min(counts), max(counts)]
        if protocol != "stapes":
            described[name]["printed"] = nota_line(name, value, protocol)
    return described
