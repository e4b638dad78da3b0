"""`stapes report`: compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    app.command()(report)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, e.g. runs/tiny; finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for report.html and report.md; RUN/report, or report if several."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=0, help="Samples to show and hear; 8 unless given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare the variants of one or several runs: a table, and a page with plots and samples to hear.

    Example: `stapes report runs/tiny runs/base --out runs/compared`
    """
    from ..recipe.sections import Report
    from ..report import build_report, collect, print_table, summarize
    from .printing import print_json

    collected = collect(runs)
    num_samples = Report.model_fields["samples"].default if samples is None else samples
    folder = out or (runs[0] / "report" if len(runs) == 1 else Path("report"))
    page = build_report(runs, folder, num_samples=num_samples, seed=seed)
    if as_json:
        print_json({**summarize(collected), "report": str(page)})
        return
    print_table(collected)
    typer.echo(page)
