"""Shapes of speech and sound encoders: Whisper's encoder, BEATs, EAT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .shapes import Weight, layer_norm, linear

FEATURE_FRAMES_PER_S = 100
ENCODER_FRAMES_PER_S = 50
SAMPLE_RATE_HZ = 16_000
WHISPER_WINDOW_S = 30.0
# As in model/patches.py: patches of 16 frames by 16 mel bins, and how many in time are encoded together.
_PATCH = 16
_BLOCK_PATCHES = 188


@dataclass(frozen=True)
class WhisperShape:
    """The encoder half of a Whisper.

    Attributes:
        width: D.
        num_layers, num_heads, ffn_width: of the transformer.
        num_mels: M.
        num_positions: rows of the position table, 1500 for 30 s.
    """

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    num_mels: int
    num_positions: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WhisperShape:
        """Read the shape from a Whisper's config.json."""
        return cls(
            width=config["d_model"],
            num_layers=config["encoder_layers"],
            num_heads=config["encoder_attention_heads"],
            ffn_width=config["encoder_ffn_dim"],
            num_mels=config.get("num_mel_bins", 80),
            num_positions=config.get("max_source_positions", 1500),
        )

    def weights(self) -> list[Weight]:
        """List the tensors in the order in which a model is moved to a device."""
        D = self.width
        listed = [
            Weight("conv1.weight", (D, self.num_mels, 3)),
            Weight("conv1.bias", (D,)),
            Weight("conv2.weight", (D, D, 3)),
            Weight("conv2.bias", (D,)),
            Weight("embed_positions.weight", (self.num_positions, D), learns=False),  # a formula
        ]
        for layer in range(self.num_layers):
            at = f"layers.{layer}"
            listed += linear(f"{at}.self_attn.k_proj", D, D, bias=False)
            for name in ("v_proj", "q_proj", "out_proj"):
                listed += linear(f"{at}.self_attn.{name}", D, D)
            listed += layer_norm(f"{at}.self_attn_layer_norm", D)
            listed += linear(f"{at}.fc1", D, self.ffn_width)
            listed += linear(f"{at}.fc2", self.ffn_width, D)
            listed += layer_norm(f"{at}.final_layer_norm", D)
        return [*listed, *layer_norm("layer_norm", D)]


@dataclass(frozen=True)
class BeatsShape:
    """BEATs (arXiv 2212.09058): a transformer over 16×16 patches of a fbank; all public ones are this size."""

    model_type: ClassVar[str] = "stapes_beats"

    num_mels: int = 128
    patch_width: int = 512
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_width: int = 3072
    conv_kernel: int = 128
    conv_groups: int = 16
    num_buckets: int = 320
    num_classes: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BeatsShape:
        """Read the shape from the config.json of a converted BEATs; what it leaves out has the public size."""
        names = {
            "num_mels": "num_mel_bins",
            "patch_width": "patch_embedding_size",
            "width": "hidden_size",
            "num_layers": "num_hidden_layers",
            "num_heads": "num_attention_heads",
            "ffn_width": "intermediate_size",
            "conv_kernel": "conv_kernel",
            "conv_groups": "conv_groups",
            "num_buckets": "num_buckets",
            "num_classes": "num_classes",
        }
        return cls(**{ours: config[theirs] for ours, theirs in names.items() if theirs in config})

    def weights(self) -> list[Weight]:
        """List the tensors; the positional convolution's weight is kept as magnitude and direction (weight norm)."""
        D, heads = self.width, self.num_heads
        listed = [
            *linear("post_extract_proj", self.patch_width, D),
            Weight("patch_embedding.weight", (self.patch_width, 1, 16, 16)),
            Weight("encoder.pos_conv.0.bias", (D,)),
            Weight("encoder.pos_conv.0.weight_g", (1, 1, self.conv_kernel)),
            Weight("encoder.pos_conv.0.weight_v", self.conv_shape),
        ]
        for layer in range(self.num_layers):
            at = f"encoder.layers.{layer}"
            for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
                listed += linear(f"{at}.self_attn.{name}", D, D)
            listed.append(Weight(f"{at}.self_attn.grep_a", (1, heads, 1, 1)))
            listed += linear(f"{at}.self_attn.grep_linear", D // heads, 8)
            if layer == 0:  # one table for all layers
                listed.append(Weight(f"{at}.self_attn.relative_attention_bias.weight", (self.num_buckets, heads)))
            listed += layer_norm(f"{at}.self_attn_layer_norm", D)
            listed += linear(f"{at}.fc1", D, self.ffn_width)
            listed += linear(f"{at}.fc2", self.ffn_width, D)
            listed += layer_norm(f"{at}.final_layer_norm", D)
        listed += [*layer_norm("encoder.layer_norm", D), *layer_norm("layer_norm", self.patch_width)]
        return [*listed, *(linear("predictor", D, self.num_classes) if self.num_classes else [])]

    @property
    def conv_shape(self) -> tuple[int, int, int]:
        """Shape of the positional convolution's kernel."""
        return (self.width, self.width // self.conv_groups, self.conv_kernel)

    def num_tokens(self, audio_s: float) -> int:
        """Count the output tokens of a clip: 8 frequency patches a 160 ms block (10 s: 496)."""
        num_frames = (round(audio_s * SAMPLE_RATE_HZ) - 400) // 160 + 1
        return max(1, num_frames // _PATCH) * (self.num_mels // _PATCH)

    @property
    def block_tokens(self) -> int:
        """Tokens that are encoded together at most: 1504, of 30.08 s."""
        return _BLOCK_PATCHES * (self.num_mels // _PATCH)


@dataclass(frozen=True)
class EatShape:
    """EAT base (arXiv 2401.03497): a ViT over 16×16 patches of a fbank, with a class token and fixed positions."""

    model_type: ClassVar[str] = "stapes_eat"

    num_mels: int = 128
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_width: int = 3072

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EatShape:
        """Read the shape from the config.json of a converted EAT; what it leaves out has the size of EAT base."""
        names = {
            "num_mels": "num_mel_bins",
            "width": "hidden_size",
            "num_layers": "num_hidden_layers",
            "num_heads": "num_attention_heads",
            "ffn_width": "intermediate_size",
        }
        return cls(**{ours: config[theirs] for ours, theirs in names.items() if theirs in config})

    def weights(self) -> list[Weight]:
        """List the tensors of the encoder; positions are computed, not stored."""
        D = self.width
        listed = [
            Weight("local_encoder.proj.weight", (D, 1, 16, 16)),
            Weight("local_encoder.proj.bias", (D,)),
            Weight("extra_tokens", (1, 1, D)),
            *layer_norm("pre_norm", D),
        ]
        for layer in range(self.num_layers):
            at = f"blocks.{layer}"
            listed += layer_norm(f"{at}.norm1", D)
            listed += linear(f"{at}.attn.qkv", D, 3 * D)
            listed += linear(f"{at}.attn.proj", D, D)
            listed += layer_norm(f"{at}.norm2", D)
            listed += linear(f"{at}.mlp.fc1", D, self.ffn_width)
            listed += linear(f"{at}.mlp.fc2", self.ffn_width, D)
        return listed

    def num_tokens(self, audio_s: float) -> int:
        """Count the output tokens of a clip, padded to whole 160 ms blocks (10 s: 1008 frames, 504 tokens)."""
        num_frames = (round(audio_s * SAMPLE_RATE_HZ) - 400) // 160 + 1
        return -(-num_frames // _PATCH) * (self.num_mels // _PATCH)

    @property
    def block_tokens(self) -> int:
        """Tokens that are encoded together at most: 1504, of 30.08 s; a class token comes to each block."""
        return _BLOCK_PATCHES * (self.num_mels // _PATCH)


SoundShape = BeatsShape | EatShape


def read_sound_shape(config: Mapping[str, Any]) -> SoundShape | None:
    """Build the shape that a sound encoder's configuration describes; None if it is neither BEATs nor EAT."""
    for shape in (BeatsShape, EatShape):
        if config.get("model_type") == shape.model_type:
            return shape.from_config(config)
    return None
