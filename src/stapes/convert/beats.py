"""BEATs' own checkpoints (`.pt` with cfg, model and, fine-tuned, label_dict) → `BeatsEncoder`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..errors import WeightsError
from ..model.beats import BeatsConfig, BeatsEncoder
from .checkpoints import Loaded, fill, read_checkpoint

# What `BEATsConfig` of the original code has where a checkpoint's cfg is silent.
_DEFAULTS: dict[str, Any] = {
    "input_patch_size": -1,
    "embed_dim": 512,
    "conv_bias": False,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": False,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": False,
    "num_buckets": 320,
    "max_distance": 1280,
    "gru_rel_pos": False,
}
# The only architecture that has been published, and that `BeatsEncoder` builds.
_FIXED: dict[str, Any] = {
    "input_patch_size": 16,
    "conv_bias": False,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}
_FIRST_TABLE = "encoder.layers.0.self_attn.relative_attention_bias.weight"
_LATER_TABLE = re.compile(r"encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight")


def load_beats(path: Path, keep_predictor: bool = False) -> Loaded[BeatsEncoder]:
    """Load a checkpoint as microsoft/unilm publishes it, pre-trained or fine-tuned on AudioSet.

    Args:
        path: the `.pt` file.
        keep_predictor: keep a fine-tuned checkpoint's AudioSet classifier, which an audio language model never runs.

    Returns:
        the encoder, float32, in eval mode, and what was left out: tensors by their name, settings as `cfg.NAME`.

    Raises:
        WeightsError: if the file cannot be read, its architecture is another one, or any tensor is missing,
            unexpected or of another shape.
    """
    checkpoint = read_checkpoint(path)
    for key in ("cfg", "model"):
        if not isinstance(checkpoint.get(key), dict):
            raise WeightsError(f"{path}: has no dict `{key}`; a BEATs checkpoint has `cfg` and `model`")
    tensors: dict[str, Any] = dict(checkpoint["model"])
    ignored = {
        f"cfg.{name}": "steers training or the classifier, not what the encoder computes"
        for name in checkpoint["cfg"].keys() - _DEFAULTS.keys()
    }
    ignored |= _drop_shared_tables(tensors, path)
    num_classes, class_names = 0, None
    if keep_predictor:
        num_classes, class_names = _classes(checkpoint, path)
    else:
        classifier = {name for name in tensors if name.startswith("predictor.")}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in classifier}
        reason = "the AudioSet classifier, which an audio language model never runs"
        ignored |= dict.fromkeys(classifier | ({"label_dict"} & checkpoint.keys()), reason)
    model = BeatsEncoder(_config(checkpoint["cfg"], path, num_classes, class_names))
    fill(model, tensors, path, theirs_of_beats)
    return Loaded(model.eval(), ignored)


def theirs_of_beats(name: str) -> str:
    """Translate a weight's name in `BeatsEncoder` to that in BEATs' own code."""
    if name == "relative_attention_bias.weight":
        return _FIRST_TABLE
    name = re.sub(r"^encoder_layer_norm\.", "encoder.layer_norm.", name)
    name = re.sub(r"^pos_conv\.", "encoder.pos_conv.0.", name)
    return re.sub(r"^layers\.", "encoder.layers.", name)


def _config(cfg: Mapping[str, Any], path: Path, num_classes: int, class_names: list[str] | None) -> BeatsConfig:
    stated = {**_DEFAULTS, **cfg}
    for name, wanted in _FIXED.items():
        if stated[name] != wanted:
            raise WeightsError(f"{path}: cfg.{name} is {stated[name]!r}; stapes builds BEATs with {wanted!r} only")
    try:
        return BeatsConfig(
            patch_embedding_size=stated["embed_dim"],
            hidden_size=stated["encoder_embed_dim"],
            num_hidden_layers=stated["encoder_layers"],
            num_attention_heads=stated["encoder_attention_heads"],
            intermediate_size=stated["encoder_ffn_embed_dim"],
            conv_kernel=stated["conv_pos"],
            conv_groups=stated["conv_pos_groups"],
            num_buckets=stated["num_buckets"],
            max_distance=stated["max_distance"],
            dropout=stated["dropout"],
            attention_dropout=stated["attention_dropout"],
            num_classes=num_classes,
            class_names=class_names,
        )
    except StrictDataclassError as error:
        raise WeightsError(f"{path}: its cfg makes no BEATs: {error}") from error


def _drop_shared_tables(tensors: dict[str, Any], path: Path) -> dict[str, str]:
    """Take out the bias tables of layers 1, 2, …: one table under several names, as the original code shares it."""
    ignored = {}
    for name in [name for name in tensors if _LATER_TABLE.fullmatch(name)]:
        table = tensors.pop(name)
        if _FIRST_TABLE not in tensors or not torch.equal(table, tensors[_FIRST_TABLE]):
            raise WeightsError(f"{path}: `{name}` is not that of layer 0; in a BEATs all layers share one table")
        ignored[name] = "the table of layer 0 once more"
    return ignored


def _classes(checkpoint: Mapping[str, Any], path: Path) -> tuple[int, list[str] | None]:
    if "predictor.weight" not in checkpoint["model"]:
        raise WeightsError(f"{path}: has no classifier to keep (`predictor.weight`); it is not a fine-tuned BEATs")
    num_classes = checkpoint["model"]["predictor.weight"].shape[0]
    labels = checkpoint.get("label_dict")
    if labels is None:
        return num_classes, None
    if {int(number) for number in labels} != set(range(num_classes)):
        raise WeightsError(f"{path}: label_dict does not name the classes 0 to {num_classes - 1}")
    return num_classes, [name for _, name in sorted((int(number), str(name)) for number, name in labels.items())]
