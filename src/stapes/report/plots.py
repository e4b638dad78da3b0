"""Charts as SVG that lives in a page: its text is text, and its colours are the page's, light or dark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from .collect import Collected, Run
from .table import find_number, three_figures
from .tradeoff import Panel

SERIES = ("#3b6fb6", "#c9720c", "#2e8b72", "#a94f86", "#6f63b0", "#7a8f2b", "#8a6d4b")
"""Colours of variants and runs in order; people who do not tell red from green tell them apart."""

PARTS = (("features", "features"), ("encoder", "speech encoder"), ("connector", "connector"),
         ("prefill", "prefill"), ("per_token", "one more token"))  # fmt: skip
"""Keys of `latency_ms` in the order of time, and what they are called."""

_INK, _MUTED, _LINE, _PAPER = "#20242a", "#5c636e", "#dfe3e8", "#fefefe"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _PAPER: "--paper"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a folder may be called $x$
    "font.size": 10.0,
    "text.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "legend.frameon": False,
}
_TRAINED: dict[str, Any] = {"linewidth": 1.4}
_CHECKED: dict[str, Any] = {"linewidth": 1.2, "linestyle": "--", "marker": "o", "markersize": 5}
# Where a label may stand, as offsets in points from its marker: near places first, beside before above and below.
_PLACES = [
    (x * far, y * far)
    for far in (8, 16, 26, 38)
    for x, y in ((1, 1.1), (1, -1.1), (-1, 1.1), (-1, -1.1), (0, 1.6), (0, -1.6))
]


@dataclass(frozen=True)
class Chart:
    """A picture and what it says.

    Attributes:
        svg: an `<svg>` element without ids or addresses that reach outside.
        alt: the same in words, for those who do not see it.
    """

    svg: str
    alt: str


def draw_tradeoff(panel: Panel, labels: Sequence[str]) -> Chart:
    """Draw quality against cost, with intervals, medians to 95th percentiles, and the Pareto front.

    Args:
        panel: what to draw.
        labels: of all variants, so that each has the same colour in all charts.
    """
    with _figure(5.2, 3.7) as (figure, axes):
        for label, score, cost in panel.points:
            x, y = cost.value or 0.0, score.value or 0.0
            index = labels.index(label)
            interval = None
            if score.low is not None and score.high is not None:
                # Rounding may put a bound on the wrong side of the value, by its last bit, which matplotlib refuses.
                interval = [[max(0.0, y - score.low)], [max(0.0, score.high - y)]]
            axes.errorbar(
                x,
                y,
                xerr=None if cost.p95 is None else [[0.0], [max(0.0, cost.p95 - x)]],
                yerr=interval,
                fmt=_MARKERS[index % len(_MARKERS)],
                color=SERIES[index % len(SERIES)],
                markersize=8,
                elinewidth=1.2,
                capsize=3,
                zorder=3,
            )
        if panel.front is not None:
            values = {label: (cost.value or 0.0, score.value or 0.0) for label, score, cost in panel.points}
            front = [values[label] for label in panel.front]
            corners = [corner for (_, y), (x, lower) in pairwise(front) for corner in ((x, y), (x, lower))]
            xs, ys = zip(front[0], *corners, strict=True)
            axes.plot(xs, ys, color=_MUTED, linestyle="--", zorder=2)
        axes.set(xlabel=f"{panel.cost.title} (lower is better)", ylabel=_quality_title(panel))
        axes.margins(0.18, 0.12)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _place_labels(figure, axes, panel)
        points = "; ".join(
            f"{label} {score.text} {panel.quality.unit} at {cost.text} {panel.cost.unit}"
            for label, score, cost in panel.points
        )
        alt = f"{panel.quality.head} against {panel.cost.head}: {points}. {panel.finding}"
        return Chart(_svg(figure, f"tradeoff-{panel.cost.key}", alt), alt)


def draw_losses(runs: Sequence[Run], stage: str) -> Chart:
    """Draw training and validation loss of one stage, the runs in one picture."""
    with _figure(5.2, 3.3) as (figure, axes):
        told = []
        for index, run in enumerate(runs):
            for part in (found for found in run.stages if found.name == stage):
                colour = SERIES[index % len(SERIES)]
                name = f"{run.label}: " if len(runs) > 1 else ""
                end = "" if part.is_finished else ", unfinished"
                trained = [(line["step"], line["loss"]) for line in part.lines if "loss" in line]
                checked = [(line["step"], line["eval_loss"]) for line in part.lines if "eval_loss" in line]
                for points, what, style in ((trained, "training", _TRAINED), (checked, "validation", _CHECKED)):
                    if points:
                        xs, ys = zip(*points, strict=True)
                        axes.plot(xs, ys, color=colour, label=f"{name}{what}{end}", **style)
                        told.append(f"{name}{what} from {points[0][1]:.2f} to {points[-1][1]:.2f}{end}")
        axes.set(xlabel="optimiser step", ylabel="loss a target token")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(fontsize=9, loc="best")
        alt = f"Losses of stage {stage}: {'; '.join(told)}."
        return Chart(_svg(figure, f"losses-{stage}", alt), alt)


def draw_latency(collected: Collected) -> Chart | None:
    """Draw where the time of an answer goes, a bar a variant; None if nothing was measured."""
    measured = [(variant.label, variant.bench) for variant in collected.variants if variant.bench]
    if not measured:
        return None
    split = {
        label: [find_number(bench, "latency_ms", key, "p50") for key, _ in PARTS] for label, bench in measured
    }  # fmt: skip
    longest = max(sum(part or 0.0 for part in parts) for parts in split.values())
    with _figure(5.2, 0.7 + 0.6 * len(split)) as (figure, axes):
        for row, (label, bench) in enumerate(measured):
            _stack(axes, row, split[label], longest)
            first, token = (find_number(bench, "latency_ms", key, "p50") for key in ("ttft", "per_token"))
            text = f"{label}: {_ms(first)} to the first token, then {_ms(token)} a token"
            axes.text(0, row - 0.31, text, ha="left", va="bottom")
        axes.set(xlabel="milliseconds (medians)", ylim=(len(split) - 0.5, -0.75), xlim=(0, 1.02 * longest or 1.0))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        told = "; ".join(
            f"{label} " + ", ".join(f"{name} {_ms(value)}" for (_, name), value in zip(PARTS, parts, strict=True))
            for label, parts in split.items()
        )
        alt = f"Time by part, medians: {told}."
        return Chart(_svg(figure, "latency", alt), alt)


def part_colours() -> list[tuple[str, str]]:
    """Return name and CSS colour of each part in `draw_latency`, for a legend in the page."""
    variables = [f"var(--series-{index})" for index in range(len(PARTS) - 1)] + ["var(--muted)"]
    return [(name, variable) for (_, name), variable in zip(PARTS, variables, strict=True)]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots()


def _stack(axes: Axes, row: int, parts: Sequence[float | None], longest: float) -> None:
    """Draw the parts of one variant end to end; one that was not measured has no place."""
    left = 0.0
    for index, value in enumerate(parts):
        if value is None:
            continue
        colour = SERIES[index] if PARTS[index][0] != "per_token" else _MUTED
        axes.barh(row, value, left=left, height=0.42, color=colour, edgecolor=_PAPER, linewidth=1)
        if value > 0.085 * longest:
            style = {"color": _PAPER, "fontsize": 9, "ha": "center", "va": "center_baseline"}
            axes.text(left + value / 2, row, three_figures(value), **style)
        left += value


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{three_figures(value)} ms"


def _quality_title(panel: Panel) -> str:
    return f"{panel.quality.title} ({panel.quality.better} is better)"


def _place_labels(figure: Figure, axes: Axes, panel: Panel) -> None:
    """Write each label at the place beside its point where it covers least: points and labels, then bars and lines."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    to_pixels = axes.transData.transform
    where = [(label, cost.value or 0.0, score.value or 0.0) for label, score, cost in panel.points]
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in (to_pixels(point[1:]) for point in where)]
    lines = [line.get_window_extent(renderer) for line in axes.collections]
    lines += [Bbox([a, b]).padded(2) for line in axes.lines if line.get_linestyle() == "--"
              for a, b in pairwise(to_pixels(line.get_path().vertices))]  # fmt: skip
    for label, x, y in where:
        found: list[tuple[float, Annotation]] = []
        for rank, (dx, dy) in enumerate(_PLACES):
            text = axes.annotate(
                label,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right" if dx < 0 else "center",
                va="center",
                fontsize=9,
                zorder=4,
                arrowprops={"arrowstyle": "-", "color": _MUTED, "linewidth": 0.7} if abs(dx) + abs(dy) > 32 else None,
                bbox={"facecolor": _PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 1},
            )
            text.set_in_layout(False)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without its arrow
            outside = not (axes.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1 and axes.bbox.y0 < box.y0)
            covered = 100 * sum(map(box.overlaps, taken)) + 10 * sum(map(box.overlaps, lines))
            found.append((covered + 100 * outside + rank, text))
        best = min(found, key=lambda place: place[0])[1]
        for _, text in found:
            if text is not best:
                text.remove()
        taken.append(Text.get_window_extent(best, renderer))


def _svg(figure: Figure, name: str, alt: str) -> str:
    """Write a figure for the inside of an HTML page: no addresses, no ids twice, colours by the page's variables."""
    buffer = StringIO()
    # The salt makes the ids of this figure's clip paths its own, and the same figures give the same page.
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:xlink)?|version)="[^"]*"', "", text).replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", '<svg role="img" aria-label="' + _attribute(alt) + '"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
