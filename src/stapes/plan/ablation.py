"""Several recipes side by side: what they change, what is predicted, and what runs measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import read_json
from ..recipe import Recipe
from .connector import CTCCompressorShape, Objective
from .folders import parts_of
from .model_plan import ModelPlan, Part
from .predicting import Prediction
from .shapes import DType, Weight, count_parameters

_GIB = 1 << 30
_NONE = "–"
_WORDS, _NUMBERS = "---", "---:"

_MEASURED: dict[str, tuple[str, tuple[str, ...]]] = {
    "measured_wer": ("eval/{}/scores.json", ("tasks", "asr", "metrics", "wer", "value")),
    "measured_cider_d": ("eval/{}/scores.json", ("tasks", "audiocaption", "metrics", "cider_d", "value")),
    "measured_spider": ("eval/{}/scores.json", ("tasks", "audiocaption", "metrics", "spider", "value")),
    "measured_load_bytes": ("bench/{}/bench.json", ("memory_bytes", "load_peak")),
    "measured_run_bytes": ("bench/{}/bench.json", ("memory_bytes", "run_peak")),
    "measured_ttft_ms": ("bench/{}/bench.json", ("latency_ms", "ttft", "p50")),
    "measured_tpot_ms": ("bench/{}/bench.json", ("latency_ms", "per_token", "p50")),
}
_COLUMNS: tuple[tuple[str, str, Callable[[dict[str, Any]], str | None]], ...] = (
    ("variant", _WORDS, lambda row: row["variant"]),
    ("speech encoder", _WORDS, lambda row: row["speech_encoder"]),
    ("sound encoder", _WORDS, lambda row: row["sound_encoder"]),
    ("LLM", _WORDS, lambda row: row["llm"]),
    ("LLM's linears", _WORDS, lambda row: row["stored"]),
    ("adapters on", _WORDS, lambda row: row["adapters"]),
    ("parameters, M", _NUMBERS, lambda row: _shown(row["parameters"], 1e6, 1)),
    ("trained, M", _NUMBERS, lambda row: _shown(row["trained"], 1e6, 2)),
    ("predicted memory, GiB", _NUMBERS, lambda row: _shown(row["predicted_peak_bytes"], _GIB, 4)),
    ("predicted TTFT, ms", _NUMBERS, lambda row: _shown(row["predicted_ttft_ms"], 1, 1)),
    ("predicted TPOT, ms", _NUMBERS, lambda row: _shown(row["predicted_tpot_ms"], 1, 1)),
    ("measured WER, %", _NUMBERS, lambda row: _shown(row["measured_wer"], 1, 2)),
    ("measured CIDEr-D", _NUMBERS, lambda row: _shown(row["measured_cider_d"], 1, 3)),
    ("measured SPIDEr", _NUMBERS, lambda row: _shown(row["measured_spider"], 1, 3)),
    ("measured memory, GiB", _NUMBERS, lambda row: _shown(row["measured_peak_bytes"], _GIB, 4)),
    ("measured TTFT, ms", _NUMBERS, lambda row: _shown(row["measured_ttft_ms"], 1, 1)),
    ("measured TPOT, ms", _NUMBERS, lambda row: _shown(row["measured_tpot_ms"], 1, 1)),
)


@dataclass(frozen=True)
class Ablation:
    """Recipes that differ in a few keys.

    Attributes:
        tables: title → rows, JSON-ready; a row is a variant of a recipe.
        circumstances: lines that say what the figures rest on.
    """

    tables: Mapping[str, Sequence[dict[str, Any]]]
    circumstances: Sequence[str]


@dataclass(frozen=True)
class ShownTable:
    """A table whose cells are written.

    Attributes:
        title: of the table.
        shared: what is the same in all rows; empty if nothing is.
        heads: of the columns.
        is_number: of each column.
        rows: their cells.
    """

    title: str
    shared: str
    heads: tuple[str, ...]
    is_number: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def compare_recipes(
    recipes: Mapping[Path, Recipe], predict: Callable[[Recipe], list[Prediction]], runs: Path | None = None
) -> Ablation:
    """Predict every recipe, and read what its run measured, if there is one.

    Args:
        recipes: file → recipe. Files named `GROUP-…` make a table of that name, in the order given.
        predict: gives the variants of a recipe.
        runs: folder of run folders, each named as its recipe; None to look for none.

    Raises:
        RecipeError: if two recipes have one name, so that their runs would be one.
    """
    names: dict[str, Path] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    circumstances: dict[str, None] = {}
    for path, recipe in recipes.items():
        if recipe.name in names:
            raise RecipeError(f"{path}: its name `{recipe.name}` is that of {names[recipe.name]}; give each its own")
        names[recipe.name] = path
        predictions = predict(recipe)
        # Compressed, a model is what its last stage made of it; what a recipe starts from comes before its stages.
        num_untouched = int(recipe.start_from is not None and bool(recipe.train))
        trained = _count_trained(recipe, predictions[num_untouched].plan)
        for index, prediction in enumerate(predictions):
            label = recipe.name if len(predictions) == 1 else f"{recipe.name}/{prediction.plan.variant}"
            row = _describe(recipe, prediction, trained if index >= num_untouched else 0) | {"variant": label}
            measured = _measured(runs / recipe.name, prediction.plan.variant) if runs else dict.fromkeys(_MEASURED)
            peaks = [measured.pop(key) for key in ("measured_load_bytes", "measured_run_bytes")]
            row |= measured | {"measured_peak_bytes": max((peak for peak in peaks if peak is not None), default=None)}
            tables.setdefault(path.stem.partition("-")[0], []).append(row)
            circumstances |= dict.fromkeys(_circumstances(prediction))
    return Ablation(tables, tuple(circumstances))


def show_tables(ablation: Ablation) -> list[ShownTable]:
    """Write the tables' cells, without columns that no row fills; words that all rows share stand above."""
    shown = []
    for title, rows in ablation.tables.items():
        columns = [column for column in _COLUMNS if any(column[2](row) is not None for row in rows)]
        common = [
            column for column in columns[1:] if column[1] == _WORDS and len({column[2](row) for row in rows}) == 1
        ]
        columns = [column for column in columns if column not in common]
        shown.append(
            ShownTable(
                title,
                shared="; ".join(f"{head}: {cell(rows[0])}" for head, _, cell in common),
                heads=tuple(head for head, _, _ in columns),
                is_number=tuple(align == _NUMBERS for _, align, _ in columns),
                rows=tuple(tuple(cell(row) or _NONE for _, _, cell in columns) for row in rows),
            )
        )
    return shown


def to_markdown(ablation: Ablation) -> str:
    """Write the tables as Markdown."""
    parts = []
    for table in show_tables(ablation):
        lines = [table.heads, [_NUMBERS if number else _WORDS for number in table.is_number], *table.rows]
        # A regular expression of `target_modules` may hold what divides cells.
        escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        body = "".join(f"| {' | '.join(line)} |\n" for line in escaped)
        parts.append(f"## {table.title}\n\n" + (f"All with {table.shared}.\n\n" if table.shared else "") + body)
    return "\n".join([*parts, "".join(f"- {line}\n" for line in ablation.circumstances)])


def to_csv(ablation: Ablation) -> str:
    """Write all rows as one CSV, unrounded, with their table in the first column; what is not known stays empty."""
    rows = [{"table": title, **row} for title, group in ablation.tables.items() for row in group]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _describe(recipe: Recipe, prediction: Prediction, trained: int) -> dict[str, Any]:
    plan, parts = prediction.plan, parts_of(recipe)
    targets = plan.adapters.targets if plan.adapters else None
    latency = prediction.latency
    return {
        "recipe": recipe.name,
        "variant": plan.variant,
        "speech_encoder": _short(parts.speech_encoder),
        "sound_encoder": _short(parts.sound_encoder),
        "llm": _short(parts.llm),
        "stored": _stored(plan, prediction.dtype),
        "adapters": ", ".join(name.removesuffix("_proj") for name in targets)
        if isinstance(targets, tuple)
        else targets,
        "parameters": plan.parameters()["total"],
        "trained": trained,
        "device": prediction.device.name,
        "protocol": prediction.protocol,
        "predicted_peak_bytes": prediction.memory.peak,
        "predicted_load_bytes": prediction.memory.load_peak,
        "predicted_run_bytes": prediction.memory.run_peak,
        "predicted_at": prediction.memory.at,
        "predicted_ttft_ms": None if latency is None else latency.ttft,
        "predicted_tpot_ms": None if latency is None else latency.tpot,
    }


def _stored(plan: ModelPlan, dtype: DType) -> str:
    """Say how the LLM's linears are stored: all ways there are, for a step may leave some of them as they were."""
    plain = plan.quantization.kind if plan.quantization else dtype
    linears = [weight for weight in plan.llm.weights() if weight.kind == "linear"]
    return ", ".join(dict.fromkeys("int8" if plan.is_int8("language_model", w) else plain for w in linears))


def _count_trained(recipe: Recipe, plan: ModelPlan) -> int:
    """Count the parameters that learn in any stage; `plan` is the model of the last one."""
    trainable = {part for stage in recipe.train.values() for part in stage.trainable}
    tuned = _tuned_layers(recipe, plan.speech.num_layers)
    objectives: set[Objective] = {stage.objective for stage in recipe.train.values() if "connector" in stage.trainable}
    connector = plan.connector

    def learns(part: Part, weight: Weight) -> bool:
        if part == "speech_encoder":
            return weight.learns and weight.name.startswith(tuned)
        if part == "connector" and isinstance(connector, CTCCompressorShape):
            return any(connector.teaches(objective, weight) for objective in objectives)
        return weight.learns

    return sum(
        count_parameters([weight for weight in own if learns(part, weight)])
        for part, own in plan.weights().items()
        if part in trainable
    )


def _tuned_layers(recipe: Recipe, num_layers: int) -> tuple[str, ...]:
    """List what the names of the speech encoder's tensors begin with that learn in any stage."""
    wanted = [s.speech_encoder_layers for s in recipe.train.values() if "speech_encoder" in s.trainable]
    numbers = [number for number in wanted if number is not None]
    if len(numbers) < len(wanted):
        return ("",)
    return ("layer_norm.", *(f"layers.{layer}." for layer in range(num_layers - max(numbers, default=0), num_layers)))


def _measured(run: Path, variant: str) -> dict[str, Any]:
    """Read what a run measured of a variant; None for what it did not."""
    found: dict[str, Any] = {}
    for key, (file, steps) in _MEASURED.items():
        path = run / file.format(variant)
        value = read_json(path) if path.exists() else None
        for step in steps:
            value = value.get(step) if isinstance(value, dict) else None
        found[key] = value
    return found


def _circumstances(prediction: Prediction) -> list[str]:
    memory = prediction.memory
    lines = [
        f"predicted: {prediction.device.name}, protocol {prediction.protocol}, {prediction.work.audio_s:g} s, batch 1"
    ]
    if prediction.latency is not None:
        lines.append(f"predicted times: {prediction.latency.source}")
    elif prediction.no_latency:
        lines.append(f"no predicted times: {prediction.no_latency}")
    return [*lines, f"predicted memory leaves out {memory.missing}"] if memory.missing else lines


def _short(name: str | None) -> str | None:
    return None if name is None else Path(name).name


def _shown(value: float | None, unit: float, digits: int) -> str | None:
    return None if value is None else f"{value / unit:,.{digits}f}"
