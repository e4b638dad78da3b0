"""Which models fit a budget, why the others do not, and the nearest change that would make them fit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from ..errors import StapesError, UsageError
from ..recipe import Model, Recipe
from .folders import read_trained
from .predicting import Prediction

_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|MiB|GB|MB)")
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s)")
_BYTES = {"GiB": 1024**3, "MiB": 1024**2, "GB": 1000**3, "MB": 1000**2}
_LIMITS = ("memory", "ttft", "tpot")
_MOST_CHANGES = 3
_MOST_TRIED = 200

SmallWeights = Literal["nf4", "int8"]

Predict = Callable[[Recipe], list[Prediction]]
"""Predicts the variants of a recipe, in the order in which a run would make them."""


@dataclass(frozen=True)
class Budget:
    """What a model may take; None is no limit.

    Attributes:
        memory: peak bytes, loading included.
        ttft, tpot: milliseconds.
    """

    memory: float | None = None
    ttft: float | None = None
    tpot: float | None = None

    def shares(self, prediction: Prediction) -> dict[str, float]:
        """Tell which share of each limit a model takes; above 1 it is over.

        Raises:
            StapesError: if something is limited that cannot be predicted.
        """
        latency = prediction.latency
        if self.memory is not None and prediction.memory.missing is not None:
            raise StapesError(f"a limit of memory counts the whole process; not known: {prediction.memory.missing}")
        if latency is None and (self.ttft is not None or self.tpot is not None):
            name = f"{prediction.plan.recipe}/{prediction.plan.variant}"
            raise StapesError(f"{name}: no time can be predicted for a limit of ttft or tpot: {prediction.no_latency}")
        taken = {"memory": prediction.memory.peak}
        if latency is not None:
            taken |= {"ttft": latency.ttft, "tpot": latency.tpot}
        limits = {"memory": self.memory, "ttft": self.ttft, "tpot": self.tpot}
        return {name: taken[name] / limit for name, limit in limits.items() if limit is not None}


@dataclass(frozen=True)
class Verdict:
    """How a recipe stands to a budget.

    Attributes:
        name: of the recipe.
        prediction: of its variant that comes nearest to fitting, or fits with the most to spare.
        shares: share of each limit that it takes.
        change: keys to set so that it fits, `key=value`; None if it fits or nothing we know of makes it.
        changed: the prediction with that change.
    """

    name: str
    prediction: Prediction
    shares: dict[str, float]
    change: tuple[str, ...] | None = None
    changed: Prediction | None = field(default=None, compare=False)

    @property
    def fits(self) -> bool:
        """Whether every limit is kept."""
        return self.tightness <= 1

    @property
    def tightness(self) -> float:
        """The largest share of a limit."""
        return max(self.shares.values())


def parse_budget(text: str) -> Budget:
    """Read `memory=4GiB,ttft=300ms,tpot=20ms`; any of them may be left out.

    Raises:
        UsageError: naming what cannot be read.
    """
    limits: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        pattern, units = (_MEMORY, _BYTES) if name == "memory" else (_TIME, {"ms": 1, "s": 1000})
        found = pattern.fullmatch(value.strip())
        if name not in _LIMITS or found is None or name in limits:
            raise UsageError(
                f"--budget {item.strip()!r}: wanted memory=4GiB, ttft=300ms or tpot=20ms, each once, joined by commas"
            )
        limits[name] = float(found[1]) * units[found[2]]
        if limits[name] <= 0:
            raise UsageError(f"--budget {item.strip()!r}: a limit is above 0")
    return Budget(**limits)


def rank(
    recipes: Iterable[Recipe], budget: Budget, predict: Predict, *, small_weights: SmallWeights | None = None
) -> list[Verdict]:
    """Order recipes: those that fit first, the one that uses the budget best (its tightest limit the most) at the top.

    A recipe is judged by its first variant that fits. How well it answers is not predicted: that is what runs are for.

    Args:
        recipes: what to choose from.
        budget: what a model may take.
        predict: predicts a recipe's variants.
        small_weights: how the device can store weights in fewer bits; with it, the nearest change is looked for that
            makes those fit that do not.
    """
    verdicts = [_judge(recipe, budget, predict, small_weights) for recipe in recipes]
    return sorted(
        verdicts, key=lambda verdict: (not verdict.fits, -verdict.tightness if verdict.fits else verdict.tightness)
    )


def _judge(recipe: Recipe, budget: Budget, predict: Predict, small_weights: SmallWeights | None) -> Verdict:
    verdict = _best_variant(recipe, budget, predict)
    if verdict.fits or small_weights is None:
        return verdict
    for change, changed_recipe in itertools.islice(_changes(recipe, small_weights), _MOST_TRIED):
        try:
            changed = _best_variant(changed_recipe, budget, predict)
        except StapesError:
            continue  # a change that this recipe cannot take
        if changed.fits:
            return Verdict(recipe.name, verdict.prediction, verdict.shares, change, changed.prediction)
    return verdict


def _best_variant(recipe: Recipe, budget: Budget, predict: Predict) -> Verdict:
    judged = [Verdict(recipe.name, p, budget.shares(p)) for p in predict(recipe)]
    # Among variants that fit, the least compressed: they are listed in the order in which they are made.
    return next((verdict for verdict in judged if verdict.fits), min(judged, key=lambda verdict: verdict.tightness))


def _changes(recipe: Recipe, small_weights: SmallWeights) -> Iterator[tuple[tuple[str, ...], Recipe]]:
    """List changed recipes, the smallest changes first: one change, then two, then three."""
    single = _single_changes(recipe, small_weights)
    for count in range(1, _MOST_CHANGES + 1):
        for chosen in itertools.combinations(single, count):
            keys = [key for key, _ in chosen]
            if len(set(keys)) < len(keys):
                continue
            values = recipe.model_dump(mode="json")
            for key, value in chosen:
                _set(values, key, value)
            try:
                changed = Recipe.model_validate(values)
            except ValidationError:
                continue  # a change that contradicts the rest of the recipe, e.g. 4 bits where they would have to learn
            yield tuple(f"{key}={_as_text(value)}" for key, value in chosen), changed


def _single_changes(recipe: Recipe, small_weights: SmallWeights) -> list[tuple[str, Any]]:
    """List what can be changed, by how little of the model it changes."""
    changes: list[tuple[str, Any]] = []
    model = recipe.model
    if model is not None and model.pad_audio_to_s is not None:
        changes.append(("model.pad_audio_to_s", None))
    steps = recipe.model_dump(mode="json")["compress"]
    kinds = {step["kind"] for step in steps}
    has_lora, is_int8 = any(stage.lora for stage in recipe.train.values()), "quantize" in kinds
    if model is None:
        trained = read_trained(recipe)
        has_lora |= trained.adapters is not None
        is_int8 |= trained.int8_skip is not None
    if has_lora and "merge_lora" not in kinds:
        steps = [*steps, {"kind": "merge_lora"}]
        changes.append(("compress", steps))
    if small_weights == "int8" and not is_int8:
        changes.append(("compress", [*steps, {"kind": "quantize", "bits": 8}]))
    if model is None:  # the parts of a model that is trained already are what they are
        return changes
    last = list(recipe.train)[-1]
    if small_weights == "nf4" and recipe.train[last].quantization is None:
        changes.append((f"train.{last}.quantization", {"bits": 4, "kind": "nf4"}))
    changes += [("model.connector", connector) for connector in _shorter_connectors(model)]
    if model.sound_encoder is not None:
        changes.append(("model.sound_encoder", None))
    changes += [("model.speech_encoder", name) for name in smaller(model.speech_encoder, WHISPERS)]
    return changes + [("model.llm", name) for name in smaller_llms(model.llm)]


def _shorter_connectors(model: Model) -> list[dict[str, Any]]:
    connector = model.connector.model_dump(mode="json")
    key, longer = {
        "stacked_mlp": ("stack", (10, 16)),
        "windowed_qformer": ("window_s", (0.5, 1.0)),
        "ctc_compressor": ("slot_s", (0.24, 0.32)),
    }[connector["kind"]]
    return [{**connector, key: value} for value in longer if value > connector[key]]


WHISPERS = (
    "openai/whisper-large-v2",
    "openai/whisper-medium",
    "openai/whisper-small",
    "openai/whisper-base",
    "openai/whisper-tiny",
)
"""Speech encoders, large to small; the first large, large-v3 and its turbo have the encoder of large-v2."""

_LARGE_WHISPER = re.compile(r"-large(-v\d)?(-turbo)?$")

LLM_FAMILIES = (
    ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
    (
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen2.5-3B-Instruct",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
    ),
    ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-0.6B"),
    ("google/gemma-2-2b-it", "google/gemma-3-1b-it", "google/gemma-3-270m-it"),
    (
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    ("lmsys/vicuna-13b-v1.5", "lmsys/vicuna-7b-v1.5"),
)
"""LLMs of a family, large to small."""


def smaller(name: str, family: tuple[str, ...]) -> tuple[str, ...]:
    """List the members of a family that are smaller than `name`, the largest first; none if it is not of it."""
    same = _LARGE_WHISPER.sub("-large-v2", name).removesuffix(".en")
    return family[family.index(same) + 1 :] if same in family else ()


def smaller_llms(name: str) -> tuple[str, ...]:
    """List smaller LLMs of the same family; a pre-quantised or base checkpoint counts as its family's.

    Whoever published it: such are copies under another owner. What a folder of this machine holds is not told by its
    name.
    """
    if name.startswith((".", "/", "~")):
        return ()
    for family in LLM_FAMILIES:
        for number, member in enumerate(family):
            if _plain_name(name) == _plain_name(member):
                return family[number + 1 :]
    return ()


def _plain_name(name: str) -> str:
    """Take from the name of an LLM what does not tell its size: owner, how it is stored, what it was tuned for."""
    plain = name.rpartition("/")[2].removeprefix("Meta-").replace("Llama-3.1-", "Llama-3-")
    for suffix in ("-bnb-4bit", "-unsloth", "-GPTQ", "-Instruct", "-it", "-pt"):
        plain = plain.removesuffix(suffix)
    return plain


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values[parent]
    values[last] = value


def _as_text(value: Any) -> str:
    """Write a value as `--set` reads it."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_text, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
