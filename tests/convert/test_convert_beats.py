"""BEATs checkpoints as they are published: every tensor at its place, or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stapes.convert.beats import load_beats
from stapes.errors import WeightsError
from stapes.model import BeatsFeatureExtractor

# The settings of a fine-tuned BEATs, as published, but in miniature.
CFG: dict[str, Any] = {
    "encoder_layers": 2,
    "encoder_embed_dim": 8,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05,
    "dropout_input": 0.0,
    "layer_norm_first": False,
    "conv_bias": False,
    "conv_pos": 6,
    "conv_pos_groups": 2,
    "relative_position_embedding": True,
    "num_buckets": 16,
    "max_distance": 40,
    "gru_rel_pos": True,
    "deep_norm": True,
    "input_patch_size": 16,
    "layer_wise_gradient_decay_ratio": 0.6,
    "embed_dim": 4,
    "finetuned_model": True,
    "predictor_dropout": 0.0,
    "predictor_class": 3,
}
LAYER = {
    **{f"self_attn.{p}_proj.{kind}": (8, 8)[: 1 + (kind == "weight")] for p in "kvq" for kind in ("weight", "bias")},
    "self_attn.out_proj.weight": (8, 8),
    "self_attn.out_proj.bias": (8,),
    "self_attn.grep_a": (1, 2, 1, 1),
    "self_attn.grep_linear.weight": (8, 4),
    "self_attn.grep_linear.bias": (8,),
    "self_attn.relative_attention_bias.weight": (16, 2),
    "self_attn_layer_norm.weight": (8,),
    "self_attn_layer_norm.bias": (8,),
    "fc1.weight": (12, 8),
    "fc1.bias": (12,),
    "fc2.weight": (8, 12),
    "fc2.bias": (8,),
    "final_layer_norm.weight": (8,),
    "final_layer_norm.bias": (8,),
}
SHAPES = {
    "patch_embedding.weight": (4, 1, 16, 16),
    "layer_norm.weight": (4,),
    "layer_norm.bias": (4,),
    "post_extract_proj.weight": (8, 4),
    "post_extract_proj.bias": (8,),
    "encoder.pos_conv.0.weight_g": (1, 1, 6),
    "encoder.pos_conv.0.weight_v": (8, 4, 6),
    "encoder.pos_conv.0.bias": (8,),
    "encoder.layer_norm.weight": (8,),
    "encoder.layer_norm.bias": (8,),
    **{f"encoder.layers.{number}.{name}": shape for number in range(2) for name, shape in LAYER.items()},
    "predictor.weight": (3, 8),
    "predictor.bias": (3,),
}
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


def checkpoint(**cfg: Any) -> dict[str, Any]:
    random = np.random.RandomState(0)
    tensors = {
        name: torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for name, shape in SHAPES.items()
    }
    tensors[TABLE.format(1)] = tensors[TABLE.format(0)].clone()
    return {"cfg": {**CFG, **cfg}, "model": tensors, "label_dict": {2: "/m/c", 0: "/m/a", 1: "/m/b"}}


def saved(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "beats.pt")
    return tmp_path / "beats.pt"


def test_every_tensor_finds_its_place(tmp_path: Path) -> None:
    original = checkpoint()
    model, ignored = load_beats(saved(tmp_path, original), keep_predictor=True)
    ours: dict[str, Tensor] = model.state_dict()
    assert len(ours) == len(SHAPES) - 1
    places = {
        "patch_embedding.weight": "patch_embedding.weight",
        "layer_norm.bias": "layer_norm.bias",
        "post_extract_proj.weight": "post_extract_proj.weight",
        "pos_conv.weight_g": "encoder.pos_conv.0.weight_g",
        "pos_conv.weight_v": "encoder.pos_conv.0.weight_v",
        "pos_conv.bias": "encoder.pos_conv.0.bias",
        "encoder_layer_norm.weight": "encoder.layer_norm.weight",
        "relative_attention_bias.weight": TABLE.format(0),
        "layers.1.self_attn.grep_a": "encoder.layers.1.self_attn.grep_a",
        "layers.0.fc1.weight": "encoder.layers.0.fc1.weight",
        "predictor.bias": "predictor.bias",
    }
    for name, theirs in places.items():
        assert torch.equal(ours[name], original["model"][theirs]), name
    assert {name for name in ignored if not name.startswith("cfg.")} == {TABLE.format(1)}
    assert ignored[TABLE.format(1)] == "the table of layer 0 once more"
    assert {name for name in ignored if name.startswith("cfg.")} == {
        "cfg.activation_dropout",
        "cfg.encoder_layerdrop",
        "cfg.dropout_input",
        "cfg.layer_wise_gradient_decay_ratio",
        "cfg.finetuned_model",
        "cfg.predictor_dropout",
        "cfg.predictor_class",
    }


def test_settings_are_the_checkpoints(tmp_path: Path) -> None:
    model, _ = load_beats(saved(tmp_path, checkpoint()), keep_predictor=True)
    config = model.config
    assert (config.patch_embedding_size, config.hidden_size, config.intermediate_size) == (4, 8, 12)
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 2)
    assert (config.conv_kernel, config.conv_groups, config.num_buckets, config.max_distance) == (6, 2, 16, 40)
    assert (config.dropout, config.attention_dropout) == (0.0, 0.1)
    assert (config.num_classes, config.class_names) == (3, ["/m/a", "/m/b", "/m/c"])
    assert not model.training
    with torch.no_grad():
        frames, mask = model(**BeatsFeatureExtractor()([np.zeros(16_000)]))
        assert frames.shape == (1, 48, 8)
        assert model.classify(frames, mask).shape == (1, 3)


def test_the_classifier_is_left_out_unless_wanted(tmp_path: Path) -> None:
    model, ignored = load_beats(saved(tmp_path, checkpoint()))
    assert (model.predictor, model.config.num_classes, model.config.class_names) == (None, 0, None)
    reason = "the AudioSet classifier, which an audio language model never runs"
    assert [ignored[name] for name in ("predictor.weight", "predictor.bias", "label_dict")] == [reason] * 3


def test_a_pretrained_checkpoint_has_no_classifier(tmp_path: Path) -> None:
    pretrained = checkpoint(finetuned_model=False)
    del pretrained["label_dict"], pretrained["model"]["predictor.weight"], pretrained["model"]["predictor.bias"]
    _, ignored = load_beats(saved(tmp_path, pretrained))
    assert {name for name in ignored if not name.startswith("cfg.")} == {TABLE.format(1)}
    with pytest.raises(WeightsError, match=r"beats\.pt: has no classifier to keep \(`predictor\.weight`\)"):
        load_beats(tmp_path / "beats.pt", keep_predictor=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("cfg"), "has no dict `cfg`; a BEATs checkpoint has `cfg` and `model`"),
        (lambda c: c["cfg"].update(layer_norm_first=True), "cfg.layer_norm_first is True; stapes builds .* False only"),
        (lambda c: c["cfg"].update(input_patch_size=8), "cfg.input_patch_size is 8; stapes builds BEATs with 16 only"),
        (
            lambda c: c["cfg"].update(encoder_attention_heads=3),
            "its cfg makes no BEATs: .*8 does not divide by 3 heads",
        ),
        (lambda c: c["cfg"].update(conv_pos="wide"), "its cfg makes no BEATs: .*'conv_kernel' expected int, got str"),
        (lambda c: c["cfg"].pop("deep_norm"), "cfg.deep_norm is False; stapes builds BEATs with True only"),
        (lambda c: c["model"].pop("encoder.layers.1.fc1.bias"), "`encoder.layers.1.fc1.bias` is missing"),
        (lambda c: c["model"].pop(TABLE.format(0)), "`.*layers.1.self_attn.relative.*` is not that of layer 0"),
        (lambda c: c["model"][TABLE.format(1)].add_(1), "`.*layers.1.self_attn.relative.*` is not that of layer 0"),
        (lambda c: c["model"].update(mask_emb=torch.zeros(8)), "`mask_emb` is unexpected"),
        (
            lambda c: c["model"].update({"fc1.weight": torch.zeros(2), "encoder.layers.0.fc2.bias": torch.zeros(9)}),
            r"`fc1.weight` is unexpected; `encoder.layers.0.fc2.bias` has shape \[9\], not \[8\]",
        ),
        (lambda c: c["label_dict"].pop(1), "label_dict does not name the classes 0 to 2"),
    ],
)
def test_another_checkpoint_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    content = checkpoint()
    change(content)
    with pytest.raises(WeightsError, match=r"(?s)beats\.pt: .*" + message):
        load_beats(saved(tmp_path, content), keep_predictor=True)
