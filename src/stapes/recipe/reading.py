"""From YAML to a recipe: `extends`, overrides, paths. The only file that reads recipe YAML."""

from __future__ import annotations

import copy
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
    values = _absolute(values, path.parent, str(path))
    stated = [(str(path), values)]
    if base_name is not None:
        base_path, base = _read_base(path, base_name)
        stated.append((str(base_path), base))
        values = _merge(base, values)
    if overrides:
        changes: dict[str, Any] = {}
        values = copy.deepcopy(values)
        for key, value in overrides.items():
            _override(values, key, value)
            _override(changes, key, value)
        # Paths of the command line are relative to where it is typed; those of files are absolute by now.
        values = _absolute(values, Path.cwd(), "--set")
        stated.insert(0, ("--set", _absolute(changes, Path.cwd(), "--set")))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error.errors(), stated)) from None


def dump_recipe(recipe: Recipe) -> str:
    """Write the whole recipe as YAML, defaults included; `load_recipe` reads it back equal."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 3e-5 is a number, and a key that stands twice is a mistake."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, before merge keys (`<<: *other`) are replaced by what they stand for, each key is one that was written.
        node = super().compose_mapping_node(anchor)
        seen = set[tuple[str, str]]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` stands twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node


class _Dumper(yaml.SafeDumper):
    """The same YAML: a text that looks like a number is quoted."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def parse_value(text: str) -> Any:
    """Read one YAML value, as `--set KEY=VALUE` gives it."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{text!r} is not a YAML value: {_problem(error)}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a recipe file: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise RecipeError(f"{path}:{line}: not YAML: {_problem(error)}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {_problem(error)}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping (`name: …`), not {type(values).__name__}")
    return values


def _read_base(path: Path, name: Any) -> tuple[Path, dict[str, Any]]:
    if not isinstance(name, str):
        raise RecipeError(f"{path}: extends: wants the name of one recipe file, not {name!r}")
    base_path = path.parent / name
    try:
        base = _read(base_path)
    except RecipeError as error:
        raise RecipeError(f"{path}: extends: {error}") from None
    if "extends" in base:
        raise RecipeError(f"{path}: extends {name}, which extends {base['extends']}; one level is allowed")
    return base_path, _absolute(base, base_path.parent, str(base_path))


def _problem(error: yaml.YAMLError) -> str:
    """Tell what is wrong in one line, without the excerpt PyYAML adds."""
    return (error.problem if isinstance(error, yaml.MarkedYAMLError) else None) or str(error).partition("\n")[0]


def _absolute(values: dict[str, Any], folder: Path, origin: str) -> dict[str, Any]:
    """Make every path in a raw recipe absolute: it is relative to `folder`, that of the file `origin`."""

    def resolve(name: Any) -> Any:
        return str((folder / name).resolve()) if isinstance(name, str) else name

    values = dict(values)
    if isinstance(model := values.get("model"), dict):
        values["model"] = {
            key: resolve(value)
            if key in ("speech_encoder", "sound_encoder", "llm")
            and isinstance(value, str)
            and value.startswith((".", "/"))
            else value
            for key, value in model.items()
        }
        if isinstance(connector := model.get("connector"), dict) and "words" in connector:
            values["model"]["connector"] = {**connector, "words": resolve(connector["words"])}
    if isinstance(start := values.get("start_from"), str) and start.startswith((".", "/")):
        values["start_from"] = resolve(start)
    if isinstance(stages := values.get("train"), dict):
        values["train"] = {
            name: _absolute_stage(stage, resolve, f"{origin}: train.{name}") for name, stage in stages.items()
        }
    if isinstance(evaluate := values.get("evaluate"), dict) and isinstance(evaluate.get("data"), list):
        values["evaluate"] = {**evaluate, "data": [resolve(name) for name in evaluate["data"]]}
    return values


def _absolute_stage(stage: Any, resolve: Callable[[Any], Any], where: str) -> Any:
    if not isinstance(stage, dict):
        return stage
    stage = dict(stage)
    if isinstance(stage.get("data"), dict):
        data: dict[Any, Any] = {}
        for name, weight in stage["data"].items():
            if resolve(name) in data:
                raise RecipeError(f"{where}.data: {name} stands twice, spelt differently; add the shares up")
            data[resolve(name)] = weight
        stage["data"] = data
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
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _merge(merged[key], value)
        _put(merged, key, value)
    return merged


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, or remove it if `value` is None."""
    # `bench: null` has to stay: a recipe without the key is measured.
    if value is None and key != "bench":
        values.pop(key, None)
    else:
        values[key] = value


def _override(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {dotted}: `{parent}` is not a mapping")
    _put(values, last, value)
