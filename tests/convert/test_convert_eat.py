"""EAT checkpoints as they are published, in four dialects: every tensor at its place, or a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stapes.convert.eat import load_eat
from stapes.errors import WeightsError
from stapes.model import EatFeatureExtractor

WIDTH = 64  # one head: EAT's heads are 64 wide
BLOCK = {
    "norm1.weight": (64,),
    "norm1.bias": (64,),
    "attn.qkv.weight": (192, 64),
    "attn.qkv.bias": (192,),
    "attn.proj.weight": (64, 64),
    "attn.proj.bias": (64,),
    "norm2.weight": (64,),
    "norm2.bias": (64,),
    "mlp.fc1.weight": (20, 64),
    "mlp.fc1.bias": (20,),
    "mlp.fc2.weight": (64, 20),
    "mlp.fc2.bias": (64,),
}
IMAGE = "modality_encoders.IMAGE."
FRONT = {
    "local_encoder.proj.weight": (64, 1, 16, 16),
    "local_encoder.proj.bias": (64,),
    "extra_tokens": (1, 1, 64),
    "NORM.weight": (64,),
    "NORM.bias": (64,),
}
BLOCKS = {f"blocks.{number}.{name}": shape for number in range(2) for name, shape in BLOCK.items()}
PRETRAINING = {"_name": "data2vec_multi", "depth": 2, "num_heads": 1, "norm_eps": 1e-6, "layer_norm_first": False}


def positions(num_patches: int = 20) -> Tensor:
    """EAT's own formula, in numpy: token t is time t // 8, band t % 8."""
    omega = 1.0 / 10_000 ** (np.arange(16, dtype=np.float32) / 16.0)
    time, band = np.divmod(np.arange(num_patches * 8, dtype=np.float32), 8)
    angles = [np.outer(place, omega) for place in (band, time)]
    table = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return torch.from_numpy(table.astype(np.float32))[None]


def tensors(prefix: str, block_prefix: str, norm: str) -> dict[str, Any]:
    random = np.random.RandomState(0)
    shapes = {prefix + name.replace("NORM", norm): shape for name, shape in FRONT.items()}
    shapes |= {block_prefix + name: shape for name, shape in BLOCKS.items()}
    found = {name: torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}
    return {**found, f"{prefix}fixed_positional_encoder.positions": positions()}


def fairseq_pretrained() -> tuple[dict[str, Any], set[str]]:
    extra = {f"{IMAGE}decoder.blocks.0.0.weight": torch.zeros(3), f"{IMAGE}decoder.proj.bias": torch.zeros(3)}
    model = tensors(IMAGE, "", "context_encoder.norm") | extra
    model["_ema"] = {"blocks.0.attn.qkv.weight": torch.zeros(3)}
    cfg = {"model": {**PRETRAINING, "modalities": {"image": {"embed_dim": 64}}}, "task": {"data": "…"}}
    return {"args": None, "cfg": cfg, "model": model}, {*extra, "_ema"}


def fairseq_finetuned() -> tuple[dict[str, Any], set[str]]:
    extra = {name: torch.zeros(3) for name in ("head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias")}
    model = tensors(f"model.{IMAGE}", "model.", "context_encoder.norm") | extra
    cfg = {"model": {"_name": "mae_image_classification", "pretrained_model_args": {"model": {**PRETRAINING}}}}
    return {"args": None, "cfg": cfg, "model": model}, {*extra}


def huggingface(extra: dict[str, Tensor]) -> dict[str, Any]:
    return tensors("model.", "model.", "pre_norm") | extra


def check(model: Any, original: dict[str, Any], prefix: str, block_prefix: str, norm: str) -> None:
    ours = model.state_dict()
    assert len(ours) == len(FRONT) + len(BLOCKS)
    places = {
        "patch_embedding.weight": f"{prefix}local_encoder.proj.weight",
        "cls_token": f"{prefix}extra_tokens",
        "pre_norm.weight": f"{prefix}{norm}.weight",
        "layers.1.norm1.bias": f"{block_prefix}blocks.1.norm1.bias",
        "layers.0.attn.qkv.weight": f"{block_prefix}blocks.0.attn.qkv.weight",
        "layers.0.fc1.weight": f"{block_prefix}blocks.0.mlp.fc1.weight",
        "layers.1.fc2.bias": f"{block_prefix}blocks.1.mlp.fc2.bias",
    }
    for name, theirs in places.items():
        assert torch.equal(ours[name], original[theirs]), name
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (64, 2, 20)
    assert (config.num_attention_heads, config.layer_norm_eps) == (1, 1e-6)
    assert not model.training


def test_fairseq_pretrained(tmp_path: Path) -> None:
    content, extra = fairseq_pretrained()
    torch.save(content, tmp_path / "eat.pt")
    model, ignored = load_eat(tmp_path / "eat.pt")
    check(model, content["model"], IMAGE, "", "context_encoder.norm")
    assert ignored.keys() == extra | {f"{IMAGE}fixed_positional_encoder.positions"}
    assert ignored["_ema"] == "the averaged teacher of pre-training"
    with torch.no_grad():
        assert model(**EatFeatureExtractor()([np.zeros(16_000)]))[0].shape == (1, 56, 64)


def test_fairseq_finetuned(tmp_path: Path) -> None:
    content, extra = fairseq_finetuned()
    torch.save(content, tmp_path / "eat.pt")
    model, ignored = load_eat(tmp_path / "eat.pt")
    check(model, content["model"], f"model.{IMAGE}", "model.", "context_encoder.norm")
    assert ignored.keys() == extra | {f"model.{IMAGE}fixed_positional_encoder.positions"}
    assert ignored["head.bias"] == "the AudioSet classifier, which an audio language model never runs"


@pytest.mark.parametrize("variant", ["pretrain", "finetune"])
def test_huggingface(tmp_path: Path, variant: str) -> None:
    names = ("model.head.weight", "model.fc_norm.bias") if variant == "finetune" else ()
    original = huggingface({name: torch.zeros(3) for name in names})
    save_file(original, tmp_path / "model.safetensors")
    stated = {"model_type": "eat", "model_variant": variant, "embed_dim": 64, "depth": 2, "num_heads": 1}
    stated |= {"norm_eps": 1e-6, "layer_norm_first": False, "patch_size": 16, "stride": 16, "mel_bins": 128}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    model, ignored = load_eat(tmp_path)
    check(model, original, "model.", "model.", "pre_norm")
    assert ignored.keys() == {*names, "model.fixed_positional_encoder.positions"}
    assert load_eat(tmp_path / "model.safetensors").ignored == ignored
    torch.save(original, tmp_path / "pytorch_model.bin")
    assert load_eat(tmp_path / "pytorch_model.bin").ignored == ignored


def test_half_precision_is_widened(tmp_path: Path) -> None:
    """fairseq may store float16; positions then differ by its rounding, weights not at all."""
    original = {name: tensor.half() for name, tensor in huggingface({}).items()}
    save_file(original, tmp_path / "model.safetensors")
    model, _ = load_eat(tmp_path)
    assert model.dtype == torch.float32
    assert torch.equal(model.cls_token, original["model.extra_tokens"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.extra_tokens"), "`extra_tokens` is missing"),
        (lambda t: t.update({"model.alibi_scale": torch.ones(1)}), "`alibi_scale` is unexpected"),
        (lambda t: t.update({"model.norm.weight": torch.ones(64)}), "`norm.weight` is unexpected"),
        (lambda t: t.update({"model.extra_tokens": torch.ones(1, 2, 64)}), r"has shape \[1, 2, 64\], not \[1, 1, 64\]"),
        (lambda t: t.update({"model.local_encoder.proj.weight": torch.ones(96, 1, 16, 16)}), "is 96 wide; .* of 64"),
        (lambda t: t.pop("model.blocks.0.mlp.fc1.weight"), "has no .* `blocks.0.mlp.fc1.weight`; it is not EAT"),
        (lambda t: t.pop("model.fixed_positional_encoder.positions"), "has no `fixed_positional_encoder.positions`"),
        (lambda t: t["model.fixed_positional_encoder.positions"][0, 9].add_(0.01), r"positions \[1, 160, 64\] are not"),
        (
            lambda t: t.update({"extra_tokens": torch.ones(1, 1, 64)}),
            r"holds weights twice, as \['(model\.)?extra_tokens'\] too$",
        ),
    ],
)
def test_another_checkpoint_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    original = huggingface({})
    change(original)
    save_file(original, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.safetensors: .*" + message):
        load_eat(tmp_path)


def test_what_a_checkpoint_says_of_itself_is_believed(tmp_path: Path) -> None:
    content, _ = fairseq_pretrained()
    content["cfg"]["model"]["num_heads"] = 2
    torch.save(content, tmp_path / "eat.pt")
    with pytest.raises(WeightsError, match=r"eat\.pt: says num_heads is 2; the EAT that stapes builds has 1$"):
        load_eat(tmp_path / "eat.pt")
    content, _ = fairseq_finetuned()
    content["cfg"]["model"]["pretrained_model_args"]["model"]["layer_norm_first"] = True
    torch.save(content, tmp_path / "eat.pt")
    with pytest.raises(
        WeightsError, match=r"eat\.pt: says layer_norm_first is True; the EAT that stapes builds has False$"
    ):
        load_eat(tmp_path / "eat.pt")
    save_file(huggingface({}), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"norm_eps": 1e-5}))
    with pytest.raises(WeightsError, match=r"says norm_eps is 1e-05; the EAT that stapes builds has 1e-06$"):
        load_eat(tmp_path)
