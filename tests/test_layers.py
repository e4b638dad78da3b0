"""The shape of the house: which package imports which (docs/design.md, section 2), and how big things may get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "stapes"
MODULES = sorted(SOURCE.rglob("*.py"))
SIZED = MODULES + sorted((ROOT / "benchmarks").rglob("*.py"))

_LOADING = {"errors", "files", "weights", "model", "data", "parts"}
_MEASURING = {"errors", "files", "environment", "data", "model", "assembly", "inference"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "environment": set(),
    "files": {"errors"},
    "collector": set(),
    "defaults": {"errors"},
    "recipe": {"errors", "files"},
    "weights": {"errors", "files"},
    "model": set(),
    "data": {"errors", "files", "model"},
    "parts": {"errors", "files", "weights", "model"},
    "assembly": _LOADING,
    "convert": {*_LOADING, "assembly", "environment"},
    "rounding": {"model"},
    "streaming": {"model"},
    "inference": {*_LOADING, "assembly", "collector", "defaults", "rounding", "streaming"},
    "train": {*_LOADING, "recipe", "assembly", "environment"},
    "compress": {*_LOADING, "recipe", "assembly", "environment"},
    "evaluate": _MEASURING,
    "bench": _MEASURING,
    "demo": {"errors", "data", "inference", "bench"},
    "report": {"errors", "files", "environment"},
    "plan": {"errors", "files", "environment", "defaults", "recipe", "weights"},
}
EVERYTHING = {*MAY_IMPORT, "run"}
MAY_IMPORT |= {"run": EVERYTHING, "cli": EVERYTHING, "__init__": EVERYTHING, "__main__": {"cli"}}


class Import(NamedTuple):
    """An import of ours: what (`data.audio`), in which line, relative or not, and whether it runs at import time."""

    target: str
    line: int
    is_relative: bool
    at_import: bool


def imports_of(path: Path) -> Iterator[Import]:
    """List the imports of our own modules in a file, those in functions and under TYPE_CHECKING included."""
    package = ("stapes", *path.relative_to(SOURCE).parent.parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferred = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *(node.module or "").split("."))).strip(".")
            # `from . import weights` names a module, `from .weights import resolve` something inside one.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "stapes" else [module]
        for name in names:
            if name.split(".")[0] == "stapes":
                is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
                target = name.partition(".")[2] or "__init__"
                assert isinstance(node, ast.Import | ast.ImportFrom)
                yield Import(target, node.lineno, is_relative, id(node) not in deferred)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_package_has_its_place_in_the_table() -> None:
    assert {layer_of(path) for path in MODULES} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    here = layer_of(path)
    wrong = [
        f"{name_of(path)}:{found.line}: {here} may not import {found.target}"
        for found in imports_of(path)
        if layer(found.target) not in {here, *MAY_IMPORT[here]}
    ]
    assert wrong == []


def test_layers_make_no_circle() -> None:
    """The table itself has no two packages that may import each other, directly or on a detour."""
    left = {package: set(allowed) for package, allowed in MAY_IMPORT.items()}
    # What may import everything stands above the table.
    left = {
        package: allowed - {"run"} for package, allowed in left.items() if package not in ("run", "cli", "__init__")
    }
    while left:
        free = {package for package, allowed in left.items() if not allowed & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {package: allowed for package, allowed in left.items() if package not in free}


@pytest.mark.parametrize("path", sorted((SOURCE / "model").glob("*.py")), ids=name_of)
def test_the_model_can_be_uploaded_beside_a_checkpoint(path: Path) -> None:
    assert [found for found in imports_of(path) if not found.is_relative or layer(found.target) != "model"] == []


@pytest.mark.parametrize("path", sorted((SOURCE / "cli").glob("*.py")), ids=name_of)
def test_the_command_line_imports_inside_functions(path: Path) -> None:
    loaded = {layer(found.target) for found in imports_of(path) if found.at_import}
    assert loaded <= {"cli", "errors"}


def test_importing_the_package_loads_none_of_it() -> None:
    assert [found for found in imports_of(SOURCE / "__init__.py") if found.at_import] == []


@pytest.mark.parametrize("path", SIZED, ids=name_of)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", SIZED, ids=name_of)
def test_functions_stay_small(path: Path) -> None:
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > 60:
                wrong.append(f"{name_of(path)}:{node.lineno}: {node.name} has {lines} lines")
            parameters = num_parameters(node)
            if parameters > most_parameters(path, node):
                wrong.append(f"{name_of(path)}:{node.lineno}: {node.name} has {parameters} parameters")
    assert wrong == []


def num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count what a caller has to know: self, cls, *args and **kwargs aside."""
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def most_parameters(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    # transformers looks for some inputs (attention_mask, position_ids, logits_to_keep) by name in this signature.
    if path == SOURCE / "model" / "modeling.py" and node.name == "forward":
        return 12
    # A verb has a parameter for each of its options; nobody calls it with all of them.
    if path.parent == SOURCE / "cli":
        return 12
    return 8
