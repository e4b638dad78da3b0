"""What the documents say is so: commands parse, paths exist, code compiles and names what there is."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer.main

import stapes
from stapes.cli.main import app
from stapes.recipe import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data/README.md",
    ROOT / "models/stapes-tiny/README.md",
]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shell_lines(text: str) -> list[str]:
    """List the lines of shell blocks, without comments."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def examples_of_help() -> list[str]:
    modules = sorted((ROOT / "src" / "stapes" / "cli").glob("*.py"))
    return [
        command
        for module in modules
        for line in re.findall(r"Example: (.*)", module.read_text(encoding="utf-8"))
        for command in re.findall(r"`(stapes [^`]*)`", line)
    ]


def documented_commands() -> list[str]:
    found = examples_of_help()
    for document in DOCUMENTS:
        lines = shell_lines(document.read_text(encoding="utf-8"))
        found += [line[line.index("stapes ") :] for line in lines if re.match(r"(\.venv/bin/)?stapes ", line)]
    return found


@pytest.mark.parametrize("line", documented_commands())
def test_commands_parse(line: str) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"`{line}`: there is no verb `{words[0]}`"
        command, words = command.commands[words[0]], words[1:]
    command.make_context("stapes", words)  # raises on unknown options, missing arguments and values of another kind


def test_there_are_commands_to_test() -> None:
    assert len(examples_of_help()) >= 9


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)]
    local = [target for target in targets if target and not re.match(r"https?:", target)]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_the_tree_of_the_readme_exists() -> None:
    tree = README.split("## What is where\n```\n")[1].split("```")[0]
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            assert (ROOT / name).exists(), name
            folder = ROOT / name
        else:
            assert (folder / name).exists(), name
    packages = {path.name for path in (ROOT / "src" / "stapes").iterdir() if (path / "__init__.py").exists()}
    assert packages <= set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))


def test_the_python_of_the_readme_names_what_there_is() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    tree = ast.parse(code)
    paths = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and "." in str(node.value)]
    assert paths
    assert [path for path in paths if not (ROOT / str(path)).exists()] == []
    methods = {n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
    assert methods - {"load"} <= set(dir(stapes.AudioLM))
    assert hasattr(stapes, "load")


def test_targets_of_make_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {line.split()[1] for document in DOCUMENTS for line in shell_lines(document.read_text()) if "make " in line}
    assert {"demo", "test", "install", "check"} <= named
    assert named <= targets


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_parse_and_name_manifests_that_exist_or_that_a_document_says_how_to_get(path: Path) -> None:
    recipe = load_recipe(path)
    manifests = [manifest for stage in recipe.train.values() for manifest in (*stage.data, *stage.valid)]
    manifests += recipe.evaluate.data if recipe.evaluate else ()
    # What is too large, or not ours, to ship goes into corpora/.
    others = [manifest for manifest in manifests if manifest.is_relative_to(ROOT / "corpora")]
    assert [manifest for manifest in manifests if manifest not in others and not manifest.exists()] == []
    texts = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    assert {
        corpus for corpus in ("/".join(other.relative_to(ROOT).parts[:2]) for other in others) if corpus not in texts
    } == set()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_no_recipe_trains_on_what_it_is_tested_on(path: Path) -> None:
    recipe = load_recipe(path)
    learnt = {manifest for stage in recipe.train.values() for manifest in stage.data}
    tested = set(recipe.evaluate.data) if recipe.evaluate else set()
    assert not [manifest for manifest in learnt if "test" in manifest.stem]
    assert not learnt & tested


def test_shipped_clips_of_training_and_test_differ() -> None:
    from stapes.data.sample import load_manifest

    for name in ("speech", "sounds"):
        clips = {
            split: {sample.audio for sample in load_manifest(ROOT / "data" / f"{name}_{split}.jsonl")}
            for split in ("train", "test")
        }
        assert not clips["train"] & clips["test"]
