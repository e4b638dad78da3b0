"""The one formula for the number of audio tokens, and a configuration that goes to JSON and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, LlamaConfig, WhisperConfig

from stapes.model import ConnectorConfig, StapesConfig, num_audio_tokens
from stapes.model.configuration import num_encoder_frames


@pytest.mark.parametrize(
    ("features", "frames"), [(0, 0), (1, 1), (2, 1), (3, 2), (2999, 1500), (3000, 1500), (3001, 1501), (6500, 3250)]
)
def test_two_features_make_an_encoder_frame(features: int, frames: int) -> None:
    assert num_encoder_frames(features) == frames


# Counted by hand: 0.025 s are 2 features (1 frame), 0.1 s 10 (5), 1 s 100 (50), 7.3 s 730 (365), 30 s 3000 (1500),
# 30.01 s 3001 (1501), 65 s 6500 (3250).
@pytest.mark.parametrize(
    ("frames_per_window", "tail", "expected"),
    [
        (1, "pad", [1, 5, 50, 365, 1500, 1501, 3250]),
        (1, "drop", [1, 5, 50, 365, 1500, 1501, 3250]),
        (5, "pad", [1, 1, 10, 73, 300, 301, 650]),
        (5, "drop", [1, 1, 10, 73, 300, 300, 650]),
        (8, "pad", [1, 1, 7, 46, 188, 188, 407]),
        (8, "drop", [1, 1, 6, 45, 187, 187, 406]),
        (17, "pad", [1, 1, 3, 22, 89, 89, 192]),
        (17, "drop", [1, 1, 2, 21, 88, 88, 191]),
    ],
)
@pytest.mark.parametrize("queries", [1, 3])
def test_audio_tokens(frames_per_window: int, tail: str, expected: list[int], queries: int) -> None:
    features = [2, 10, 100, 730, 3000, 3001, 6500]
    assert [num_audio_tokens(f, frames_per_window, queries, tail) for f in features] == [  # type: ignore[arg-type]
        queries * count for count in expected
    ]


def test_salmonn_has_88_tokens_for_every_clip() -> None:
    connector = ConnectorConfig(kind="windowed_qformer", frames_per_window=17, queries_per_window=1, tail="drop")
    assert StapesConfig(connector_config=connector).num_audio_tokens(3000) == 88


def test_a_configuration_goes_to_json_and_back(tmp_path: Path) -> None:
    config = StapesConfig(
        speech_config=WhisperConfig(d_model=32, num_mel_bins=128),
        text_config=LlamaConfig(hidden_size=64, tie_word_embeddings=True),
        connector_config=ConnectorConfig(kind="stacked_mlp", frames_per_window=8, tail="drop", hidden_size=12),
        audio_token_id=7,
        lora={"r": 4, "target_modules": ["q_proj"]},
        int8={"skip": ["connector"]},
        sources={"speech_encoder": "a/b", "llm": "c/d"},
        trained_parts=["connector", "lora"],
    )
    config.save_pretrained(tmp_path)
    back = AutoConfig.from_pretrained(tmp_path)
    assert type(back) is StapesConfig
    assert back.to_diff_dict() == config.to_diff_dict()
    assert isinstance(back.speech_config, WhisperConfig)
    assert isinstance(back.text_config, LlamaConfig)
    assert isinstance(back.connector_config, ConnectorConfig)
    assert (back.speech_config.d_model, back.speech_config.num_mel_bins) == (32, 128)
    # The LLM's own business, and not that of the whole.
    assert (back.text_config.tie_word_embeddings, back.tie_word_embeddings) == (True, False)
    assert back.num_audio_tokens(100) == 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "conv"}, "Field 'kind' expected one of .*, got conv"),
        ({"tail": "cut"}, "Field 'tail' expected one of .*, got cut"),
        ({"frames_per_window": 1.5}, "Field 'frames_per_window' expected int, got float"),
        ({"frames_per_window": 0}, "frames_per_window is 0; wanted at least 1"),
        ({"hidden_size": 100}, "hidden_size 100 does not divide by 12 heads"),
        ({"kind": "stacked_mlp", "queries_per_window": 2}, "queries_per_window is 2; a stacked_mlp makes 1 token"),
        ({"kind": "ctc_compressor", "ctc_stride": 3}, "ctc_stride is 3; wanted an even number up to frames_per_window"),
        ({"kind": "ctc_compressor", "ctc_stride": 18}, "ctc_stride is 18; wanted an even number up to"),
        ({"kind": "ctc_compressor", "ctc_sharpness": 0}, "ctc_sharpness is 0; wanted a number above 0"),
        ({"kind": "ctc_compressor", "ctc_weight": 2}, "ctc_weight is 2; a ctc_compressor may have one, from 0 to 1"),
        ({"kind": "stacked_mlp", "ctc_weight": 0.5}, "ctc_weight is 0.5; a ctc_compressor may have one, from 0 to 1"),
        ({"kind": "ctc_compressor", "sound_layer": 0}, "sound_layer is 0; a ctc_compressor may have one, from 1 on"),
        ({"kind": "stacked_mlp", "sound_layer": 2}, "sound_layer is 2; a ctc_compressor may have one, from 1 on"),
        ({"kind": "ctc_compressor", "tail": "drop"}, "tail is 'drop'; a ctc_compressor keeps every frame: `pad`"),
        ({"kind": "stacked_mlp", "hidden_size": 7}, "hidden_size is 7; the gate of a stacked_mlp needs an even one"),
    ],
)
def test_a_connector_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        ConnectorConfig(**wrong)


def test_a_field_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(StrictDataclassError, match="Field 'audio_token_id' expected int, got str"):
        StapesConfig(audio_token_id="<|audio|>")  # type: ignore[arg-type]
