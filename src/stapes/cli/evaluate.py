"""`stapes eval`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_Protocol = Annotated[
    Literal["stapes", "nota-v1", "nota-v1.1"],
    typer.Option(help="`nota-…`: also score as published figures are, into scores_PROTOCOL.json."),
]


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
    protocol: _Protocol = "stapes",
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling behind intervals and p-values.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores.json.")] = False,
) -> None:
    """Score a model on manifests: word errors, captions, answers, each with a 95 % interval.

    An interrupted evaluation goes on where it stopped; a finished one is only scored anew. SPIDEr needs aac-metrics.

    Example: `stapes eval runs/tiny/quantize --manifest data/speech_test.jsonl --out runs/speech/quantize`
    """
    from ..defaults import find_model, is_default
    from ..evaluate.predict import evaluate_model, score_published
    from ..recipe import Evaluate
    from .printing import print_json, quiet_libraries

    quiet_libraries()
    defaults = Evaluate.model_fields
    folder = find_model(model)
    out = out or (Path() if is_default(model) else folder.resolve().parent) / "eval" / folder.resolve().name

    make = partial(
        evaluate_model,
        folder,
        manifest,
        batch_size=batch_size or defaults["batch_size"].default,
        max_new_tokens=max_new_tokens or defaults["max_new_tokens"].default,
        limit=limit,
        against=against,
        seed=seed,
    )
    scores = _make_or_go_on(out, make)
    if protocol != "stapes":
        scores = score_published(out, protocol, against)
    if as_json:
        print_json(scores)
        return
    _print_table(scores)
    typer.echo(out)


def _make_or_go_on(out: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    from ..files import staged_folder

    if out.exists():
        return make(out)
    with staged_folder(out, keep_on_error=True) as work:
        return make(work)


def _print_table(scores: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    paired = scores.get("paired")
    protocol = f", {scores['protocol']}" if "protocol" in scores else ""
    table = Table(title=f"{scores['variant']}{protocol}")
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
                f"{name}{_references(metric)}",
                f"{metric['value']:.{digits}f}{unit}",
                f"{metric['low']:.{digits}f} – {metric['high']:.{digits}f}",
            ]
            if paired:
                difference = paired["metrics"][f"{task}.{name}"]
                value, low, high = (f"{difference[key]:+.{digits}f}" for key in ("difference", "low", "high"))
                cells += [f"{value} ({low} … {high})", f"{difference['p_value']:.3f}"]
            table.add_row(*cells)
        for name in scored.get("unavailable", ()):
            table.add_row(task, str(scored["n"]), name, "unavailable")
    Console().print(table)
    for task, scored in scores["tasks"].items():
        for name, metric in scored["metrics"].items():
            if "printed" in metric:
                typer.echo(f"{task} {name}: {scores['protocol']} prints `{metric['printed']}`")
        for name, reason in scored.get("unavailable", {}).items():
            typer.echo(f"{task} {name} is unavailable: {reason}")


def _references(metric: dict[str, Any]) -> str:
    count = metric.get("references")
    if count is None:
        return ""
    if isinstance(count, list):
        return f", {count[0]} to {count[1]} references"
    return f", {count} reference{'' if count == 1 else 's'}"
