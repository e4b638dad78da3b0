"""`stapes ablate`: recipes that differ in a few keys, side by side."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..plan.ablation import Ablation
    from ..recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    app.command()(ablate)


def ablate(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="Recipes; those named GROUP-… make a table of that name.")
    ],
    run: Annotated[bool, typer.Option("--run", help="Run them too, one after the other, and measure.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder of run folders, read for what is measured, and of report/.", metavar="DIR")
    ] = Path("runs"),
    device: Annotated[str | None, typer.Option(help="As for `stapes plan`: cpu; for nota v100-32gb.")] = None,
    protocol: Annotated[
        Literal["stapes", "nota"], typer.Option(help="As for `stapes plan`; `nota`: the published memory column.")
    ] = "stapes",
    report: Annotated[
        bool, typer.Option("--report", help="Write DIR/report with these tables, as `--run` does at its end.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all rows there, unrounded.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of all recipes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare recipes in tables: what they change, what is predicted, and what their runs measured.

    Nothing is loaded unless `--run` is given. Then finished steps are skipped, and `DIR/report` compares all runs and
    holds these tables.

    Example: `stapes ablate recipes/ablations/*.yaml --protocol nota --csv ablation.csv`
    """
    from ..files import write_text
    from ..plan import find_device
    from ..plan.ablation import compare_recipes, to_csv, to_markdown
    from ..recipe import load_recipe
    from .plan import check_protocol, make_predictor
    from .printing import print_json
    from .run import parse_overrides

    loaded = {recipe: load_recipe(recipe, parse_overrides(override)) for recipe in recipes}
    target = find_device(device or ("v100-32gb" if protocol == "nota" else "cpu"), None)
    check_protocol(protocol, target)
    predict = make_predictor(target, protocol, "float32", None, 0.0)
    # First, so that a mistake in the last recipe is found before the first has run for days.
    ablation = compare_recipes(loaded, predict, out)
    if run:
        _run(loaded, out)
        ablation = compare_recipes(loaded, predict, out)
    if run or report:
        words = ["stapes", "ablate", *map(str, recipes), "--report", "--out", str(out), "--protocol", protocol]
        words += ["--device", device] if device else []
        words += [word for change in override or () for word in ("--set", change)]
        _report([out / recipe.name for recipe in loaded.values()], out / "report", ablation, shlex.join(words))
    if csv is not None:
        write_text(csv, to_csv(ablation))
    if as_json:
        print_json({"tables": ablation.tables, "circumstances": list(ablation.circumstances)})
    else:
        typer.echo(to_markdown(ablation), nl=False)


def _run(recipes: dict[Path, Recipe], out: Path) -> None:
    from ..run import check_recipe, run_recipe
    from .printing import Says, quiet_libraries

    quiet_libraries()
    say = Says()
    for path, recipe in recipes.items():
        check_recipe(recipe, str(path))
    for recipe in recipes.values():
        run_recipe(recipe, out / recipe.name, redo=False, say=say)


def _report(runs: list[Path], folder: Path, ablation: Ablation, command: str) -> None:
    """Write the report of those runs that there are, with the tables of all recipes; `command` writes it again."""
    from ..plan.ablation import show_tables
    from ..recipe.sections import Report
    from ..report import build_report

    build_report(
        [run for run in runs if run.is_dir()],
        folder,
        num_samples=Report.model_fields["samples"].default,
        seed=0,
        tables=show_tables(ablation),
        table_notes=ablation.circumstances,
        command=command,
    )
