"""Turn a validation error into one line: file, key, what is wrong, the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from .sections import Recipe, Section


def explain(path: Path, problem: Mapping[str, Any]) -> str:
    """Say what is wrong with a key of the recipe at `path`; `problem` is one entry of `ValidationError.errors()`."""
    location: list[Any] = list(problem["loc"])
    # A tagged union adds its tag to the location; nobody wrote that in the file.
    shown = ".".join(str(part) for part, _ in _walk(location))
    match problem["type"]:
        case "extra_forbidden":
            known = list(_walk(location[:-1])[-1][1]) if len(location) > 1 else list(Recipe.model_fields)
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
            return f"{path}: {shown} is not a recipe key; {hint}"
        case "missing":
            return f"{path}: {shown} is missing"
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = problem["ctx"].get("expected_tags") or "'kind' is needed"
            near = difflib.get_close_matches(str(problem["ctx"].get("tag")), re.findall(r"'(\w+)'", kinds), n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {kinds}"
            return f"{path}: {shown}.kind: {problem['ctx'].get('tag', 'nothing')} is no kind of this section; {hint}"
        case _:
            message = problem["msg"].removeprefix("Value error, ")
            value = "" if isinstance(problem["input"], dict | Section) else f", not {problem['input']!r}"
            return f"{path}: {shown + ': ' if shown else ''}{message}{value}"


def _walk(location: list[Any]) -> list[tuple[Any, list[str]]]:
    """Follow a pydantic error location through the sections: (part, keys known inside it), union tags left out."""
    steps: list[tuple[Any, list[str]]] = []
    annotation: Any = Recipe
    for part in location:
        sections = _sections(annotation)
        tagged = [section for section in sections if part in _kinds(section)]
        if tagged:
            annotation = tagged[0]
            if steps:
                steps[-1] = (steps[-1][0], list(annotation.model_fields))
            continue
        annotation = _inside(annotation, sections, part)
        steps.append((part, [key for section in _sections(annotation) for key in section.model_fields]))
    return steps


def _kinds(section: type[Section]) -> tuple[str, ...]:
    return get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()


def _inside(annotation: Any, sections: list[type[Section]], part: Any) -> Any:
    for section in sections:
        if part in section.model_fields:
            return section.model_fields[part].annotation
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if get_origin(annotation) is tuple else None


def _sections(annotation: Any) -> list[type[Section]]:
    """List the section classes an annotation allows: itself, members of a union, what Annotated wraps."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Union, type(int | str), Annotated):
        return [section for argument in get_args(annotation) for section in _sections(argument)]
    return []
