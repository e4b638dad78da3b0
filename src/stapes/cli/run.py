"""`stapes run` and `stapes check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. train.align.max_steps=10.")
]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the program."""
    app.command()(run)
    app.command()(check)


def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME unless given.")] = None,
    override: _Overrides = None,
    redo: Annotated[bool, typer.Option(help="Make steps anew whose settings have changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Go from audio files to a compared report; finished steps are skipped, interrupted ones resumed.

    Example: `stapes run recipes/tiny.yaml --set train.align.max_steps=20 --out runs/quick`
    """
    from ..recipe import load_recipe
    from ..run import check_recipe, run_recipe
    from .printing import Says, print_json, print_report_table, quiet_libraries

    loaded = load_recipe(recipe, parse_overrides(override))
    quiet_libraries()
    say = Says()
    check_recipe(loaded, str(recipe))
    summary = run_recipe(loaded, out or Path("runs") / loaded.name, redo=redo, say=say)
    if summary.report is None:
        return
    if as_json:
        print_json(
            {
                "run": str(summary.folder),
                "report": str(summary.report),
                "made": summary.made,
                "skipped": summary.skipped,
            }
        )
        return
    print_report_table(summary.folder)
    typer.echo(summary.report)


def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    override: _Overrides = None,
    resolved: Annotated[bool, typer.Option(help="Print the whole recipe, defaults and `extends` included.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the resolved recipe as JSON.")] = False,
) -> None:
    """Check a recipe without loading a model: keys, values, order of steps, manifests, and that tests are not learnt.

    Whether its weights, packages and devices are there depends on the machine: `stapes run` tells before it begins.

    Example: `stapes check recipes/tiny.yaml --resolved`
    """
    from ..recipe import dump_recipe, load_recipe
    from ..run import check_splits
    from .printing import print_json

    loaded = load_recipe(recipe, parse_overrides(override))
    if any(stage.trainer for stage in loaded.train.values()):
        # Seconds of imports, which most recipes do without.
        from ..train.arguments import check_trainer_keys

        for name, stage in loaded.train.items():
            check_trainer_keys(str(recipe), name, stage)
    counts = {str(path): count for path, count in sorted(check_splits(loaded, str(recipe)).items())}
    if as_json:
        print_json({"recipe": loaded.model_dump(mode="json"), "samples": counts})
    elif resolved:
        typer.echo(dump_recipe(loaded), nl=False)
    else:
        stages = ", ".join(f"{name} ({stage.max_steps} steps)" for name, stage in loaded.train.items())
        steps = ", ".join(step.kind for step in loaded.compress) or "nothing"
        typer.echo(f"{recipe}: fine. Trains {stages}; compresses by {steps}; {sum(counts.values())} samples.")


def parse_overrides(overrides: list[str] | None) -> dict[str, Any]:
    """Read what `--set KEY=VALUE` was given.

    Raises:
        UsageError: if a text is not of that form.
    """
    from ..errors import UsageError
    from ..recipe import parse_value

    parsed = {}
    for text in overrides or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {text}: wanted KEY=VALUE, e.g. train.align.max_steps=10")
        parsed[key] = parse_value(value)
    return parsed
