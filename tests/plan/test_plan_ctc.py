"""A `ctc_compressor` is planned as it is built."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast

from stapes.errors import WeightsError
from stapes.model import ConnectorConfig
from stapes.model.ctc_compressor import CTCCompressor as Built
from stapes.model.ctc_vocabulary import CTCVocabulary
from stapes.model.speller import letter_groups
from stapes.plan.configs import CTCPieces, count_ctc_pieces
from stapes.plan.connector import CTCCompressorShape, read_connector
from stapes.plan.encoders import WhisperShape
from stapes.plan.folders import _connector_section
from stapes.plan.llm import LLMShape
from stapes.plan.model_plan import ModelPlan, plan_models
from stapes.plan.nota import predict_nota_memory
from stapes.plan.own import Workload, activation_peak
from stapes.plan.published import PUBLISHED
from stapes.plan.runtimes import find_runtimes
from stapes.plan.shapes import count_parameters
from stapes.plan.work import Attention, Linear, plan_stages
from stapes.recipe import CTCCompressor, Model, Recipe
from stapes.run.steps import _build_arguments

SECTION = CTCCompressor.model_validate(
    {"kind": "ctc_compressor", "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 24}
)


def shape(
    num_pieces: int = 30, sound_layer: int | None = None, spelling: int = 0, letters: int = 0, phones: int = 0
) -> CTCCompressorShape:
    own = {"sound_layer": sound_layer, "spelling": spelling, "letters": letters, "phones": phones}
    section = SECTION.model_copy(update=own)
    read = read_connector(section, 32, 64, CTCPieces(num_pieces, 50))
    assert isinstance(read, CTCCompressorShape)
    return read


def built(sound_layer: int | None = None, spelling: int = 0, letters: int = 0, phones: int = 0) -> Built:
    config = ConnectorConfig(
        kind="ctc_compressor",
        frames_per_window=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        ctc_stride=4,
        num_ctc_tokens=30,
        num_letter_groups=50,
        sound_layer=sound_layer,
        ctc_spelling=spelling,
        ctc_letters=letters,
        ctc_phones=phones,
    )
    return Built(config, 32, 64).eval()


@pytest.mark.parametrize(
    ("sound_layer", "spelling", "letters", "phones"),
    [(None, 0, 0, 0), (2, 0, 0, 0), (None, 8, 0, 0), (None, 0, 128, 0), (None, 0, 64, 192)],
)
def test_its_weights_are_those_of_the_built_one(
    sound_layer: int | None, spelling: int, letters: int, phones: int
) -> None:
    weights = shape(sound_layer=sound_layer, spelling=spelling, letters=letters, phones=phones).weights()
    made = built(sound_layer, spelling, letters, phones)
    for is_buffer, tensors in ((False, made.named_parameters()), (True, made.named_buffers())):
        listed = {weight.name: weight.shape for weight in weights if weight.is_buffer == is_buffer}
        assert listed == {name: tuple(tensor.shape) for name, tensor in tensors}


@pytest.mark.parametrize("sound_layer", [None, 2])
@pytest.mark.parametrize("objective", ["answer", "ctc", "letters", "phones", "sound"])
def test_an_objective_teaches_what_it_teaches_the_built_one(objective: Any, sound_layer: int | None) -> None:
    settings = {"sound_layer": sound_layer, "spelling": 8, "letters": 64, "phones": 192}
    made, planned = built(**settings), shape(**settings)
    learning: set[str] = set()  # which a stage without a part for it would be refused for
    if objective != "sound" or sound_layer:
        made.let_learn(objective)
        learning = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert {w.name for w in planned.weights() if planned.teaches(objective, w) and not w.is_buffer} == learning


def test_every_setting_of_a_recipe_is_built_and_read_back_from_the_folder() -> None:
    changes = {
        "slot_s": 0.24, "step_s": 0.16, "merges": 7, "spelling": 8, "letters": 64, "phones": 128, "sharpness": 5.0,
        "ctc_weight": 0.4, "sound_layer": 2, "hidden_size": 48, "num_layers": 3, "num_heads": 6,
        "intermediate_size": 40, "dropout": 0.2,
    }  # fmt: skip
    assert set(changes) == set(CTCCompressor.model_fields) - {"kind", "words"}  # which are the processor's
    model = {"speech_encoder": "e", "llm": "l", "connector": {"kind": "ctc_compressor", **changes}}
    config = _build_arguments(Model.model_validate(model))["connector"]
    assert _connector_section(config.to_dict()) == model["connector"]


@pytest.mark.parametrize("num_frames", [1, 8, 9, 100, 1500])
def test_it_gives_as_many_tokens_as_the_built_one(num_frames: int) -> None:
    with torch.no_grad():
        tokens, _ = built()(torch.randn(1, num_frames, 32), torch.ones(1, num_frames, dtype=torch.bool))
    assert shape().num_tokens(num_frames) == tokens.shape[1] == -(-num_frames // 8)


def plan() -> ModelPlan:
    config = {**PUBLISHED["openai/whisper-tiny"], "d_model": 32, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
    llm = {**PUBLISHED["HuggingFaceTB/SmolLM2-135M"], "hidden_size": 64}
    return ModelPlan("r", "tune", WhisperShape.from_config(config), None, shape(), LLMShape.from_config(llm, "x"))


@pytest.mark.parametrize(("sound_layer", "spelling", "width"), [(None, 0, 32), (2, 0, 64), (None, 8, 32)])
def test_its_operations_are_those_of_the_built_one(sound_layer: int | None, spelling: int, width: int) -> None:
    # 10 s: T = 500 frames, S = 125 steps, A = 63 slots.
    planned = replace(plan(), connector=shape(sound_layer=sound_layer, spelling=spelling))
    (connector,) = (stage for stage in plan_stages(planned, Workload(10, 20, 8)) if stage.name == "connector")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(sound_layer, spelling)(torch.randn(1, 500, width), torch.ones(1, 500, dtype=torch.bool))
    products = sum(2 * op.rows * op.inputs * op.outputs * op.times for op in connector.ops if isinstance(op, Linear))
    assert products == counter.get_total_flops()  # which counts no attention on a CPU
    assert [op for op in connector.ops if isinstance(op, Attention)] == [Attention(125, 125, 4, 4, 2)]
    assert connector.layers == (("encoder", 2),)


def test_its_memory_grows_with_the_pieces() -> None:
    large = replace(plan(), connector=shape(100_000))
    few, many = (activation_peak(planned, Workload(10, 1, 1), "float32").total for planned in (plan(), large))
    # Logits, their softmax and the probabilities: 3 · 125 steps · 100,000 pieces · 4 bytes.
    assert many == pytest.approx(3 * 125 * 100_000 * 4, rel=0.05)
    assert few < many
    assert predict_nota_memory(plan(), 0).peak.total < predict_nota_memory(large, 0).peak.total


def test_llama_cpp_has_no_graph_for_it_and_others_have() -> None:
    found = {runtime.name: runtime for runtime in find_runtimes(plan())}
    assert {name: runtime.verdict for name, runtime in found.items()} == {
        "PyTorch": "yes",
        "ONNX Runtime": "yes",
        "OpenVINO": "yes",
        "llama.cpp": "no",
    }
    assert found["llama.cpp"].why_not == (
        "a ctc_compressor has no graph there; use `connector: {kind: stacked_mlp, stack: 5}`"
    )


def bpe(folder: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on a few words and save it beside a config.json."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["the cat sat on the mat, THE CAT 12 12"] * 20, vocab_size=300, min_frequency=1)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(PUBLISHED["HuggingFaceTB/SmolLM2-135M"]))
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


@pytest.mark.parametrize("merges", [1, 5, 20, 1000])
def test_pieces_are_counted_as_the_model_lists_them(tmp_path: Path, merges: int) -> None:
    tokenizer = bpe(tmp_path / "llm")
    vocabulary = CTCVocabulary(tokenizer, merges)
    groups, _ = letter_groups(vocabulary.pieces)
    assert count_ctc_pieces(str(tmp_path / "llm"), merges) == (len(vocabulary), len(groups))


def test_pieces_that_nobody_counted_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stapes.plan.configs.find_config", lambda name: None)
    assert [count_ctc_pieces("HuggingFaceTB/SmolLM2-360M", merges) for merges in (1500, 5000, 12_000, 50_000)] == [
        (1371, 1400),
        (4306, 2596),
        (9667, 3491),
        (33_182, 5537),
    ]
    with pytest.raises(
        WeightsError, match=r"with 900 merges: no tokenizer\.json .*; the published table has it for 1500"
    ):
        count_ctc_pieces("HuggingFaceTB/SmolLM2-360M", 900)
    with pytest.raises(WeightsError, match=r"`hf download Qwen/Qwen3-0\.6B config\.json tokenizer\.json`"):
        count_ctc_pieces("Qwen/Qwen3-0.6B", 1500)


def test_a_tokenizer_without_merges_of_bytes_is_refused(tmp_path: Path) -> None:
    bpe(tmp_path / "llm")
    path = tmp_path / "llm" / "tokenizer.json"
    settings: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"pre_tokenizer": {"type": "Metaspace"}}))
    with pytest.raises(WeightsError, match=r"tokenizer\.json: not byte-level BPE"):
        count_ctc_pieces(str(tmp_path / "llm"), 5)


def test_a_recipe_with_it_is_planned() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "ctc",
            "model": {
                "speech_encoder": "openai/whisper-base",
                "llm": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "connector": {"kind": "ctc_compressor"},
            },
            "train": {"hear": {"data": {"/x.jsonl": 1}, "max_steps": 1, "objective": "ctc"}},
        }
    )
    (planned,) = plan_models(recipe)
    assert planned.num_audio_tokens(10) == 63
    C, D, E, D_llm = 9667, 512, 512, 576
    by_hand = 2 * E + D * E * 8 + D  # norm_in, conv
    by_hand += 2 * (4 * D + 3 * D * D + 3 * D + D * D + D + 2 * D * 2048 + 2048 + D)  # layers
    by_hand += (
        2 * D + (D + 1) * D_llm + 2 * D_llm + D_llm + 1 + C * D_llm + D * D_llm + (E + 1) * D + (D + 1) * D_llm + D_llm
    )
    assert count_parameters(planned.connector.weights()) == by_hand
