"""The comparison for a terminal, and for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from .circumstances import Circumstances, describe_bench, describe_scores
from .collect import LEFT_OUT, Collected, Variant
from .table import COST, QUALITY, Cell, Table, build_table
from .tradeoff import build_panels

_HEAD_WIDTH, _COLUMN_WIDTH = 22, 24


def print_table(collected: Collected) -> None:
    """Print metrics × variants to stdout, and below it what the numbers were measured on.

    More variants than fit the terminal's width go into further tables.
    """
    console = Console(highlight=False)
    variants = collected.variants
    if not variants:
        console.print("no variant is scored or measured yet")
    quality, cost = build_table(collected, QUALITY), build_table(collected, COST)
    per_table = max(1, (console.width - _HEAD_WIDTH) // _COLUMN_WIDTH)
    for start in range(0, len(variants), per_table):
        console.print(_rich_table(variants[start : start + per_table], quality, cost))
    if variants:
        console.print("* best value; intervals are 95 %; small print: difference to the baseline, p of a paired test")
    for table, circumstances in ((quality, describe_scores(collected)), (cost, describe_bench(collected))):
        for note in table.notes:
            console.print(Text(note))
        if circumstances:
            console.print(Text(_in_short(circumstances)))
            for warning in circumstances.warnings:
                console.print(Text(f"warning: {warning}"))
    for run in collected.runs:
        for missing in run.missing:
            console.print(Text(f"{run.label}: {missing}"))
        if run.left_out:
            console.print(Text(f"{run.label}: {LEFT_OUT}: {', '.join(run.left_out)}"))


def summarize(collected: Collected) -> dict[str, Any]:
    """Return the comparison as one JSON-ready document.

    Returns:
        `runs` (run, folder, missing, left_out), `variants` (run, variant, baseline and `columns`: each with value,
        unit, better, best, and where there are such: low, high, p95, n, difference, or the `reason` why there is no
        value), `fronts` (quality, cost, variants or null where they do not compare), `circumstances` and `warnings` of
        scores and bench.
    """
    tables = [build_table(collected, columns) for columns in (QUALITY, COST)]
    described = {"scores": describe_scores(collected), "bench": describe_bench(collected)}
    return {
        "runs": [
            {"run": run.label, "folder": str(run.folder), "missing": list(run.missing), "left_out": list(run.left_out)}
            for run in collected.runs
        ],
        "variants": [
            {
                "run": variant.run,
                "variant": variant.name,
                "label": variant.label,
                "baseline": variant.baseline,
                "columns": {cell.column.key: _cell(cell) for table in tables for cell in table.rows[index][1]},
            }
            for index, variant in enumerate(collected.variants)
        ],
        "fronts": [
            {
                "quality": panel.quality.key,
                "cost": panel.cost.key,
                "variants": None if panel.front is None else list(panel.front),
            }
            for panel in build_panels(collected)
        ],
        "circumstances": {name: dict(found.facts) if found else None for name, found in described.items()},
        "warnings": {name: list(found.warnings) if found else [] for name, found in described.items()},
    }


def _rich_table(variants: Sequence[Variant], quality: Table, cost: Table) -> RichTable:
    table = RichTable()
    table.add_column("", no_wrap=True)
    for variant in variants:
        table.add_column(Text(variant.label), justify="right", overflow="fold", max_width=_COLUMN_WIDTH - 3)
    for part in (quality, cost):
        for column in part.columns:
            cells = [part.cell(variant.label, column.key) for variant in variants]
            table.add_row(column.title, *[_rich_cell(cell) for cell in cells])
        table.add_section()
    return table


def _rich_cell(cell: Cell) -> Text:
    """Write value and interval in a line, difference and p-value below it."""
    text = Text()
    text.append(cell.text + ("*" if cell.is_best else ""), style="bold" if cell.is_best else "")
    if cell.spread:
        text.append(f" {cell.spread}" if cell.p95 is not None else f" ({cell.spread})", style="dim")
    if cell.change:
        text.append("\n" + cell.change.replace("), ", ")\n"), style="dim")
    return text


def _in_short(circumstances: Circumstances) -> str:
    """Name what a number cannot be read without; the report has the rest."""
    wanted = ("samples", "clip", "protocol", "runs that count", "device", "dtype", "threads", "torch", "commit", "date")
    facts = dict(circumstances.facts)
    seeds = [f"{name} {value}" for name, value in facts.items() if name.startswith("seed")]
    return "; ".join([*(_label(name) + facts[name] for name in wanted if name in facts), *seeds])


def _label(name: str) -> str:
    return "" if name in ("samples", "clip", "device", "date") else f"{name} "


def _cell(cell: Cell) -> dict[str, Any]:
    if cell.value is None:
        return {"value": None, "reason": cell.reason}
    shown: dict[str, Any] = {"value": cell.value, "unit": cell.column.unit, "better": cell.column.better}
    shown |= {key: getattr(cell, key) for key in ("low", "high", "p95", "n") if getattr(cell, key) is not None}
    shown["best"] = cell.is_best
    if cell.difference:
        found = vars(cell.difference)
        shown["difference"] = {key: value for key, value in found.items() if value is not None}
        shown["difference"]["unit"] = (
            "%" if cell.difference.p_value is None else "points" if cell.column.unit == "%" else ""
        )
    return shown
