"""Turn a validation error into one line: file, key, what is wrong, the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from .sections import Recipe, Section

Stated = Sequence[tuple[str, Mapping[Any, Any]]]
"""Who states what: the name of a file, or `--set`, and its raw values; the strongest word first."""


def explain(problems: Sequence[Mapping[str, Any]], stated: Stated) -> str:
    """Say what is wrong with a recipe, a line for each of `ValidationError.errors()`."""
    # Items that are wrong themselves do not count as items; that the list is then too short tells nobody anything.
    places = [problem["loc"] for problem in problems]
    return "\n".join(
        _line(problem, stated)
        for problem in problems
        if problem["type"] != "too_short" or not any(_is_inside(place, problem["loc"]) for place in places)
    )


def _line(problem: Mapping[str, Any], stated: Stated) -> str:
    location: list[Any] = list(problem["loc"])
    # A tagged union adds its tag to the location; nobody wrote that in the file.
    keys = [part for part, _ in _walk(location)]
    where = f"{_who_says(keys, stated)}: {'.'.join(map(str, keys))}"
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            known = list(_walk(location[:-1])[-1][1]) if len(location) > 1 else list(Recipe.model_fields)
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
            return f"{where} is not a recipe key; {hint}"
        case "missing":
            return f"{where} is missing"
        case "union_tag_not_found":
            return f"{where}.kind is missing; known: {', '.join(_known_kinds(location))}"
        case "union_tag_invalid":
            kinds = _known_kinds(location)
            near = difflib.get_close_matches(str(context["tag"]), kinds, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(kinds)}"
            return f"{where}.kind: {context['tag']} is no kind of this section; {hint}"
        case "too_short":
            return f"{where}: wants at least {context['min_length']}, not {context['actual_length']}"
        case "too_long":
            return f"{where}: wants at most {context['max_length']}, not {context['actual_length']}"
        case _:
            message = _PLAIN.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
            value = "" if isinstance(problem["input"], Mapping | Section) else f", not {problem['input']!r}"
            # What is wrong with the recipe as a whole names its keys in the message.
            return f"{where}: {message}{value}" if keys else f"{where.rstrip()} {message}{value}"


_PLAIN = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "wants a mapping (`key: value`)"),
    "tuple_type": "wants a list",
    "path_type": "wants a path",
}
"""pydantic's words for what a Python programmer knows, in the words of YAML."""


def _is_inside(place: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _who_says(keys: list[Any], stated: Stated) -> str:
    """Name the file that states a key; of a key that is nowhere, the recipe itself."""
    for name, values in stated:
        here: Any = values
        try:
            for key in keys:
                here = here[key]
        except (KeyError, IndexError, TypeError):
            continue
        return name
    return next(name for name, _ in stated if name != "--set")


def _walk(location: Sequence[Any]) -> list[tuple[Any, list[str]]]:
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
        if part == "[key]":  # pydantic's mark of a mapping's key; the key itself stands before it
            continue
        annotation = _inside(annotation, sections, part)
        steps.append((part, [key for section in _sections(annotation) for key in section.model_fields]))
    return steps


def _known_kinds(location: Sequence[Any]) -> list[str]:
    annotation: Any = Recipe
    for part in location:
        annotation = _inside(annotation, _sections(annotation), part)
    return [kind for section in _sections(annotation) for kind in _kinds(section)]


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
