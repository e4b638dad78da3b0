"""The exploratory picture of manifests: how much there is, how long, of what kind, in which words."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import write_json, write_text
from .sample import TASKS, Sample, load_manifest, sample_duration_s

NO_SOURCE = "not given"
_MAX_SLICES = 7
_MAX_BINS = 60
_BIN_WIDTHS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_WORD = re.compile(r"\w+(?:['’]\w+)*")

# Colours that people who do not tell red from green tell apart (Okabe and Ito), softened.
_COLOURS = ("#4477aa", "#e0a030", "#44a08c", "#b5607f", "#7f73b5", "#88a84e", "#9aa0a6")
_STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#3c4043",
    "xtick.color": "#5f6368",
    "ytick.color": "#5f6368",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e3e6ea",
    "svg.hashsalt": "stapes",  # the same figures give the same page
}


def collect_stats(
    manifests: Sequence[str | Path], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Count what some manifests hold; a length that a manifest does not say is read from the file's header.

    Args:
        manifests: see `load_manifest`.
        progress: called with (samples done, samples in all).

    Returns:
        `manifests` (one summary each) and `total`: `name`, `num_samples`, `hours` (of all samples), `different_hours`
        (each clip once), `duration_s` and `words_per_target` (`min`, `median`, `mean`, `p95`, `max`), `num_words`,
        `num_different_words`, `tasks`, `sources` (samples of each); `common_words`; `histograms` (`duration_s`,
        `words_per_target`: `edges` and `counts` by task).

    Raises:
        ManifestError: if a manifest cannot be read.
        AudioError: if a length is asked of a file that cannot be read.
    """
    groups = {str(path): load_manifest(path) for path in manifests}
    samples = [sample for group in groups.values() for sample in group]
    durations_s = _durations(samples, progress)
    words = [_words(sample.target) for sample in samples]
    summaries, start = [], 0
    for name, group in groups.items():
        part = slice(start, start + len(group))
        summaries.append(_summary(name, group, durations_s[part], words[part]))
        start += len(group)
    lengths = [float(len(text)) for text in words]
    tasks = [sample.task for sample in samples]
    return {
        "manifests": summaries,
        "total": _summary("total", samples, durations_s, words),
        "common_words": dict(Counter(word for text in words for word in text).most_common(20)),
        "histograms": {
            "duration_s": _histogram(durations_s, tasks),
            "words_per_target": _histogram(lengths, tasks, whole=True),
        },
    }


def write_stats(figures: dict[str, Any], folder: str | Path) -> Path:
    """Write `stats.json` and `stats.html`, a page that needs nothing else; return the page's path.

    Args:
        figures: from `collect_stats`; `environment` beside them goes into the JSON and under the page.
        folder: made if it is not there; older files of the same names are replaced.
    """
    folder = Path(folder)
    total = figures["total"]
    colours = {task: _COLOURS[index] for index, task in enumerate(TASKS)}
    tasks, sources = _slices(total["tasks"], colours), _slices(total["sources"], {NO_SOURCE: _COLOURS[-1]})
    with rc_context(_STYLE):
        charts = {
            "durations": _bars(figures["histograms"]["duration_s"], "length of the audio in seconds", colours),
            "words": _bars(figures["histograms"]["words_per_target"], "words in the target", colours),
            "tasks": _pie(tasks),
            "sources": _pie(sources),
        }
    # The page is built of texts from manifests, so they are escaped; the charts are ours.
    templates = Environment(loader=PackageLoader("stapes.data", ""), autoescape=True, undefined=StrictUndefined)
    page = templates.get_template("stats.html.j2").render(
        figures=figures, charts=charts, slices={"tasks": tasks, "sources": sources}
    )
    write_json(folder / "stats.json", figures)
    write_text(folder / "stats.html", page)
    return folder / "stats.html"


def _durations(samples: Sequence[Sample], progress: Callable[[int, int], None] | None) -> list[float]:
    durations_s = []
    with ThreadPoolExecutor() as pool:
        for number, duration_s in enumerate(pool.map(sample_duration_s, samples), start=1):
            durations_s.append(duration_s)
            if progress:
                progress(number, len(samples))
    return durations_s


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _summary(
    name: str, samples: Sequence[Sample], durations_s: Sequence[float], words: Sequence[Sequence[str]]
) -> dict[str, Any]:
    # Several questions may be asked about one clip.
    different = {(s.audio, *s.extra_audio): duration_s for s, duration_s in zip(samples, durations_s, strict=True)}
    return {
        "name": name,
        "num_samples": len(samples),
        "hours": sum(durations_s) / 3600,
        "different_hours": sum(different.values()) / 3600,
        "duration_s": _spread(durations_s),
        "words_per_target": _spread([len(text) for text in words]),
        "num_words": sum(len(text) for text in words),
        "num_different_words": len({word for text in words for word in text}),
        "tasks": dict(Counter(sample.task for sample in samples).most_common()),
        "sources": dict(Counter(sample.source or NO_SOURCE for sample in samples).most_common()),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": min(values),
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "p95": float(np.percentile(values, 95)),
        "max": max(values),
    }


def _histogram(values: Sequence[float], tasks: Sequence[str], whole: bool = False) -> dict[str, Any]:
    """Count values by task in bins of one round width; whole numbers sit in the middle of theirs."""
    array, task_of = np.asarray(values), np.asarray(tasks)
    widths = [width for width in _BIN_WIDTHS if not whole or width >= 1]
    width = next((width for width in widths if array.max() / width <= _MAX_BINS), array.max() / _MAX_BINS)
    edges = np.arange(int(array.max() / width) + 2) * width - (0.5 if whole else 0.0)
    counts = {task: np.histogram(array[task_of == task], edges)[0].tolist() for task in TASKS if task in tasks}
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": counts}


def _bars(histogram: dict[str, Any], label: str, colours: dict[str, str]) -> str:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes: Axes = figure.subplots()
    edges = np.asarray(histogram["edges"])
    bottom = np.zeros(len(edges) - 1)
    for task, counts in histogram["counts"].items():
        axes.bar(
            edges[:-1],
            counts,
            width=np.diff(edges),
            bottom=bottom,
            align="edge",
            color=colours[task],
            edgecolor="white",
            linewidth=0.6,
            label=task,
        )
        bottom += counts
    axes.set(xlabel=label, ylabel="samples", xlim=(edges[0], edges[-1]))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(integer=edges[-1] > 1))
    if len(histogram["counts"]) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def _slices(counts: dict[str, int], colours: dict[str, str]) -> list[dict[str, Any]]:
    """Turn counts, largest first, into named and coloured slices; from the seventh on they become one."""
    shown = dict(list(counts.items())[:_MAX_SLICES])
    if len(counts) > _MAX_SLICES:
        shown.popitem()
        shown[f"{len(counts) - len(shown)} others"] = sum(counts.values()) - sum(shown.values())
    total = sum(counts.values())
    return [
        {"name": name, "count": count, "share": count / total, "colour": colours.get(name, _COLOURS[index])}
        for index, (name, count) in enumerate(shown.items())
    ]


def _pie(slices: Sequence[dict[str, Any]]) -> str:
    figure = Figure(figsize=(2.6, 2.6), layout="constrained")
    axes: Axes = figure.subplots()
    axes.pie(
        [part["count"] for part in slices],
        colors=[part["colour"] for part in slices],
        startangle=90,
        counterclock=False,
        wedgeprops={"edgecolor": "white", "linewidth": 1.2 if len(slices) > 1 else 0},
    )
    return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
