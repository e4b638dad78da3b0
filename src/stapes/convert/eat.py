"""EAT's checkpoints, fairseq's and Hugging Face's, pre-trained or fine-tuned → `EatEncoder`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import WeightsError
from ..files import read_json
from ..model.eat import EatConfig, EatEncoder, sincos_positions
from .checkpoints import Loaded, fill, read_checkpoint

_HEAD_DIM = 64  # of base (768 / 12) and large (1024 / 16)
_NUM_BANDS = 8  # 128 mel bins in patches of 16
_POSITIONS = "fixed_positional_encoder.positions"
# Patterns of names without their prefixes → why `EatEncoder` has no place for them.
_IGNORED = {
    r"_ema(\..*)?": "the averaged teacher of pre-training",
    r"decoder\..*|shared_decoder\..*|recon_proj\..*|cls_proj\..*|center": "serves pre-training only",
    r"head\..*|fc_norm\..*": "the AudioSet classifier, which an audio language model never runs",
}


def load_eat(path: Path) -> Loaded[EatEncoder]:
    """Load a checkpoint as cwx-worst-one/EAT publishes it.

    Args:
        path: a fairseq `.pt`, a `.safetensors` or `.bin` file, or a folder of the Hub that holds
            `model.safetensors` (and `config.json`, which is then checked too).

    Returns:
        the encoder, float32, in eval mode, and what was left out: tensor → why. The stored positions are left out
        because they are computed; it is checked that they are the same.

    Raises:
        WeightsError: if the file cannot be read, its architecture is another one, or any tensor is missing,
            unexpected or of another shape.
    """
    stated: Mapping[str, Any] = {}
    if path.is_dir():
        if (path / "config.json").exists():
            stated = read_json(path / "config.json")
        path = path / "model.safetensors"
    checkpoint = read_checkpoint(path)
    if isinstance(checkpoint.get("model"), dict):
        stated = _pretraining_settings(checkpoint.get("cfg"))
        checkpoint = checkpoint["model"]

    names = {_plain(name): name for name in checkpoint}
    if len(names) < len(checkpoint):
        raise WeightsError(f"{path}: holds weights twice, as {sorted(checkpoint.keys() - names.values())} too")
    ignored = {
        names[name]: reason for pattern, reason in _IGNORED.items() for name in names if re.fullmatch(pattern, name)
    }
    if _POSITIONS not in names:
        raise WeightsError(f"{path}: has no `{_POSITIONS}`; it is not a checkpoint of EAT")
    _check_positions(checkpoint[names[_POSITIONS]], path)
    ignored[names[_POSITIONS]] = "fixed sines and cosines, which are computed"
    tensors = {name: checkpoint[original] for name, original in names.items() if original not in ignored}
    model = EatEncoder(_config(tensors, stated, path))
    fill(model, tensors, path, theirs_of_eat)
    return Loaded(model.eval(), ignored)


def theirs_of_eat(name: str) -> str:
    """Translate a weight's name in `EatEncoder` to that in EAT's code, without prefixes."""
    if name == "cls_token":
        return "extra_tokens"
    name = re.sub(r"^patch_embedding\.", "local_encoder.proj.", name)
    name = re.sub(r"^layers\.", "blocks.", name)
    return re.sub(r"\.(fc\d)\.", r".mlp.\1.", name)


def _plain(name: str) -> str:
    """Take off the prefixes: `model.` (Hugging Face, and fairseq when fine-tuned), `modality_encoders.IMAGE.`."""
    name = name.removeprefix("model.").removeprefix("modality_encoders.IMAGE.")
    return re.sub(r"^context_encoder\.norm\.", "pre_norm.", name)


def _pretraining_settings(cfg: Any) -> Mapping[str, Any]:
    """Find the encoder's settings in fairseq's cfg; a fine-tuned checkpoint keeps those of pre-training within."""
    settings = cfg.get("model") if isinstance(cfg, dict) else None
    if isinstance(settings, dict) and isinstance(settings.get("pretrained_model_args"), dict):
        settings = settings["pretrained_model_args"].get("model")
    return settings if isinstance(settings, dict) else {}


def _config(tensors: Mapping[str, Any], stated: Mapping[str, Any], path: Path) -> EatConfig:
    """Read the sizes off the shapes, and check them against what the checkpoint says of itself."""
    num_layers = 0
    while f"blocks.{num_layers}.mlp.fc1.weight" in tensors:
        num_layers += 1
    patches, hidden = tensors.get("local_encoder.proj.weight"), tensors.get("blocks.0.mlp.fc1.weight")
    if not isinstance(patches, Tensor) or not isinstance(hidden, Tensor):
        raise WeightsError(f"{path}: has no `local_encoder.proj.weight` or no `blocks.0.mlp.fc1.weight`; it is not EAT")
    hidden_size = patches.shape[0]
    if hidden_size % _HEAD_DIM:
        raise WeightsError(f"{path}: is {hidden_size} wide; an EAT's heads are all of {_HEAD_DIM}")
    config = EatConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // _HEAD_DIM,
        intermediate_size=hidden.shape[0],
    )
    wanted = {
        "embed_dim": config.hidden_size,
        "depth": num_layers,
        "num_heads": config.num_attention_heads,
        "norm_eps": config.layer_norm_eps,
        "layer_norm_first": False,
        "patch_size": 16,
        "stride": 16,
        "mel_bins": config.num_mel_bins,
    }
    for name, value in wanted.items():
        if stated.get(name, value) != value:
            raise WeightsError(f"{path}: says {name} is {stated[name]!r}; the EAT that stapes builds has {value!r}")
    return config


def _check_positions(positions: Tensor, path: Path) -> None:
    expected = sincos_positions(positions.shape[1] // _NUM_BANDS, _NUM_BANDS, positions.shape[2])[None]
    # A float16 file rounds to 5e-4.
    if positions.shape != expected.shape or (positions.float() - expected).abs().max() > 1e-3:
        raise WeightsError(f"{path}: its positions {[*positions.shape]} are not EAT's fixed sines and cosines")
