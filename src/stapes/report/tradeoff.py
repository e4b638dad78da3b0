"""Quality against cost: which variants are beaten in both by another, and which are not (the Pareto front)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .circumstances import is_comparable
from .collect import Collected
from .table import COST, QUALITY, Cell, Column, build_table

_COSTS = ("ttft_ms", "run_peak_mb")


@dataclass(frozen=True)
class Panel:
    """One plot of quality against cost.

    Attributes:
        quality, cost: what is on the axes.
        points: label, quality and cost of each variant that has both.
        front: labels of the variants that no other beats, cheapest first; None where variants do not compare.
    """

    quality: Column
    cost: Column
    points: tuple[tuple[str, Cell, Cell], ...]
    front: tuple[str, ...] | None

    @property
    def finding(self) -> str:
        """What the front says, in a sentence."""
        if self.front is None:
            return "No Pareto front: the variants were measured under different circumstances."
        beaten = [label for label, _, _ in self.points if label not in self.front]
        head = f"Pareto front: {', '.join(self.front)}."
        if not beaten:
            return f"{head} None is beaten: each is better in one of the two."
        which = "one on the front is at least as good in both and better in one"
        return f"{head} Beaten: {', '.join(beaten)}; {which}."


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other beats; lower is better in both coordinates.

    A point is beaten by one that is nowhere higher and somewhere lower; so of equal points none beats the other.

    Returns:
        Indices, by the first coordinate, then the second.
    """

    def is_beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    front = [index for index, point in enumerate(points) if not is_beaten(point)]
    return sorted(front, key=lambda index: points[index])


def build_panels(collected: Collected) -> list[Panel]:
    """Set the first score that two measured variants have (WER if they do) against latency and memory."""
    scores, costs = build_table(collected, QUALITY), build_table(collected, COST)
    labels = [variant.label for variant in collected.variants]
    panels = []
    for key in _COSTS:
        for quality in QUALITY:
            cells = [(label, scores.cell(label, quality.key), costs.cell(label, key)) for label in labels]
            points = tuple(found for found in cells if None not in (found[1].value, found[2].value))
            if len(points) > 1:
                panels.append(Panel(quality, points[0][2].column, points, _front(collected, points)))
                break
    return panels


def _front(collected: Collected, points: Sequence[tuple[str, Cell, Cell]]) -> tuple[str, ...] | None:
    quality, cost = points[0][1].column, points[0][2].column
    shown = [variant for variant in collected.variants if variant.label in {label for label, _, _ in points}]
    if not (is_comparable(shown, "scores", quality.task) and is_comparable(shown, cost.source)):
        return None
    sign = 1 if quality.better == "lower" else -1
    values = [(cost.value or 0.0, sign * (score.value or 0.0)) for _, score, cost in points]
    return tuple(points[index][0] for index in pareto_front(values))
