"""What a recipe can say but a run cannot do yet is refused before any work, by `check_recipe` and by the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stapes.errors import RecipeError
from stapes.recipe import Recipe
from stapes.run import check_recipe, plan_steps


def recipe(model: dict[str, Any], stage: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "refused",
            "model": {"speech_encoder": "a/b", "llm": "c/d", "connector": {"kind": "stacked_mlp"}, **model},
            "train": {"align": {"data": {"no.jsonl": 1}, "max_steps": 1, **stage}},
        }
    )


@pytest.mark.parametrize(
    ("model", "stage", "key"),
    [
        ({"sound_encoder": "BEATs_iter3_plus_AS2M"}, {}, "model.sound_encoder"),
    ],
)
def test_a_run_refuses_what_the_model_cannot_do_yet(
    model: dict[str, Any], stage: dict[str, Any], key: str, tmp_path: Path
) -> None:
    refused = recipe(model, stage)
    with pytest.raises(RecipeError, match=f"refused: {key}: "):
        plan_steps(refused, tmp_path)
    with pytest.raises(RecipeError, match=f"my.yaml: {key}: "):
        check_recipe(refused, "my.yaml")
