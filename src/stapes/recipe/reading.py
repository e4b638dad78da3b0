"""From YAML to a recipe: `extends`, overrides, paths. The only file that reads recipe YAML."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import RecipeError
from .explain import explain
from .sections import Recipe


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe, what it extends, and `overrides`.

    Args:
        path: a YAML file. Its `extends` names another, relative to it; mappings merge key by key (`null` removes a
            key, another `kind` replaces the whole mapping), lists and values replace.
        overrides: dotted keys, e.g. `{"train.align.max_steps": 10}`, applied last.

    Returns:
        the recipe, with manifest paths made absolute: in the file they are relative to it.

    Raises:
        RecipeError: naming file and key, with the nearest known key where one is unknown.
    """
    path = Path(path)
    values = _read(path)
    base_name = values.pop("extends", None)
    if base_name is not None:
        base_path = path.parent / str(base_name)
        base = _read(base_path)
        if "extends" in base:
            raise RecipeError(f"{path}: extends {base_name}, which extends {base['extends']}; one level is allowed")
        values = _merge(_absolute(base, base_path.parent), _absolute(values, path.parent))
    else:
        values = _absolute(values, path.parent)
    for key, value in (overrides or {}).items():
        _override(values, key, value, path)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(explain(path, problem) for problem in error.errors())) from None


def dump_recipe(recipe: Recipe) -> str:
    """Write the whole recipe as YAML, defaults included; `load_recipe` reads it back equal."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 3e-5 is a number, and a key that stands twice is a mistake."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.MarkedYAMLError(problem=f"`{key}` stands twice", problem_mark=node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_value(text: str) -> Any:
    """Read one YAML value, as `--set KEY=VALUE` gives it."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{text!r} is not a YAML value: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a recipe file: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise RecipeError(f"{path}:{line}: not YAML: {error.problem}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping (`name: …`), not {type(values).__name__}")
    return values


def _absolute(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make every path in a raw recipe absolute; it is given relative to the recipe's own folder."""

    def resolve(name: Any) -> Any:
        return str((folder / name).resolve()) if isinstance(name, str) else name

    values = dict(values)
    if isinstance(model := values.get("model"), dict):
        values["model"] = {
            key: resolve(value)
            if key in ("speech_encoder", "llm") and isinstance(value, str) and value.startswith((".", "/"))
            else value
            for key, value in model.items()
        }
    if isinstance(stages := values.get("train"), dict):
        values["train"] = {name: _absolute_stage(stage, resolve) for name, stage in stages.items()}
    if isinstance(evaluate := values.get("evaluate"), dict) and isinstance(evaluate.get("data"), list):
        values["evaluate"] = {**evaluate, "data": [resolve(name) for name in evaluate["data"]]}
    return values


def _absolute_stage(stage: Any, resolve: Callable[[Any], Any]) -> Any:
    if not isinstance(stage, dict):
        return stage
    stage = dict(stage)
    if isinstance(stage.get("data"), dict):
        stage["data"] = {resolve(name): weight for name, weight in stage["data"].items()}
    if isinstance(stage.get("valid"), list):
        stage["valid"] = [resolve(name) for name in stage["valid"]]
    if isinstance(augment := stage.get("augment"), dict):
        stage["augment"] = {
            key: {**effect, "folder": resolve(effect["folder"])}
            if isinstance(effect, dict) and "folder" in effect
            else effect
            for key, effect in augment.items()
        }
    return stage


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    if "kind" in change and change["kind"] != base.get("kind"):
        return change
    merged = dict(base)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _override(values: dict[str, Any], dotted: str, value: Any, path: Path) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: --set {dotted}: `{parent}` is not a mapping")
    values[last] = value
