"""`stapes eval`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    app.command("eval")(evaluate)


def evaluate(
    manifest: Annotated[list[Path], typer.Option(help="What to answer; may be given several times.")],
    model: Annotated[
        Path | None, typer.Argument(help="A model folder, e.g. runs/tiny/merge_lora; stapes-tiny unless given.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for predictions.jsonl and scores.json; eval/NAME beside the model, of stapes-tiny here."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples at once, 8 unless given; the texts do not depend on it.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="At most this many tokens of answer, 64 unless given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples of each manifest.")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="EVAL_DIR", help="A finished evaluation on the same samples to compare with.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the resampling behind intervals and p-values.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores.json.")] = False,
) -> None:
    """Score a model on manifests: word errors, captions, answers, each with a 95 % interval.

    An interrupted evaluation goes on where it stopped; a finished one is only scored anew.

    Example: `stapes eval runs/tiny/quantize --manifest data/speech_test.jsonl --against runs/tiny/eval/tune`
    """
    from ..defaults import find_model
    from ..evaluate.predict import evaluate_model
    from ..recipe import Evaluate
    from .printing import print_json, quiet_libraries

    quiet_libraries()
    defaults = Evaluate.model_fields
    folder = find_model(model)
    out = out or (Path() if model is None else folder.resolve().parent) / "eval" / folder.resolve().name

    def evaluate_in(work: Path) -> dict[str, Any]:
        return evaluate_model(
            folder,
            manifest,
            work,
            batch_size=batch_size or defaults["batch_size"].default,
            max_new_tokens=max_new_tokens or defaults["max_new_tokens"].default,
            limit=limit,
            against=against,
            seed=seed,
        )

    scores = _make_or_go_on(out, evaluate_in)
    if as_json:
        print_json(scores)
        return
    _print_table(scores)
    typer.echo(out)


def _make_or_go_on(out: Path, evaluate_in: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    from ..files import staged_folder

    if out.exists():
        return evaluate_in(out)
    with staged_folder(out, keep_on_error=True) as work:
        return evaluate_in(work)


def _print_table(scores: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    paired = scores.get("paired")
    table = Table(title=scores["variant"])
    for column in ("task", "n", "metric", "value", "95 % interval"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    if paired:
        table.add_column(f"minus {paired['against']}", justify="right")
        table.add_column("p", justify="right")
    for task, scored in scores["tasks"].items():
        for name, metric in scored["metrics"].items():
            digits, unit = (1, " %") if metric["unit"] == "%" else (2, "")
            cells = [
                task,
                str(scored["n"]),
                name,
                f"{metric['value']:.{digits}f}{unit}",
                f"{metric['low']:.{digits}f} – {metric['high']:.{digits}f}",
            ]
            if paired:
                difference = paired["metrics"][f"{task}.{name}"]
                value, low, high = (f"{difference[key]:+.{digits}f}" for key in ("difference", "low", "high"))
                cells += [f"{value} ({low} … {high})", f"{difference['p_value']:.3f}"]
            table.add_row(*cells)
    Console().print(table)
