"""`stapes bench`: how fast, how large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from ..bench import BenchSettings


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    app.command()(bench)


def bench(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[MODEL]...", help="Model folders, e.g. runs/tiny/tune; stapes-tiny unless given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .json file for one model, or a folder that gets VARIANT/bench.json of each.")
    ] = None,
    protocol: Annotated[
        Literal["stapes", "nota"],
        typer.Option(help="`stapes` measures a whole answer; `nota` is the published one: 10 s of noise, two tokens."),
    ] = "stapes",
    audio: Annotated[Path | None, typer.Option(help="Measure with this recording, whole.")] = None,
    audio_s: Annotated[float | None, typer.Option(help="Length of the made-up clip, seconds; 10 unless given.")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=2, help="Tokens to answer; 16 unless given.")] = None,
    warmup: Annotated[int | None, typer.Option(min=0, help="Runs before those that count; 3, for nota 10.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Runs that count; 20, for nota 100.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch decides unless given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the made-up clip.")] = 0,
    device: Annotated[str | None, typer.Option(help="torch device; the first GPU, else the CPU.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one object a model.")] = False,
) -> None:
    """Measure latency by part, memory and size, one model after another, each in a process of its own.

    The search for a transcript before the first token (models with `ctc_weight`) is not timed. LoRA adapters
    are measured beside the weights, as a folder has them; `merge_lora` writes one without.

    Example: `stapes bench runs/tiny/tune runs/tiny/quantize --threads 2`
    """
    from ..bench import bench_model
    from ..defaults import find_model
    from .printing import print_json

    settings = _settings(
        protocol,
        {"audio_s": audio_s, "new_tokens": new_tokens, "warmup": warmup, "repeats": repeats},
        {"seed": seed, "audio": audio, "num_threads": threads, "device": device},
    )
    named = [find_model(model) for model in models or [None]]
    outputs = _outputs(named, out)
    results = []
    for model, path in zip(named, outputs, strict=True):
        with _progress(str(model)) as on_progress:
            results.append(bench_model(model, settings, out_path=path, on_progress=on_progress))
    if as_json:
        print_json(results)
    else:
        _print_table(results, named)


def _settings(protocol: Literal["stapes", "nota"], given: dict[str, Any], others: dict[str, Any]) -> BenchSettings:
    """Complete what was `given` with the protocol's own values; the recipe section holds those of `stapes`."""
    from dataclasses import replace

    from ..bench import NOTA, BenchSettings
    from ..errors import UsageError
    from ..recipe import Bench

    given = {name: value for name, value in given.items() if value is not None}
    if protocol == "stapes":
        defaults = {name: field.default for name, field in Bench.model_fields.items()}
        return BenchSettings(**{**defaults, **given}, **others)
    fixed = [name for name in ("audio_s", "new_tokens") if name in given] + ["audio"] * (others["audio"] is not None)
    if fixed:
        options = ", ".join("--" + name.replace("_", "-") for name in fixed)
        raise UsageError(f"--protocol nota prescribes its own clip and one cached step; leave out {options}")
    return replace(NOTA, **given, **others)


def _outputs(models: list[Path], out: Path | None) -> list[Path | None]:
    from ..errors import UsageError

    if out is None:
        return [None] * len(models)
    if out.suffix == ".json":
        if len(models) > 1:
            raise UsageError(f"--out {out}: one file cannot take {len(models)} models; name a folder")
        return [out]
    variants = [model.resolve().name for model in models]
    for variant in variants:
        if variants.count(variant) > 1:
            raise UsageError(f"--out {out}: several models are called `{variant}`; measure them one by one")
    return [out / variant / "bench.json" for variant in variants]


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how far the measuring of one model is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{name}: loading", total=None)

        def on_progress(done: int, of: int) -> None:
            progress.update(task, description=name, completed=done, total=of)

        yield on_progress


def _print_table(results: list[dict[str, Any]], models: list[Path]) -> None:
    """Print parts × models to stdout, and below it what the numbers were measured on."""
    from rich.console import Console
    from rich.table import Table

    first = results[0]
    names = [result["variant"] for result in results]
    if len(set(names)) < len(names):
        names = [str(model) for model in models]
    table = Table(title=f"{first['audio_s']:g} s of {first['audio']}, batch 1, {first['new_tokens']} tokens")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for part in first["latency_ms"]:
        cells = [result["latency_ms"][part] for result in results]
        table.add_row(f"{part}, ms", *[f"{cell['p50']:.1f} / {cell['p95']:.1f}" for cell in cells])
    table.add_row("real-time factor", *[f"{r['rtf']['p50']:.3f} / {r['rtf']['p95']:.3f}" for r in results])
    table.add_section()
    for key in ("files", "before_load", "load_peak", "run_peak"):
        table.add_row(f"{key}, MiB", *[f"{result['memory_bytes'][key] / 2**20:.0f}" for result in results])
    for part in first["parameters"]:
        table.add_row(f"{part} parameters, M", *[f"{result['parameters'][part] / 1e6:.2f}" for result in results])
    if first["protocol"] == "nota":
        table.add_section()
        table.add_row("nota latency (mean), s", *[f"{result['nota']['latency_s']:.4f}" for result in results])
        table.add_row("nota memory, GiB", *[f"{result['nota']['memory_gib']:.4f}" for result in results])
    console = Console()
    console.print(table)
    console.print(_circumstances(first), highlight=False)
    searching = [name for name, r in zip(names, results, strict=True) if r.get("leaves_out_transcript_search")]
    if searching:
        told = f"latencies leave out the search for a transcript before the first token: {', '.join(searching)}"
        console.print(told, highlight=False)


def _circumstances(result: dict[str, Any]) -> str:
    environment, memory = result["environment"], result["memory_bytes"]
    threads = f", {environment['num_threads']} threads" if environment["device"] == "cpu" else ""
    lines = [
        f"p50 / p95 of {result['repeats']} runs after {result['warmup']}; {environment['device_name']}{threads}; "
        f"torch {environment['versions']['torch']}; memory is {memory['kind']}",
    ]
    if memory.get("run_peak_includes_load"):
        lines.append("this system cannot reset the peak of a process: run_peak includes loading")
    if result.get("nota", {}).get("reduced"):
        lines.append("reduced: fewer runs than the nota protocol prescribes (10 and 100)")
    return "\n".join(lines)
