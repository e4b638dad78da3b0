"""The report in short: the best values, and each variant against its baseline, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .collect import Collected, Variant
from .table import Cell, Table

_HEADLINES = {
    "wer": "lowest WER",
    "cider_d": "highest CIDEr-D",
    "spider": "highest SPIDEr",
    "exact_match": "most exact matches",
    "files_mb": "smallest files",
    "run_peak_mb": "lowest peak at run",
    "ttft_ms": "shortest TTFT",
}
_CHANGES = ("files_mb", "run_peak_mb", "ttft_ms", "tpot_ms")


@dataclass(frozen=True)
class Headline:
    """A number at the top of the page.

    Attributes:
        value: with its unit.
        title: what it is, and that it is the best if others were measured.
        labels: the variants that have it.
        spread: its interval or 95th percentile.
    """

    value: str
    title: str
    labels: str
    spread: str


@dataclass(frozen=True)
class Comparison:
    """A variant against its baseline.

    Attributes:
        label, against: the two.
        scores: by verdict (`better`, `worse`, `no clear difference`) the scores it is of, with their change.
        costs: those that matter most, with their change in %.
        agreement: how many answers are the same text; empty if none can be paired.
    """

    label: str
    against: str
    scores: dict[str, list[str]]
    costs: tuple[str, ...]
    agreement: str


def build_headlines(tables: Sequence[Table]) -> list[Headline]:
    """Take the best value of the main columns; where variants do not compare, none is taken."""
    headlines = []
    for table in tables:
        for index, column in enumerate(table.columns):
            cells = [(variant.label, cells[index]) for variant, cells in table.rows if cells[index].value is not None]
            best = [(label, cell) for label, cell in cells if cell.is_best]
            if column.key not in _HEADLINES or not cells:
                continue
            if not best and len({cell.text for _, cell in cells}) == 1:
                best = cells
            if best:
                cell = best[0][1]
                title = _HEADLINES[column.key] if len(cells) > len(best) else column.head
                labels = "all variants" if 1 < len(cells) == len(best) else ", ".join(label for label, _ in best)
                spread = cell.spread if len(best) == 1 else ""
                headlines.append(Headline(f"{cell.text} {column.unit}".rstrip(), title, labels, spread))
    return headlines


def build_comparisons(collected: Collected, quality: Table, cost: Table) -> list[Comparison]:
    """Put each variant beside its baseline; those without one, or without anything in common with it, are left out."""
    by_label = {variant.label: variant for variant in collected.variants}
    comparisons = []
    for variant in collected.variants:
        scores = [cell for cell in _cells(quality, variant) if cell.difference]
        costs = [cell for cell in _cells(cost, variant) if cell.difference and cell.column.key in _CHANGES]
        if scores or costs:
            against = next(cell.difference.against for cell in (*scores, *costs) if cell.difference)
            # An evaluation may have been compared with another variant than the run's baseline.
            costs = [cell for cell in costs if cell.difference and cell.difference.against == against]
            verdicts: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": []}
            for cell in scores:
                verdicts[cell.verdict].append(f"{cell.column.head} {_change(cell)}")
            changes = tuple(f"{cell.column.head} {cell.change}" for cell in costs)
            shown = {verdict: heads for verdict, heads in verdicts.items() if heads}
            agreement = _agreement(variant, by_label.get(against))
            comparisons.append(Comparison(variant.label, against, shown, changes, agreement))
    return comparisons


def _cells(table: Table, variant: Variant) -> Sequence[Cell]:
    return next(cells for row, cells in table.rows if row.label == variant.label)


def _change(cell: Cell) -> str:
    """Write the difference alone; percentages differ by points."""
    return cell.change.partition(" (")[0].partition(",")[0] + (" points" if cell.column.unit else "")


def _agreement(variant: Variant, baseline: Variant | None) -> str:
    """Count the answers that are the same text as the baseline's; nothing where none can be paired."""
    if baseline is None:
        return ""
    theirs = {line["id"]: line["text"] for line in baseline.predictions}
    pairs = [(line["text"], theirs[line["id"]]) for line in variant.predictions if line["id"] in theirs]
    same = sum(ours == other for ours, other in pairs)
    return f"{same} of {len(pairs)} answers are the same text" if pairs else ""
