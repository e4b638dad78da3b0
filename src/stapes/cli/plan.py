"""`stapes plan`: what a recipe will take, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..plan import Prediction, Verdict
    from ..recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    app.command()(plan)


def plan(
    recipes: Annotated[list[Path] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes, YAML files.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, v100-32gb, a100-80gb, h100-80gb, …; cpu, for nota v100-32gb.")
    ] = None,
    protocol: Annotated[
        Literal["stapes", "nota"],
        typer.Option(help="`stapes`: our model; `nota`: the published memory column, of the published implementation."),
    ] = "stapes",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Of weights that are not quantised, on a GPU.")
    ] = "float32",
    audio_s: Annotated[
        float | None, typer.Option(min=0.1, help="Length of the clip; that of `bench` unless given.")
    ] = None,
    drop_layers: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of encoder and LLM layers taken out after loading.")
    ] = 0.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores unless given.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Limits, e.g. memory=4GiB,ttft=300ms,tpot=20ms: which fit?")
    ] = None,
    search: Annotated[bool, typer.Option(help="Try compositions of public models instead of recipes.")] = False,
    calibrate: Annotated[bool, typer.Option(help="Measure this machine's CPU first, once.")] = False,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Predict memory, time and operations of each variant of a recipe, in seconds and without loading a weight.

    Example: `stapes plan recipes/tiny.yaml --device v100-32gb` or `stapes plan --search --budget memory=2GiB`
    """
    from ..errors import UsageError
    from ..plan import compose_recipes, find_device, parse_budget, rank
    from ..recipe import load_recipe
    from .printing import print_json
    from .run import parse_overrides

    if search and (recipes or budget is None):
        raise UsageError("--search wants a --budget and no recipe")
    if not recipes and not search and not calibrate:
        raise UsageError("name a recipe, or `--search` with a `--budget`, or `--calibrate`")
    target = find_device(device or ("v100-32gb" if protocol == "nota" else "cpu"), threads)
    check_protocol(protocol, target)
    if calibrate:
        _calibrate(threads)
    if not recipes and not search:
        return
    predict = make_predictor(target, protocol, dtype, audio_s, drop_layers)
    small_weights = "nf4" if target.kind == "cuda" else "int8"
    if search:
        listed = list(compose_recipes(small_weights))
    else:
        listed = [load_recipe(recipe, parse_overrides(override)) for recipe in recipes or ()]
    if budget is None:
        predictions = [prediction for recipe in listed for prediction in predict(recipe)]
        print_json([prediction.to_dict() for prediction in predictions]) if as_json else _print_table(predictions)
        return
    verdicts = rank(listed, parse_budget(budget), predict, small_weights=None if search else small_weights)
    print_json([_verdict_dict(verdict) for verdict in verdicts]) if as_json else _print_verdicts(verdicts, search)


def _calibrate(threads: int | None) -> None:
    from ..plan import calibrate, find_device

    cpu = find_device("cpu", threads)
    assert cpu.kind == "cpu"
    typer.echo(f"Measuring this CPU with {cpu.num_threads} threads: a minute or two, if nothing else runs …", err=True)
    typer.echo(f"kept in {calibrate(cpu.num_threads)}", err=True)


def check_protocol(protocol: Literal["stapes", "nota"], device: Any) -> None:
    """Refuse a protocol that is not measured on a device.

    Raises:
        UsageError: for `nota` on a CPU.
    """
    from ..errors import UsageError

    if protocol == "nota" and device.kind == "cpu":
        raise UsageError("--protocol nota is measured on a GPU; name one with --device, e.g. v100-32gb")


def make_predictor(
    device: Any, protocol: Literal["stapes", "nota"], dtype: Any, audio_s: float | None, drop_layers: float
) -> Callable[[Recipe], list[Prediction]]:
    """Make the function that predicts the variants of a recipe, with what was said on the command line.

    For a recipe of which the protocol knows no variant it raises UsageError.
    """
    from ..errors import UsageError
    from ..plan import default_workload, parts_of, plan_models, predict, read_calibration
    from ..recipe import Bench

    calibration = read_calibration(device.num_threads) if device.kind == "cpu" else None

    def predict_variants(recipe: Recipe) -> list[Prediction]:
        bench = recipe.bench or Bench.model_validate({})
        work = default_workload(audio_s or bench.audio_s, bench.new_tokens, parts_of(recipe).prompt)
        plans = [plan.with_dropped(drop_layers) for plan in plan_models(recipe)]
        if protocol == "nota":
            # The published implementation has no int8 linears.
            plans = [plan for plan in plans if plan.int8_skip is None]
            if not plans:
                raise UsageError(
                    f"{recipe.name}: --protocol nota has no int8 linears, and the recipe makes no other variant; "
                    "leave `--protocol nota` out, or plan the recipe of the model before `quantize`"
                )
        return [predict(plan, device, work, protocol=protocol, dtype=dtype, calibration=calibration) for plan in plans]

    return predict_variants


def _print_table(predictions: list[Prediction]) -> None:
    """Print figures × variants to stdout, and below it what they rest on."""
    from rich.console import Console
    from rich.table import Table

    shown = [prediction.to_dict() for prediction in predictions]
    first = shown[0]
    table = Table(title=f"{first['device']}, {first['audio_s']:g} s of audio, batch 1")
    table.add_column("", no_wrap=True)
    for one in shown:
        table.add_column(f"{one['recipe']}/{one['variant']}", justify="right", overflow="fold")

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(name, *[cell(one) for one in shown])

    row("parameters, M", lambda one: f"{one['parameters']['total'] / 1e6:.2f}")
    row("weights, MiB", lambda one: f"{sum(one['weight_bytes'].values()) / 2**20:.0f}")
    row("KV cache, MiB", lambda one: f"{one['kv_cache_bytes'] / 2**20:.1f}")
    row("activations, MiB", lambda one: f"{one['activation_bytes'] / 2**20:.1f}")
    table.add_section()
    row(f"peak memory ({first['memory_bytes']['kind']}), GiB", lambda one: f"{one['memory_bytes']['peak_gib']:.4f}")
    # Without the process's own memory, which is measured once, loading weights that are mapped takes nothing.
    row("  loading", lambda one: f"{peak / 2**30:.4f}" if (peak := one["memory_bytes"]["load_peak"]) else "–")
    row("  running", lambda one: f"{one['memory_bytes']['run_peak'] / 2**30:.4f}")
    row("  reached in", lambda one: one["memory_bytes"]["at"])
    for part in dict.fromkeys(part for one in shown for part in one["memory_bytes"]["by_part"]):
        if any(one["memory_bytes"]["by_part"].get(part) for one in shown):
            row(f"  {part}, MiB", lambda one, part=part: f"{one['memory_bytes']['by_part'].get(part, 0) / 2**20:.1f}")
    table.add_section()
    row("audio tokens a second", lambda one: f"{one['audio_tokens_per_s']:g}")
    for stage in first["work"]:
        row(f"{stage}, GFLOP", lambda one, stage=stage: f"{one['work'][stage]['flops'] / 1e9:.2f}")
        row(f"{stage}, moved MB", lambda one, stage=stage: f"{one['work'][stage]['moved_bytes'] / 1e6:.0f}")
    table.add_section()
    for name in ("ttft", "tpot"):
        row(f"{name}, ms", lambda one, name=name: f"{one['latency_ms'][name]:.1f}" if one["latency_ms"] else "–")
    table.add_section()
    for index, runtime in enumerate(first["runtimes"]):
        row(runtime["name"], lambda one, index=index: one["runtimes"][index]["verdict"])
    Console().print(table)
    for line in _notes(shown):
        typer.echo(line)


def _notes(shown: list[dict[str, Any]]) -> list[str]:
    """Say once what the figures rest on, and what stands in the way of a runtime."""
    notes: dict[str, list[str]] = {}
    for one in shown:
        variant = f"{one['recipe']}/{one['variant']}"
        if one["latency_ms"]:
            notes.setdefault(f"times: {one['latency_ms']['source']}", [])
        elif one["no_latency"]:
            notes.setdefault(f"no times: {one['no_latency']}", []).append(variant)
        if one["memory_bytes"]["missing"]:
            notes.setdefault(f"memory leaves out {one['memory_bytes']['missing']}", [])
        for runtime in one["runtimes"]:
            if runtime["why_not"]:
                notes.setdefault(f"{runtime['name']}: {runtime['why_not']}", []).append(variant)
        for part, source in one["sources"].items():
            notes.setdefault(f"shape of {part}: {source}", []).append(variant)
    return [
        f"{note} ({', '.join(variants)})" if 0 < len(variants) < len(shown) else note
        for note, variants in notes.items()
    ]


def _print_verdicts(verdicts: list[Verdict], is_search: bool) -> None:
    """Print which fit, best first, and why the others do not; of a search the best 10 and the nearest 3."""
    fitting = [verdict for verdict in verdicts if verdict.fits]
    others = [verdict for verdict in verdicts if not verdict.fits]
    for verdict in fitting[:10] if is_search else fitting:
        typer.echo(f"fits      {_line(verdict)}")
    for verdict in others[:3] if is_search else others:
        typer.echo(f"too much  {_line(verdict)}")
        if verdict.change is not None:
            assert verdict.changed is not None
            typer.echo(f"          would fit with {' '.join(f'--set {change!r}' for change in verdict.change)}")
        elif not is_search:
            typer.echo("          no change we know of makes it fit")
    if is_search:
        typer.echo(f"{len(fitting)} of {len(verdicts)} compositions fit")


def _line(verdict: Verdict) -> str:
    prediction = verdict.prediction
    figures = [f"memory {prediction.memory.peak / 2**30:.2f} GiB"]
    if prediction.latency is not None:
        figures += [f"ttft {prediction.latency.ttft:.0f} ms", f"tpot {prediction.latency.tpot:.1f} ms"]
    over = [f"{name} is {share:.1%} of its limit" for name, share in verdict.shares.items() if share > 1]
    reason = f"; {', '.join(over)}" if over else f"; {verdict.tightness:.0%} of the tightest limit"
    return f"{verdict.name}/{prediction.plan.variant}: {', '.join(figures)}{reason}"


def _verdict_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "recipe": verdict.name,
        "variant": verdict.prediction.plan.variant,
        "fits": verdict.fits,
        "shares": {name: round(share, 4) for name, share in verdict.shares.items()},
        "change": list(verdict.change) if verdict.change else None,
        "prediction": verdict.prediction.to_dict(),
        "changed": verdict.changed.to_dict() if verdict.changed else None,
    }
