"""EAT: a sound encoder that learned from its own averaged past, a plain vision transformer on fbank patches."""

# No `from __future__ import annotations`: it would turn types into texts, which `strict` does not check.

from collections.abc import Sequence

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BatchFeature, FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import (
    eager_attention_forward,
)

from .fbank import check_sampling_rate, fbank, num_fbank_frames, stack_waveforms
from .patches import PATCH, check_features, encode_blocks


@strict
class EatConfig(PreTrainedConfig):
    """Configuration of `EatEncoder`; the defaults are EAT-base (large: 1024, 24, 16, 4096).

    Attributes:
        num_mel_bins: M, a multiple of 16.
        hidden_size: D, a multiple of 4.
        num_hidden_layers, num_attention_heads, intermediate_size: of the transformer.
        layer_norm_eps: of all its norms.
        dropout, attention_dropout: while training.
    """

    model_type = "stapes_eat"

    num_mel_bins: int = 128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-6
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def validate_shape(self) -> None:
        """Refuse what no EAT can be; `strict` calls this after construction.

        Raises:
            ValueError: naming the setting.
        """
        if self.num_mel_bins < PATCH or self.num_mel_bins % PATCH:
            raise ValueError(f"num_mel_bins is {self.num_mel_bins}; wanted a multiple of {PATCH}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide by {self.num_attention_heads} heads")
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; sine and cosine of time and band need a multiple of 4"
            )


class EatFeatureExtractor(FeatureExtractionMixin):
    """Kaldi fbank as EAT hears it: Hann window, normalised with AudioSet's mean and deviation, padded to whole patches.

    Source: EAT (arXiv 2401.03497), sec. 4.1, and `feature_extract.py` of its code. Where we differ: the code pads or
    cuts every clip to one length (1024 frames for 10 s), and its padding is heard like sound. Here a clip is padded to
    the next whole patch only, as the code's guide recommends for other lengths, and never cut. `pad_to_frames=1024`
    gives the code's padding back. The code takes off the clip's mean first; Kaldi takes off each window's anyway.
    """

    model_input_names = ["sound_features", "sound_features_mask"]  # noqa: RUF012 - the base class declares it so

    def __init__(
        self,
        num_mel_bins: int = 128,
        mean: float = -4.268,
        std: float = 4.569,
        pad_to_frames: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.num_mel_bins = num_mel_bins
        self.mean = mean
        self.std = std
        self.pad_to_frames = pad_to_frames

    def __call__(self, raw_speech: Sequence[np.ndarray], sampling_rate: int | None = None) -> BatchFeature:
        """Transform B waveforms (N,), float, mono, 16 kHz, in [-1, 1].

        Returns:
            `sound_features` (B, F, M), float32, (log-mel - mean) / (2 * std), F a multiple of 16 (10 s: 1008), in a
            batch right-padded with zeros; `sound_features_mask` (B, F), int64, 1 on a clip's frames and on those that
            fill its last patch, which hold a log-mel of 0 as in EAT's code.

        Raises:
            ValueError: if a waveform is not one-dimensional or shorter than 25 ms, or `sampling_rate` is not 16 kHz.
        """
        check_sampling_rate(sampling_rate)
        log_mel = fbank(stack_waveforms(raw_speech), self.num_mel_bins, "hanning")
        num_frames = torch.tensor([num_fbank_frames(len(waveform)) for waveform in raw_speech])
        num_padded = (-(-num_frames // PATCH) * PATCH).clamp(min=self.pad_to_frames or 0)
        num_features = int(num_padded.max())
        log_mel = nn.functional.pad(log_mel, (0, 0, 0, num_features - log_mel.shape[1]))
        position = torch.arange(num_features)[None]
        log_mel = log_mel * (position < num_frames[:, None])[:, :, None]
        mask = (position < num_padded[:, None]).long()
        features = (log_mel - self.mean) / (2 * self.std)
        return BatchFeature({"sound_features": features * mask[:, :, None], "sound_features_mask": mask})


class EatAttention(nn.Module):
    """Plain self-attention."""

    def __init__(self, config: EatConfig) -> None:
        super().__init__()
        self.config = config
        self.is_causal = False
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(b, t, D), mask as `create_bidirectional_mask` gives it → (b, t, D)."""
        query, key, value = self.qkv(hidden).unflatten(-1, (3, -1, self.head_dim)).transpose(1, 3).unbind(dim=2)
        implementation = self.config._attn_implementation or "sdpa"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, _ = attend(self, query, key, value, attention_mask, scaling=self.head_dim**-0.5, dropout=dropout)
        return self.proj(attended.flatten(2))


class EatLayer(GradientCheckpointingLayer):
    """A post-LN transformer layer."""

    def __init__(self, config: EatConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attn = EatAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(b, t, D), mask as `create_bidirectional_mask` gives it → (b, t, D)."""
        attended = nn.functional.dropout(self.attn(hidden, attention_mask), self.dropout, self.training)
        hidden = self.norm1(hidden + attended)
        computed = self.fc2(nn.functional.gelu(self.fc1(hidden)))
        return self.norm2(hidden + nn.functional.dropout(computed, self.dropout, self.training))


class EatEncoder(PreTrainedModel):
    """EAT's student: patches + fixed 2-D positions, a CLS token in front, post-LN transformer.

    Source: EAT (arXiv 2401.03497), sec. 3; weights of its decoder and teacher are not there, they serve pre-training.
    Where we differ: its code attends to padding; here padding in a batch is masked, and a clip's frames do not depend
    on its batch. Clips beyond 30.08 s are encoded in blocks that do not attend to each other, each with positions from
    zero and a CLS token of its own. The positions are computed, not stored: 85,254,144 parameters (base).
    """

    config: EatConfig
    config_class = EatConfig
    base_model_prefix = ""
    main_input_name = "sound_features"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["EatLayer"]  # noqa: RUF012 - the base class declares it so

    def __init__(self, config: EatConfig) -> None:
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(1, config.hidden_size, kernel_size=PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList([EatLayer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EatEncoder):
            init.normal_(module.cls_token, mean=0.0, std=self.config.initializer_range)

    def forward(self, sound_features: Tensor, sound_features_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode fbank features.

        Args:
            sound_features: (B, F, M) of `EatFeatureExtractor`, right-padded.
            sound_features_mask: (B, F), 1 on the frames of a clip's patches; None when nothing is padded.

        Returns:
            frames (B, T', D) without the CLS token, 8 for each 160 ms (M = 128; 1 s gives 56, 10 s 504, 30 s 1504), in
            time order, the 8 mel bands of one time next to each other, zero where padded; and their mask (B, T'), bool.

        Raises:
            ValueError: if M is not the number of mel bins of this encoder.
        """
        check_features(sound_features, self.config.num_mel_bins)
        features = sound_features.to(self.patch_embedding.weight.dtype)
        return encode_blocks(features, sound_features_mask, self.config.hidden_size, self._encode_block)

    def _encode_block(self, features: Tensor, real: Tensor) -> Tensor:
        """Encode at most 30.08 s: (b, P * 16, M), real frames (b, t) → (b, t, D)."""
        patches = self.patch_embedding(features[:, None])
        num_patches, num_bands = patches.shape[2:]
        positions = sincos_positions(num_patches, num_bands, self.config.hidden_size).to(patches)
        hidden = patches.flatten(2).transpose(1, 2) + positions
        hidden = self.pre_norm(torch.cat([self.cls_token.expand(len(hidden), -1, -1), hidden], dim=1))
        hidden = nn.functional.dropout(hidden, self.config.dropout, self.training)
        attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=None if bool(real.all()) else nn.functional.pad(real, (1, 0), value=True),
        )
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        return hidden[:, 1:]


def sincos_positions(num_patches: int, num_bands: int, hidden_size: int) -> Tensor:
    """Return EAT's fixed positions (num_patches * num_bands, D), by time, then by mel band.

    The first half of a position tells the band, the second the time; each is sines, then cosines, of wavelengths from
    2π to 10,000 · 2π in geometric steps (float32).

    Source: `get_2d_sincos_pos_embed_flexible` in EAT's code, after MAE (arXiv 2111.06377).
    """
    quarter = hidden_size // 4
    frequencies = 1.0 / 10_000 ** (torch.arange(quarter) / quarter)
    time = torch.arange(num_patches).repeat_interleave(num_bands)[:, None] * frequencies
    band = torch.arange(num_bands).repeat(num_patches)[:, None] * frequencies
    return torch.cat([band.sin(), band.cos(), time.sin(), time.cos()], dim=1)
