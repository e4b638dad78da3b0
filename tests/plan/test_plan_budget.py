"""Budgets: what fits, in which order, why the rest does not, and what would make it fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stapes.errors import StapesError, UsageError
from stapes.plan import (
    Budget,
    Prediction,
    Workload,
    compose_recipes,
    find_device,
    parse_budget,
    plan_models,
    predict,
    rank,
)
from stapes.plan.allocator import GIB
from stapes.plan.budget import WHISPERS, smaller, smaller_llms
from stapes.recipe import Recipe

V100 = find_device("v100-32gb")


def recipe(name: str, encoder: str, llm: str, **stage: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": name,
            "model": {"speech_encoder": encoder, "llm": llm, "connector": {"kind": "stacked_mlp"}},
            "train": {"align": {"data": {"none.jsonl": 1}, "max_steps": 1, **stage}},
        }
    )


def on_v100(one: Recipe) -> list[Prediction]:
    return [predict(plan, V100, Workload(10, 30, 16)) for plan in plan_models(one)]


SMALL = recipe("small", "openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct")
MIDDLE = recipe("middle", "openai/whisper-small", "Qwen/Qwen2.5-0.5B-Instruct")
LARGE = recipe("large", "openai/whisper-large-v2", "meta-llama/Llama-3.2-3B-Instruct")


def test_a_budget_is_read() -> None:
    assert parse_budget("memory=4GiB,ttft=300ms") == Budget(memory=4 * GIB, ttft=300)
    assert parse_budget(" tpot=0.05s , memory=1.5 GB") == Budget(memory=1.5e9, tpot=50)


@pytest.mark.parametrize("text", ["", "memory=4", "ttft=300", "ttft=3GiB", "speed=1s", "tpot=0ms", "ttft=1s,ttft=2s"])
def test_a_budget_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        parse_budget(text)


def test_what_fits_comes_first_and_the_fullest_of_it_at_the_top() -> None:
    verdicts = rank([LARGE, SMALL, MIDDLE], Budget(memory=4 * GIB), on_v100)
    assert [verdict.name for verdict in verdicts] == ["middle", "small", "large"]
    assert [verdict.fits for verdict in verdicts] == [True, True, False]
    assert verdicts[0].tightness > verdicts[1].tightness


def test_why_something_does_not_fit() -> None:
    verdict = rank([MIDDLE], Budget(memory=16 * GIB, ttft=1, tpot=1), on_v100)[0]
    assert not verdict.fits
    assert verdict.shares["memory"] < 1 < min(verdict.shares["ttft"], verdict.shares["tpot"])


def test_the_nearest_change_is_the_smallest_that_is_enough() -> None:
    nf4 = rank([LARGE], Budget(memory=7 * GIB), on_v100, small_weights="nf4")[0]
    assert nf4.change == ("train.align.quantization={bits: 4, kind: nf4}",)
    assert nf4.changed is not None
    assert nf4.changed.memory.peak <= 7 * GIB < nf4.prediction.memory.peak
    two = rank([LARGE], Budget(memory=4 * GIB), on_v100, small_weights="nf4")[0]
    assert two.change is not None
    assert len(two.change) == 2


def test_the_change_can_be_given_to_set() -> None:
    from stapes.recipe import parse_value

    change = rank([LARGE], Budget(memory=7 * GIB), on_v100, small_weights="nf4")[0].change
    assert change is not None
    key, _, value = change[0].partition("=")
    stage = {**LARGE.model_dump(mode="json")["train"]["align"], key.rpartition(".")[2]: parse_value(value)}
    changed = Recipe.model_validate({**LARGE.model_dump(mode="json"), "train": {"align": stage}})
    assert on_v100(changed)[0].memory.peak < 7 * GIB


def test_a_variant_of_the_recipe_may_fit_where_the_first_does_not() -> None:
    values = {**MIDDLE.model_dump(mode="json"), "compress": [{"kind": "quantize"}]}
    verdict = rank([Recipe.model_validate(values)], Budget(memory=2 * GIB), on_v100)[0]
    assert verdict.fits
    assert verdict.prediction.plan.variant == "quantize"


@pytest.mark.parametrize(
    ("trainable", "sound_encoder", "memory", "change"),
    [
        # What learns cannot be in 4 bits.
        ("language_model", None, 8 * GIB, ("model.llm=meta-llama/Llama-3.2-1B-Instruct",)),
        # What learns cannot be left out.
        (
            "sound_encoder",
            "BEATs_iter3_plus_AS2M",
            4 * GIB,
            ("train.align.quantization={bits: 4, kind: nf4}", "model.speech_encoder=openai/whisper-small"),
        ),
    ],
)
def test_changes_that_contradict_the_recipe_are_passed_over(
    trainable: str, sound_encoder: str | None, memory: float, change: tuple[str, ...]
) -> None:
    values = LARGE.model_dump(mode="json")
    values["model"]["sound_encoder"] = sound_encoder
    values["train"]["align"]["trainable"] = ["connector", trainable]
    verdict = rank([Recipe.model_validate(values)], Budget(memory=memory), on_v100, small_weights="nf4")[0]
    assert verdict.change == change


def test_what_is_int8_already_is_not_to_be_made_int8(tmp_path: Path) -> None:
    from test_plan_models import going_on_from, write_model

    def change(**values: Any) -> tuple[str, ...] | None:
        one = going_on_from(write_model(tmp_path / "_".join(("model", *values)), lora=None, **values))
        return rank([one], Budget(memory=0.5 * GIB), on_v100, small_weights="int8")[0].change

    assert change() == ("compress=[{kind: quantize, bits: 8}]",)
    # With an LLM that was left out it is too large, and `quantize` would refuse to go on from it.
    assert change(int8={"skip": ["connector", "language_model"]}) is None


def test_nothing_makes_a_model_fit_into_nothing() -> None:
    verdict = rank([SMALL], Budget(memory=1e6), on_v100, small_weights="nf4")[0]
    assert not verdict.fits
    assert verdict.change is None


def test_a_limit_that_cannot_be_predicted_is_an_error() -> None:
    cpu = find_device("cpu", 2)

    def on_cpu(one: Recipe) -> list[Prediction]:
        return [predict(plan, cpu, Workload(10, 30, 16)) for plan in plan_models(one)]

    for budget in (Budget(ttft=1), Budget(memory=1)):
        with pytest.raises(StapesError, match="--calibrate"):
            rank([SMALL], budget, on_cpu)


def test_families_know_what_is_smaller() -> None:
    assert smaller("openai/whisper-large-v3-turbo", ("openai/whisper-large-v2", "openai/whisper-tiny")) == (
        "openai/whisper-tiny",
    )
    assert smaller("openai/whisper-large", WHISPERS)[0] == "openai/whisper-medium"
    assert smaller("openai/whisper-medium.en", WHISPERS)[0] == "openai/whisper-small"
    llama = ("meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-1B-Instruct")
    for name in ("Meta-Llama-3-8B", "Llama-3.1-8B", "Meta-Llama-3.1-8B-Instruct"):
        assert smaller_llms(f"meta-llama/{name}") == llama
    assert smaller_llms("google/gemma-3-1b-pt") == ("google/gemma-3-270m-it",)
    assert smaller_llms("shuyuej/gemma-2-2b-it-GPTQ") == ("google/gemma-3-1b-it", "google/gemma-3-270m-it")
    assert smaller_llms("/models/gemma-3-1b-it") == ()
    assert smaller_llms("meta-llama/Llama-3.2-3B") == ("meta-llama/Llama-3.2-1B-Instruct",)
    assert smaller_llms("unsloth/Llama-3.2-3B-Instruct-bnb-4bit") == ("meta-llama/Llama-3.2-1B-Instruct",)
    assert smaller_llms("HuggingFaceTB/SmolLM2-135M-Instruct") == ()
    assert smaller_llms("nobody/knows") == ()


def test_compositions_to_search_are_recipes_whose_shapes_are_known() -> None:
    recipes = list(compose_recipes("nf4"))
    assert len({one.name for one in recipes}) == len(recipes) > 300
    assert all(plan_models(one) for one in recipes[::37])


def test_a_composition_with_int8_is_one_recipe_judged_by_its_best_variant() -> None:
    """`quantize` follows the float model in a recipe of its own, so that a list of both would have the first twice."""
    recipes = list(compose_recipes("int8"))
    assert {tuple(step.kind for step in one.compress) for one in recipes} == {("quantize",)}
    parts = {(model.speech_encoder, model.llm, model.connector.kind) for model in (one.parts for one in recipes)}
    assert len(parts) == len(recipes) == len({one.name for one in recipes}) == len(list(compose_recipes("nf4"))) / 2
    (one,) = [one for one in recipes if one.name == "whisper-small_Qwen2.5-0.5B-Instruct_mlp"]
    variants = [rank([one], Budget(memory=gib * GIB), on_v100)[0].prediction.plan.variant for gib in (4, 2)]
    assert variants == ["align", "quantize"]


def test_a_device_that_does_not_exist_is_told_its_nearest() -> None:
    with pytest.raises(UsageError, match=r"--device v100: .*did you mean `v100-32gb`"):
        find_device("v100")
    with pytest.raises(UsageError, match="known: cpu, v100-32gb"):
        find_device("abacus")
