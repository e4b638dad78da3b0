"""From a recipe to shapes: where configurations are found, and what the variants of a recipe are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stapes.errors import ModelFolderError, RecipeError, WeightsError
from stapes.plan import plan_models
from stapes.plan.configs import read_config
from stapes.plan.model_plan import ModelPlan
from stapes.plan.own import stored_sizes, weight_bytes
from stapes.plan.published import PUBLISHED
from stapes.plan.shapes import Adapters, Quantization
from stapes.recipe import Recipe


@pytest.fixture(autouse=True)
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Look into no cache of this machine; return the folder of a Hub cache of the test's own."""
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path / "stapes"))
    return hub


def recipe(**changes: Any) -> Recipe:
    """A recipe of a Whisper, a SmolLM2 and an MLP; `changes` are its sections, merged into `model` and `tune`."""
    model = {
        "speech_encoder": "openai/whisper-base",
        "llm": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "connector": {"kind": "stacked_mlp", "stack": 8, "hidden_size": 2048},
        **changes.get("model", {}),
    }
    stage = {"data": {"none.jsonl": 1}, "max_steps": 1, **changes.get("tune", {})}
    train = {"align": {"data": {"none.jsonl": 1}, "max_steps": 1}, "tune": stage}
    return Recipe.model_validate({"name": "r", "model": model, "train": train, "compress": changes.get("compress", [])})


LORA = {"trainable": ["connector", "lora"], "lora": {"r": 4, "target_modules": ["q_proj"]}}


def write_config(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**PUBLISHED["HuggingFaceTB/SmolLM2-135M"], **values}))
    return folder


def test_a_folder_needs_no_weights(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "llm", num_hidden_layers=7)
    plan = plan_models(recipe(model={"llm": str(folder)}))[0]
    assert plan.llm.num_layers == 7
    assert dict(plan.sources)["llm"] == str(folder / "config.json")


def test_a_configuration_in_the_hubs_cache_is_read(no_caches: Path) -> None:
    snapshot = no_caches / "models--my--llm" / "snapshots" / "0123"
    write_config(snapshot, num_hidden_layers=9)
    (no_caches / "models--my--llm" / "refs").mkdir()
    (no_caches / "models--my--llm" / "refs" / "main").write_text("0123")
    assert plan_models(recipe(model={"llm": "my/llm"}))[0].llm.num_layers == 9


def test_the_table_is_the_last_resort_and_says_so() -> None:
    found = read_config("meta-llama/Llama-3.2-3B-Instruct")
    assert found.source == "published table"
    assert found.values["hidden_size"] == 3072


def test_a_name_nobody_knows_is_told_its_nearest() -> None:
    with pytest.raises(WeightsError, match="did you mean `openai/whisper-large-v3-turbo`"):
        read_config("openai/whisper-large-v3-trubo")
    with pytest.raises(WeightsError, match="give a folder"):
        read_config("nobody/knows-this")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        read_config(str(tmp_path))


def test_a_tokenizer_beside_the_configuration_is_counted(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "llm", vocab_size=64)
    tokenizer = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 1}, {"id": 5}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert plan_models(recipe(model={"llm": str(folder)}))[0].llm.tokenizer_length == 3


def test_every_step_that_makes_a_folder_is_a_variant() -> None:
    plans = plan_models(recipe(tune=LORA, compress=[{"kind": "merge_lora"}, {"kind": "quantize"}]))
    assert [plan.variant for plan in plans] == ["tune", "merge_lora", "quantize"]
    tuned, merged, quantised = plans
    assert tuned.adapters == Adapters(4, ("q_proj",))
    assert merged.adapters is None
    assert quantised.int8_skip == ("connector",)
    assert quantised.parameters() == merged.parameters()
    assert tuned.parameters()["lora"] == 30 * 4 * (576 + 576)


def int8_weights(plan: ModelPlan) -> set[str]:
    parts = plan.weights().items()
    return {f"{part}.{weight.name}" for part, weights in parts for weight in weights if plan.is_int8(part, weight)}


def test_which_weights_become_int8() -> None:
    stored = int8_weights(plan_models(recipe(compress=[{"kind": "quantize", "skip": ["connector", "fc1"]}]))[1])
    assert "speech_encoder.layers.0.fc2.weight" in stored
    assert "language_model.model.layers.29.mlp.up_proj.weight" in stored
    # The table is one with the head, which is a Linear.
    assert "language_model.model.embed_tokens.weight" in stored
    assert not any("fc1" in name or "norm" in name or "bias" in name for name in stored)
    assert not any(name.startswith("connector") for name in stored)


@pytest.mark.parametrize(
    ("llm", "skip", "table", "head"),
    [
        ("HuggingFaceTB/SmolLM2-135M", ["lm_head"], False, None),
        ("HuggingFaceTB/SmolLM2-135M", ["embed_tokens"], False, None),
        ("google/gemma-3-270m", ["connector"], False, None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", ["connector"], False, True),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", ["lm_head"], False, False),
    ],
)
def test_heads_and_tables_that_stay_as_they_are(llm: str, skip: list[str], table: bool, head: bool | None) -> None:
    stored = int8_weights(plan_models(recipe(model={"llm": llm}, compress=[{"kind": "quantize", "skip": skip}]))[1])
    assert ("language_model.model.embed_tokens.weight" in stored) == table
    assert ("language_model.lm_head.weight" in stored) == bool(head)
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in stored


def test_quantisation_comes_from_the_recipe_or_the_checkpoint() -> None:
    nf4 = {"quantization": {"bits": 4, "kind": "nf4", "double_quant": False}}
    assert plan_models(recipe(tune=nf4))[0].quantization == Quantization("nf4", double_quant=False)
    stored = plan_models(recipe(tune=nf4, model={"llm": "unsloth/Llama-3.2-1B-Instruct-bnb-4bit"}))[0]
    assert stored.quantization == Quantization("nf4", is_stored=True)


def test_what_compression_writes_is_in_4_bits_no_more() -> None:
    nf4 = {"quantization": {"bits": 4, "kind": "nf4"}}
    qlora, steps = {**LORA, **nf4}, [{"kind": "merge_lora"}, {"kind": "quantize"}]
    tuned, merged, quantised = plan_models(recipe(tune=qlora, compress=steps))
    assert [plan.quantization for plan in (tuned, merged, quantised)] == [Quantization("nf4"), None, None]
    assert weight_bytes(merged, "float32")["language_model"] == 4 * 134_515_008
    assert plan_models(recipe(tune=nf4, compress=steps[1:]))[1].quantization is None
    # What `skip` leaves out of it stays in 4 bits, as it is.
    skipping = {"kind": "quantize", "skip": ["connector", "layers.0."]}
    (_, partly) = plan_models(recipe(tune=nf4, compress=[skipping]))
    assert partly.quantization == Quantization("nf4", is_stored=True)
    sizes = {w.name: stored_sizes(partly, "language_model", w, "float32") for w in partly.llm.weights()}
    queries = 576 * 576
    scales = queries // 64
    at = "model.layers.{}.self_attn.q_proj.weight"
    assert sizes[at.format(0)] == [queries // 2, scales, 4 * 21, 4 * 16, 4 * 256, 4]
    assert sizes[at.format(1)] == [queries, 4 * 576]
    # A GPTQ is not read, so that no step can write it otherwise.
    gptq = plan_models(recipe(tune=LORA, model={"llm": "shuyuej/gemma-2-2b-it-GPTQ"}, compress=steps[:1]))
    assert [plan.quantization.kind if plan.quantization else None for plan in gptq] == ["gptq", "gptq"]


def test_a_trained_model_says_itself_whether_it_is_in_4_bits(tmp_path: Path) -> None:
    """Merged, it is in float32, though the checkpoint that it names is stored in 4 bits."""
    stored = {"speech_encoder": "openai/whisper-base", "llm": "unsloth/Llama-3.2-1B-Instruct-bnb-4bit"}
    mlp = {"kind": "stacked_mlp", "frames_per_window": 8, "hidden_size": 2048}
    values: dict[str, Any] = {"sources": stored, "connector_config": mlp}
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    (merged,) = plan_models(going_on_from(write_model(tmp_path / "merged", lora=None, **values)))
    (trained,) = plan_models(going_on_from(write_model(tmp_path / "trained", quantization_config=bits, **values)))
    assert merged.quantization is None
    assert trained.quantization == Quantization("nf4", is_stored=True)


def test_adapters_of_experts_count(tmp_path: Path) -> None:
    lora = {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    (tuned,) = plan_models(
        recipe(tune={**LORA, "lora": {**lora, "lora_dropout": 0}}, model={"llm": "Qwen/Qwen1.5-MoE-A2.7B"})
    )
    assert tuned.parameters()["lora"] == 24 * 4 * (2048 + 2048 + 60 * (1408 + 2048))
    (base,) = plan_models(going_on_from(write_model(tmp_path / "model", lora=lora)))
    assert base.adapters == tuned.adapters == Adapters(4, ("q_proj",), ("mlp.experts.down_proj",))


def test_a_stage_converts_what_its_files_hold_in_16_bits(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "llm", dtype="bfloat16")
    tuned, merged = plan_models(recipe(model={"llm": str(folder)}, tune=LORA, compress=[{"kind": "merge_lora"}]))
    assert tuned.converted == ("language_model",)
    assert merged.converted == ()


def test_published_models_are_converted_from_what_their_files_hold() -> None:
    tuned = plan_models(recipe())[0]
    assert tuned.converted == ("language_model",)
    turbo = {"speech_encoder": "openai/whisper-large-v3-turbo", "llm": "google/gemma-2-2b"}
    assert plan_models(recipe(model=turbo))[0].converted == ("speech_encoder",)
    dtypes = {name: config.get("dtype", "float32") for name, config in PUBLISHED.items()}
    assert {name for name, dtype in dtypes.items() if dtype == "float16"} == {
        *("openai/whisper-large-v3", "openai/whisper-large-v3-turbo", "shuyuej/gemma-2-2b-it-GPTQ"),
        *(f"meta-llama/Llama-2-{size}{chat}-hf" for size in ("7b", "13b") for chat in ("", "-chat")),
        *("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5"),
    }
    assert {name for name, dtype in dtypes.items() if dtype == "float32" and "whisper" not in name} == {
        "google/gemma-2-2b",
        *("BEATs_iter3_plus_AS2M", "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2", "EAT-base_epoch30_pt"),
    }


def test_a_complete_folder_is_loaded_as_it_is_and_a_trained_part_on_its_base(tmp_path: Path) -> None:
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    folder = write_model(tmp_path / "model", quantization_config=bits)
    (complete,) = plan_models(going_on_from(folder))
    assert (complete.converted, complete.quantization) == ((), Quantization("nf4", is_stored=True))
    (folder / "trained.safetensors").touch()
    (trained,) = plan_models(going_on_from(folder))
    assert (trained.converted, trained.quantization) == (("language_model",), Quantization("nf4"))
    # What goes on from it keeps of it what changed, and is loaded on the base again.
    (folder / "trained.safetensors").unlink()
    stage = {"data": {"none.jsonl": 1}, "max_steps": 1, "trainable": ["connector", "lora"]}
    base, more = plan_models(going_on_from(folder, train={"more": stage}))
    assert (base.converted, more.converted) == ((), ("language_model",))
    assert (base.quantization, more.quantization) == (Quantization("nf4", is_stored=True), Quantization("nf4"))


def test_parts_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"r: model\.speech_encoder: .* is a `llama` model"):
        plan_models(recipe(model={"speech_encoder": "HuggingFaceTB/SmolLM2-135M"}))
    with pytest.raises(RecipeError, match=r"r: model\.sound_encoder: .* is a `whisper` model"):
        plan_models(recipe(model={"sound_encoder": "openai/whisper-base"}))


def test_dropped_layers_leave_the_model_smaller() -> None:
    from dataclasses import replace

    plan = replace(plan_models(recipe())[0], dropped_layers=(2, 10))
    left: ModelPlan = plan.without_dropped()
    assert (left.speech.num_layers, left.llm.num_layers) == (4, 20)
    assert left.without_dropped() == left


def write_model(folder: Path, **values: Any) -> Path:
    """The configuration of a trained model: a Whisper, a SmolLM2 and a ctc_compressor."""
    folder.mkdir(parents=True)
    connector = {"kind": "ctc_compressor", "frames_per_window": 8, "ctc_stride": 4, "ctc_merges": 12000}
    connector |= {"hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 2048}
    config = {
        "model_type": "stapes",
        "sources": {"speech_encoder": "openai/whisper-base", "llm": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "connector_config": {**connector, "dropout": 0.1},
        "lora": {"r": 16, "target_modules": ["q_proj", "v_proj"]},
        **values,
    }
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"prompt_template": "{audio} {instruction}", "feature_extractor": {"pad_to_s": None}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def going_on_from(folder: Path, **sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "r", "start_from": str(folder), **sections})


def test_a_trained_model_is_planned_as_the_recipe_that_made_it(tmp_path: Path) -> None:
    stage = {"data": {"none.jsonl": 1}, "max_steps": 1, "trainable": ["connector", "lora"]}
    steps = [{"kind": "merge_lora"}, {"kind": "quantize", "bits": 8}]
    plans = plan_models(going_on_from(write_model(tmp_path / "model"), train={"more": stage}, compress=steps))
    assert [plan.variant for plan in plans] == ["base", "more", "merge_lora", "quantize"]
    lora = {"trainable": ["connector", "lora"], "lora": {"r": 16, "target_modules": ["q_proj", "v_proj"]}}
    parts = recipe().parts.model_dump() | {"connector": {"kind": "ctc_compressor"}}
    train = {"hear": {**stage, "trainable": ["connector"], "objective": "ctc"}, "tune": {**stage, **lora}}
    made = plan_models(Recipe.model_validate({"name": "r", "model": parts, "train": train}))[0]
    assert [plan.parameters() for plan in plans[:2]] == [made.parameters()] * 2
    assert plans[2].parameters()["lora"] == 0
    assert [plan.int8_skip for plan in plans] == [None, None, None, ("connector",)]


def test_a_trained_model_may_be_int8_already(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", lora=None, int8={"skip": ["connector", "lm_head"]})
    (plan,) = plan_models(going_on_from(model, compress=[]))
    assert (plan.variant, plan.int8_skip, plan.parameters()["lora"]) == ("base", ("connector", "lm_head"), 0)


def test_a_folder_that_does_not_tell_its_parts_is_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", sources=None)
    with pytest.raises(ModelFolderError, match="its configuration does not tell what it is made of"):
        plan_models(going_on_from(model))
    with pytest.raises(ModelFolderError, match=r"nothing: no such model folder"):
        plan_models(going_on_from(tmp_path / "nothing"))
