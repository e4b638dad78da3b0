"""The comparison: variants × what they score and what they cost, with intervals, differences and best values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .circumstances import Source, is_comparable
from .collect import Collected, Variant

DASH = "–"
_ALPHA = 0.05
_JOINED_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Column:
    """One thing that variants are compared by.

    Attributes:
        key: its name in JSON.
        head: what tables call it.
        unit: of the shown value; nothing for plain numbers.
        better: which way is up.
        meaning: what it says, in plain words.
        source: the file that holds it.
        path: where in that file.
        scale: what the stored value is multiplied with.
        digits: after the point; None shows three figures that count.
        task: whose score it is.
        is_measured: it depends on machine and clip, as latency and peaks do, but sizes do not.
    """

    key: str
    head: str
    unit: str
    better: Literal["lower", "higher"]
    meaning: str
    source: Source
    path: tuple[str, ...]
    scale: float = 1.0
    digits: int | None = None
    task: str | None = None
    is_measured: bool = True

    @property
    def title(self) -> str:
        """Head and unit."""
        return f"{self.head}, {self.unit}" if self.unit else self.head

    def show(self, value: float) -> str:
        """Write a value without its unit."""
        return three_figures(value) if self.digits is None else f"{value:,.{self.digits}f}"


def _score(task: str, key: str, head: str, unit: str, better: Literal["lower", "higher"], meaning: str) -> Column:
    path = ("tasks", task, "metrics", key)
    return Column(key, head, unit, better, meaning, "scores", path, digits=1 if unit else 2, task=task)


QUALITY = (
    _score("asr", "wer", "WER", "%", "lower",
           "Word error rate: wrong, missing and extra words for each 100 words that were said. May exceed 100."),
    _score("asr", "cer", "CER", "%", "lower", "Character error rate: the same for letters, spaces included."),
    _score("audiocaption", "cider_d", "CIDEr-D", "", "higher",
           "How far captions share their rarer word sequences with the references of their clips, from 0 to 10. "
           "Figures with one and with several references do not compare."),
    _score("audiocaption", "spider", "SPIDEr", "", "higher",
           "Mean of CIDEr-D and SPICE, which compares what captions say is there and how it relates; from 0 to 5.5."),
    _score("qa", "exact_match", "exact match", "%", "higher",
           "Answers to closed questions that are the right one, spelling and punctuation aside."),
)  # fmt: skip
COST = (
    Column("parameters", "parameters", "M", "lower", "Numbers in the model, in millions, adapters included.",
           "bench", ("parameters", "total"), scale=1e-6, is_measured=False),
    Column("files_mb", "files", "MB", "lower", "What the model takes on disk; 1 MB = 1,000,000 bytes.",
           "bench", ("memory_bytes", "files"), scale=1e-6, is_measured=False),
    Column("load_peak_mb", "peak at load", "MB", "lower",
           "Most memory in use while the model is loaded; on a CPU that of the whole process, Python and PyTorch "
           "included.", "bench", ("memory_bytes", "load_peak"), scale=1e-6),
    Column("run_peak_mb", "peak at run", "MB", "lower", "Most memory in use while it answers.",
           "bench", ("memory_bytes", "run_peak"), scale=1e-6),
    Column("ttft_ms", "TTFT", "ms", "lower",
           "Time to first token: from the end of the audio until the answer begins, without a search for transcripts.",
           "bench", ("latency_ms", "ttft"), digits=1),
    Column("tpot_ms", "TPOT", "ms", "lower", "Time per output token: for each further token of the answer.",
           "bench", ("latency_ms", "per_token"), digits=1),
    Column("rtf", "RTF", "", "lower",
           "Real-time factor: seconds a whole answer takes for each second of audio; below 1 it keeps up.",
           "bench", ("rtf",), digits=3),
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """What a variant has over its baseline.

    Attributes:
        against: label of the baseline.
        value: metric minus the baseline's for a score; change in % for a cost.
        low, high, p_value: 95 % interval and paired p-value of a score's; None for a cost.
    """

    against: str
    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Cell:
    """One number of the comparison, or the reason why there is none.

    Attributes:
        column: what it is.
        value: in the column's unit; of a latency the median.
        low, high: 95 % interval of a score.
        p95: 95th percentile of a latency.
        n: samples behind a score.
        difference: to the baseline, None for the baseline itself.
        reason: why `value` is None.
        is_best: the best of all variants, where they compare.
    """

    column: Column
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p95: float | None = None
    n: int | None = None
    difference: Difference | None = None
    reason: str = ""
    is_best: bool = False

    @property
    def text(self) -> str:
        """The value as it is shown, without its unit."""
        return DASH if self.value is None else self.column.show(self.value)

    @property
    def spread(self) -> str:
        """The interval of a score, or the 95th percentile of a latency; empty if there is none."""
        if self.low is not None and self.high is not None:
            return f"{self.column.show(self.low)} {DASH} {self.column.show(self.high)}"
        return f"p95 {self.column.show(self.p95)}" if self.p95 is not None else ""

    @property
    def change(self) -> str:
        """The difference to the baseline with interval and p-value; empty if there is none."""
        difference, digits = self.difference, self.column.digits or 0
        if difference is None:
            return ""
        if difference.p_value is None or difference.low is None or difference.high is None:
            return f"{signed(difference.value, 0 if abs(difference.value) >= 9.95 else 1)}{_JOINED_SPACE}%"
        if difference.low == difference.high == difference.value == 0:
            return f"{signed(0.0, digits)}, {p_text(difference.p_value)}"
        low, high = signed(difference.low, digits), signed(difference.high, digits)
        return f"{signed(difference.value, digits)} ({low} … {high}), {p_text(difference.p_value)}"

    @property
    def verdict(self) -> str:
        """What the paired test says: `better`, `worse` or `no clear difference`; empty for costs and baselines."""
        difference = self.difference
        if difference is None or difference.p_value is None:
            return ""
        if difference.p_value >= _ALPHA or difference.value == 0:
            return "no clear difference"
        return "better" if (difference.value < 0) == (self.column.better == "lower") else "worse"


@dataclass(frozen=True)
class Table:
    """Variants × columns.

    Attributes:
        columns: what is compared.
        rows: for each variant its cells, one a column.
        notes: why numbers are missing, one sentence a reason.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Variant, tuple[Cell, ...]], ...]
    notes: tuple[str, ...]

    def cell(self, label: str, key: str) -> Cell:
        """Return the cell of a variant in a column."""
        cells = next(cells for variant, cells in self.rows if variant.label == label)
        return next(cell for cell in cells if cell.column.key == key)


def build_table(collected: Collected, columns: Sequence[Column]) -> Table:
    """Compare all variants by `columns`."""
    variants = collected.variants
    by_label = {variant.label: variant for variant in variants}
    grid = [[_cell(variant, by_label[variant.baseline], column) for column in columns] for variant in variants]
    for index in range(len(columns)):
        _mark_best(variants, grid, index)
    rows = tuple((variant, tuple(cells)) for variant, cells in zip(variants, grid, strict=True))
    return Table(tuple(columns), rows, _notes(rows))


def find_number(document: dict[str, Any] | None, *path: str) -> float | None:
    """Return the number at `path`, None if any part of the way is missing."""
    found: Any = document
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def three_figures(value: float) -> str:
    """Write a number with three figures that count: 1,234, 123, 12.3, 1.23, 0.123."""
    digits = next((digits for limit, digits in ((99.95, 0), (9.995, 1), (0.9995, 2)) if abs(value) >= limit), 3)
    return f"{value:,.{digits}f}"


def signed(value: float, digits: int) -> str:
    """Write a difference with its sign; what rounds to nothing is `±0`."""
    text = f"{abs(value):.{digits}f}"
    return ("±" if float(text) == 0 else "+" if value > 0 else "−") + text


def p_text(p_value: float) -> str:
    """Write a p-value: `p = 0.031`, `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _cell(variant: Variant, baseline: Variant, column: Column) -> Cell:
    reason = _why_missing(variant, column)
    if reason:
        return Cell(column, reason=reason)
    document = variant.scores if column.source == "scores" else variant.bench
    has_spread = find_number(document, *column.path) is None

    def read(key: str) -> float | None:
        value = find_number(document, *column.path, key)
        return None if value is None else value * column.scale

    if not has_spread:
        value = find_number(document, *column.path)
        assert value is not None
        return Cell(column, value * column.scale, difference=_cost_difference(variant, baseline, column))
    if column.source == "bench":
        return Cell(column, read("p50"), p95=read("p95"), difference=_cost_difference(variant, baseline, column))
    assert column.task is not None
    n = find_number(document, "tasks", column.task, "n")
    difference = _score_difference(variant, column)
    return Cell(
        column, read("value"), read("low"), read("high"), n=None if n is None else int(n), difference=difference
    )


def _why_missing(variant: Variant, column: Column) -> str:
    """Say why there is no number; nothing if there is one."""
    document = variant.scores if column.source == "scores" else variant.bench
    if document is None:
        verb, file = ("scored", "eval") if column.source == "scores" else ("measured", "bench")
        return f"not {verb}: the run holds no {file}/{variant.name}"
    if column.task is not None and column.task not in document["tasks"]:
        return f"not measured: the manifests hold no {column.task} samples"
    unavailable = document["tasks"][column.task].get("unavailable", {}) if column.task is not None else {}
    if column.key in unavailable:
        return f"not measured: {unavailable[column.key]}"
    leaf = "value" if column.source == "scores" else "p50"
    if find_number(document, *column.path, leaf) is None and find_number(document, *column.path) is None:
        return f"not measured: {column.source}.json does not tell it"
    return ""


def _score_difference(variant: Variant, column: Column) -> Difference | None:
    paired = (variant.scores or {}).get("paired")
    found = (paired or {}).get("metrics", {}).get(f"{column.task}.{column.key}")
    if not paired or not found:
        return None
    # The file knows the baseline's name; its label says of which run, too.
    label = variant.label.removesuffix(variant.name) + paired["against"]
    return Difference(label, found["difference"], found["low"], found["high"], found["p_value"])


def _cost_difference(variant: Variant, baseline: Variant, column: Column) -> Difference | None:
    if variant.label == baseline.label or (column.is_measured and not is_comparable([variant, baseline], "bench")):
        return None
    values = [
        find_number(which.bench, *column.path, "p50") or find_number(which.bench, *column.path)
        for which in (variant, baseline)
    ]
    if values[0] is None or not values[1]:
        return None
    return Difference(baseline.label, 100 * (values[0] / values[1] - 1))


def _mark_best(variants: Sequence[Variant], grid: list[list[Cell]], index: int) -> None:
    """Mark what prints as the best value, unless all print alike or they do not compare."""
    column = grid[0][index].column if grid else None
    found = [(variant, row[index]) for variant, row in zip(variants, grid, strict=True) if row[index].value is not None]
    if column is None or len({cell.text for _, cell in found}) < 2:
        return
    comparable = not column.is_measured or is_comparable([v for v, _ in found], column.source, column.task)
    if not comparable:
        return
    choose = min if column.better == "lower" else max
    best = choose((cell for _, cell in found), key=lambda cell: cell.value or 0.0).text
    for row in grid:
        row[index] = replace(row[index], is_best=row[index].text == best)


def _notes(rows: Sequence[tuple[Variant, tuple[Cell, ...]]]) -> tuple[str, ...]:
    reasons: dict[str, dict[str, list[str]]] = {}
    for variant, cells in rows:
        for cell in cells:
            if cell.reason:
                reasons.setdefault(cell.reason, {}).setdefault(variant.label, []).append(cell.column.head)
    notes = []
    for reason, labels in reasons.items():
        # Variants that lack the same numbers for the same reason share a sentence.
        lacking = Counter(", ".join(heads) for heads in labels.values())
        for heads in lacking:
            some = ", ".join(label for label, found in labels.items() if ", ".join(found) == heads)
            notes.append(f"{some}: {heads} {reason}.")
    return tuple(notes)
