"""Turn run folders into `report.html`, one file that needs nothing else, and `report.md`, the same without pictures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..environment import environment
from ..files import write_text
from .circumstances import describe_bench, describe_scores, environment_facts, shorten
from .collect import LEFT_OUT, Collected, Run, collect
from .plots import PARTS, SERIES, draw_latency, draw_losses, draw_tradeoff, part_colours
from .samples import choose_samples
from .summary import build_comparisons, build_headlines
from .table import COST, DASH, QUALITY, build_table, find_number, three_figures
from .tradeoff import build_panels

PAGE, TEXT = "report.html", "report.md"

_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]|~$])")
_LATENCIES = {
    **dict(PARTS),
    "prompt": "prompt",
    "ttft": "first token (TTFT)",
    "total": "whole answer",
    "generate_total": "plain generate",
}
_MEMORIES = {"before_load": "before loading", "load_peak": "peak at load", "run_peak": "peak at run"}
_PARAMETERS = {
    "speech_encoder": "speech encoder",
    "sound_encoder": "sound encoder",
    "connector": "connector",
    "language_model": "language model",
    "lora": "adapters (LoRA)",
    "total": "all",
}


class TextTable(Protocol):
    """A table that is shown as it comes, such as those of `stapes ablate`."""

    @property
    def title(self) -> str:
        """Its head line."""
        ...

    @property
    def shared(self) -> str:
        """What is the same in all rows; may be empty."""
        ...

    @property
    def heads(self) -> Sequence[str]:
        """The columns' names."""
        ...

    @property
    def is_number(self) -> Sequence[bool]:
        """Which columns hold numbers."""
        ...

    @property
    def rows(self) -> Sequence[Sequence[str]]:
        """The cells; the first of each row names it."""
        ...


def build_report(
    folders: Sequence[Path],
    out: Path,
    *,
    num_samples: int,
    seed: int,
    tables: Sequence[TextTable] = (),
    table_notes: Sequence[str] = (),
    command: str | None = None,
) -> Path:
    """Write `report.html` and `report.md` about one or several run folders, finished or not.

    Args:
        folders: run folders.
        out: folder for the two files; made if it is not there, older reports are replaced.
        num_samples: samples to show with their audio; 0 for none.
        seed: of the choice of samples.
        tables, table_notes: shown first, and what they rest on.
        command: what writes this report again; that of `stapes report` unless given.

    Returns:
        The path of `report.html`: pictures and audio are inside it, and it asks nothing of the network.

    Raises:
        StapesError: if a folder is no run folder or holds a file that cannot be read.
    """
    collected = collect(folders)
    content = _content(collected, num_samples, seed) | {"tables": tables, "table_notes": table_notes}
    if command is not None:
        content["command"] = command
    # Texts come from manifests and models: everything is escaped but the charts, which are ours.
    templates = Environment(
        loader=PackageLoader("stapes.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"markdown": escape_markdown, "code": _code, "breakable": _breakable}
    for name in (PAGE, TEXT):
        write_text(out / name, templates.get_template(f"{name}.j2").render(content))
    return out / PAGE


def escape_markdown(text: object) -> Markup:
    """Escape what Markdown and the HTML inside it would take for more than text; line ends become spaces."""
    plain = " ".join(str(text).split())
    # html escapes quotes as well, which in running text is only noise.
    safe = str(escape(plain)).replace("&#39;", "'").replace("&#34;", '"')
    return Markup(_MARKDOWN_SIGNS.sub(r"\\\1", safe))


def _code(text: str) -> Markup:
    """Let a command stand in a fenced block, where nothing is an entity and only a new line could end it."""
    return Markup(text.replace("\n", " "))


def _content(collected: Collected, num_samples: int, seed: int) -> dict[str, Any]:
    """Gather what both pages show."""
    quality, cost = build_table(collected, QUALITY), build_table(collected, COST)
    labels = [variant.label for variant in collected.variants]
    stages = list(dict.fromkeys(stage.name for run in collected.runs for stage in run.stages))
    panels = build_panels(collected)
    words = ["stapes", "report", *(shorten(run.folder) for run in collected.runs)]
    return {
        "title": ", ".join(run.label for run in collected.runs) or "Recipes",
        "runs": collected.runs,
        "left_out": LEFT_OUT,
        "recipes": [
            (run, shorten(run.folder / "recipe.yaml"), _relative(run.recipe)) for run in collected.runs if run.recipe
        ],
        "variants": collected.variants,
        "baselines": list(dict.fromkeys(variant.baseline for variant in collected.variants)),
        "headlines": build_headlines([quality, cost]),
        "comparisons": build_comparisons(collected, quality, cost),
        "sections": [
            {"name": "Quality", "id": "quality", "table": quality, "circumstances": describe_scores(collected)},
            {"name": "Cost", "id": "cost", "table": cost, "circumstances": describe_bench(collected)},
        ],
        "panels": [(panel, draw_tradeoff(panel, labels)) for panel in panels],
        "latency": draw_latency(collected),
        "parts": part_colours(),
        "details": _details(collected),
        "losses": [(stage, draw_losses(collected.runs, stage)) for stage in stages],
        "steps": [(run, _steps(run), _total(run)) for run in collected.runs if run.steps],
        "step_facts": environment_facts(
            [
                (f"{run.label}/{step.get('step')}", step.get("environment") or {})
                for run in collected.runs
                for step in run.steps
            ]
        ),
        "samples": choose_samples(collected.variants, num_samples, seed),
        "seed": seed,
        "series": SERIES,
        "dash": DASH,
        "command": shlex.join([*words, "--samples", str(num_samples), "--seed", str(seed)]),
        "environment": environment(),
    }


def _breakable(name: str) -> Markup:
    """Let a narrow column break a name after its underscores and slashes."""
    return Markup(re.sub(r"([_/])", r"\1<wbr>", str(escape(name))))


def _relative(recipe: str) -> str:
    """Write paths below the current folder as relative to it."""
    return re.sub(r"(?<![^\s'\"\[{])" + re.escape(f"{Path.cwd()}/"), "", recipe)


def _details(collected: Collected) -> dict[str, Any]:
    """List what the cost table has no room for: parts of latency, memory and size, a column a variant."""
    measured = [variant.bench for variant in collected.variants if variant.bench]
    latency = {}
    for key, name in _LATENCIES.items():
        values = [[find_number(bench, "latency_ms", key, part) for part in ("p50", "p95")] for bench in measured]
        latency[name] = [" / ".join(_show(value) for value in pair) if any(pair) else DASH for pair in values]
    memory = {name: [_millions(bench, "memory_bytes", key) for bench in measured] for key, name in _MEMORIES.items()}
    size = {name: [_millions(bench, "parameters", key) for bench in measured] for key, name in _PARAMETERS.items()}
    groups = {"latency, ms (p50 / p95)": latency, "memory, MB": memory, "parameters, M": size}
    # `prompt` is measured by one protocol only, plain `generate` by the other.
    shown = {
        head: [(name, cells) for name, cells in rows.items() if set(cells) != {DASH}] for head, rows in groups.items()
    }
    return {
        "labels": [variant.label for variant in collected.variants if variant.bench],
        "groups": {head: rows for head, rows in shown.items() if rows},
    }


def _steps(run: Run) -> list[tuple[str, str, str]]:
    """List name, seconds and result of each finished step."""
    rows = []
    for step in run.steps:
        seconds = step.get("seconds")
        result = step.get("result") if isinstance(step.get("result"), dict) else {}
        told = ", ".join(f"{key.replace('_', ' ')} {_result(value)}" for key, value in (result or {}).items())
        rows.append((str(step.get("step")), DASH if seconds is None else f"{seconds:,.1f}", told))
    return rows


def _total(run: Run) -> str:
    """Write the seconds of all steps as hours, minutes and seconds."""
    minutes, seconds = divmod(round(sum(step.get("seconds") or 0 for step in run.steps)), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(
        f"{value} {unit}" for value, unit in ((hours, "h"), (minutes, "min"), (seconds, "s")) if value or unit == "s"
    )


def _result(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _show(value: float | None) -> str:
    return DASH if value is None else three_figures(value) if value else "0"


def _millions(bench: dict[str, Any], *path: str) -> str:
    value = find_number(bench, *path)
    return _show(None if value is None else value / 1e6)
