"""BEATs: a sound encoder that learned to predict the labels of acoustic tokenizers."""

# No `from __future__ import annotations`: it would turn types into texts, which `strict` does not check.

import math
from collections.abc import Sequence

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BatchFeature, FeatureExtractionMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import (
    eager_attention_forward,
)

from .fbank import SAMPLE_RATE_HZ, check_sampling_rate, fbank, num_fbank_frames, stack_waveforms
from .patches import PATCH, check_features, encode_blocks


@strict
class BeatsConfig(PreTrainedConfig):
    """Configuration of `BeatsEncoder`; the defaults are the sizes of all public BEATs (iter 1 to 3+).

    Attributes:
        num_mel_bins: M, a multiple of 16.
        patch_embedding_size: width of an embedded patch, before it is projected to `hidden_size`.
        hidden_size: D.
        num_hidden_layers, num_attention_heads, intermediate_size: of the transformer.
        conv_kernel, conv_groups: of the convolution that tells positions.
        num_buckets, max_distance: of the relative position bias; beyond `max_distance` all share a bucket.
        dropout, attention_dropout: while training.
        num_classes: outputs of the AudioSet classifier of a fine-tuned checkpoint; 0 without it.
        class_names: what they stand for (AudioSet's machine ids, `/m/09x0r`), if the checkpoint says so.
    """

    model_type = "stapes_beats"

    num_mel_bins: int = 128
    patch_embedding_size: int = 512
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_kernel: int = 128
    conv_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    num_classes: int = 0
    class_names: list[str] | None = None
    initializer_range: float = 0.02

    def validate_shape(self) -> None:
        """Refuse what no BEATs can be; `strict` calls this after construction.

        Raises:
            ValueError: naming the setting.
        """
        if self.num_mel_bins < PATCH or self.num_mel_bins % PATCH:
            raise ValueError(f"num_mel_bins is {self.num_mel_bins}; wanted a multiple of {PATCH}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide by {self.num_attention_heads} heads")
        if self.hidden_size % self.conv_groups:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide by {self.conv_groups} conv_groups")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for {self.num_classes} classes")


class BeatsFeatureExtractor(FeatureExtractionMixin):
    """Kaldi fbank as BEATs hears it: int16 range, povey window, normalised with AudioSet's mean and deviation.

    Source: BEATs (arXiv 2212.09058), sec. 4.2, and `preprocess` of its code. `pad_to_s=1.0` pads shorter clips with
    silence, as SALMONN does.
    """

    model_input_names = ["sound_features", "sound_features_mask"]  # noqa: RUF012 - the base class declares it so

    def __init__(
        self,
        num_mel_bins: int = 128,
        mean: float = 15.41663,
        std: float = 6.55582,
        pad_to_s: float | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.num_mel_bins = num_mel_bins
        self.mean = mean
        self.std = std
        self.pad_to_s = pad_to_s

    def __call__(self, raw_speech: Sequence[np.ndarray], sampling_rate: int | None = None) -> BatchFeature:
        """Transform B waveforms (N,), float, mono, 16 kHz, in [-1, 1].

        Returns:
            `sound_features` (B, F, M), float32, (log-mel - mean) / (2 * std), F = `num_fbank_frames(N)` (10 s: 998),
            right-padded with zeros; `sound_features_mask` (B, F), int64.

        Raises:
            ValueError: if a waveform is not one-dimensional or shorter than 25 ms, or `sampling_rate` is not 16 kHz.
        """
        check_sampling_rate(sampling_rate)
        if self.pad_to_s is not None:
            shortest = round(self.pad_to_s * SAMPLE_RATE_HZ)
            raw_speech = [np.pad(waveform, (0, max(0, shortest - len(waveform)))) for waveform in raw_speech]
        waveforms = stack_waveforms(raw_speech)
        features = (fbank(waveforms * 2.0**15, self.num_mel_bins, "povey") - self.mean) / (2 * self.std)
        num_frames = torch.tensor([num_fbank_frames(len(waveform)) for waveform in raw_speech])
        mask = (torch.arange(features.shape[1])[None] < num_frames[:, None]).long()
        return BatchFeature({"sound_features": features * mask[:, :, None], "sound_features_mask": mask})


class PositionConv(nn.Module):
    """A wide grouped convolution whose output tells where a frame is; its weight is normalised per kernel position."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.groups = config.conv_groups
        self.weight_v = nn.Parameter(
            torch.empty(config.hidden_size, config.hidden_size // config.conv_groups, config.conv_kernel)
        )
        self.weight_g = nn.Parameter(torch.empty(1, 1, config.conv_kernel))
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """(b, t, D) → (b, t, D)."""
        weight = self.weight_v * (self.weight_g / self.norm())
        convolved = nn.functional.conv1d(
            hidden.transpose(1, 2), weight, self.bias, padding=weight.shape[2] // 2, groups=self.groups
        )
        # With an even kernel the padding makes one frame too many.
        return nn.functional.gelu(convolved[:, :, : hidden.shape[1]]).transpose(1, 2)

    def norm(self) -> Tensor:
        """Return the norms (1, 1, kernel) of the unnormalised weight."""
        return torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True)


class BeatsAttention(nn.Module):
    """Self-attention with a relative position bias that each query scales by gates of its own.

    Source: WavLM (arXiv 2110.13900), sec. 3.2. Where we differ: BEATs' code divides the scores by 32 and multiplies
    them again, to keep float16 from overflowing; SDPA sums in float32 and needs no such detour.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.is_causal = False
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.grep_linear = nn.Linear(self.head_dim, 8)
        self.grep_a = nn.Parameter(torch.empty(1, config.num_attention_heads, 1, 1))

    def forward(self, hidden: Tensor, position_bias: Tensor, padding: Tensor | None) -> Tensor:
        """(b, t, D), bias (H, t, t), True on padding (b, 1, 1, t) → (b, t, D)."""
        shape = (*hidden.shape[:2], -1, self.head_dim)
        query, key, value = (
            projection(hidden).view(shape).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        update, reset = self.grep_linear(query).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid().split(1, dim=-1)
        bias = ((update * (reset * self.grep_a - 1.0) + 2.0) * position_bias).to(query.dtype)
        if padding is not None:
            bias = bias.masked_fill(padding, -math.inf)
        implementation = self.config._attn_implementation or "sdpa"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        attended, _ = attend(self, query, key, value, bias, scaling=self.head_dim**-0.5, dropout=dropout)
        return self.out_proj(attended.flatten(2))


class BeatsLayer(GradientCheckpointingLayer):
    """A post-LN transformer layer whose residuals are scaled up (DeepNorm, arXiv 2203.00555)."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, hidden: Tensor, position_bias: Tensor, padding: Tensor | None) -> Tensor:
        """(b, t, D), bias (H, t, t), True on padding (b, 1, 1, t) → (b, t, D)."""
        attended = nn.functional.dropout(self.self_attn(hidden, position_bias, padding), self.dropout, self.training)
        hidden = self.self_attn_layer_norm(hidden * self.residual_scale + attended)
        computed = self.fc2(nn.functional.gelu(self.fc1(hidden)))
        computed = nn.functional.dropout(computed, self.dropout, self.training)
        return self.final_layer_norm(hidden * self.residual_scale + computed)


class BeatsEncoder(PreTrainedModel):
    """BEATs: patches → convolution for positions → post-LN transformer with gated relative position bias.

    Source: BEATs (arXiv 2212.09058), sec. 3; the names of the weights are those of its code. Where we differ: the code
    guesses which patches are padding from the padded waveform, a little off, and computes features across a clip's
    end; here a patch counts if all its samples are the clip's, and a clip's frames do not depend on its batch. Clips
    beyond 30.08 s are encoded in blocks that do not attend to each other. Without the classifier that fine-tuned
    checkpoints carry it has 90,311,792 parameters, with it 90,717,055.
    """

    config: BeatsConfig
    config_class = BeatsConfig
    base_model_prefix = ""
    main_input_name = "sound_features"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["BeatsLayer"]  # noqa: RUF012 - the base class declares it so

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(1, config.patch_embedding_size, kernel_size=PATCH, stride=PATCH, bias=False)
        self.layer_norm = nn.LayerNorm(config.patch_embedding_size)
        self.post_extract_proj = nn.Linear(config.patch_embedding_size, config.hidden_size)
        self.pos_conv = PositionConv(config)
        self.encoder_layer_norm = nn.LayerNorm(config.hidden_size)
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.num_attention_heads)
        self.layers = nn.ModuleList([BeatsLayer(config) for _ in range(config.num_hidden_layers)])
        self.predictor = nn.Linear(config.hidden_size, config.num_classes) if config.num_classes else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PositionConv):
            num_inputs = module.weight_v.shape[2] * module.weight_v.shape[0]
            init.normal_(module.weight_v, mean=0.0, std=math.sqrt(4.0 / num_inputs))
            init.copy_(module.weight_g, module.norm())
            init.zeros_(module.bias)
        elif isinstance(module, BeatsAttention):
            init.ones_(module.grep_a)

    def forward(self, sound_features: Tensor, sound_features_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode fbank features.

        Args:
            sound_features: (B, F, M) of `BeatsFeatureExtractor`, right-padded.
            sound_features_mask: (B, F), 1 on real frames; None when nothing is padded.

        Returns:
            frames (B, T', D), 8 for each whole 160 ms (M = 128; 1 s gives 48, 10 s 496, 30 s 1496), in time order, the
            8 mel bands of one time next to each other, zero where padded; and their mask (B, T'), bool.

        Raises:
            ValueError: if M is not the number of mel bins of this encoder.
        """
        check_features(sound_features, self.config.num_mel_bins)
        features = sound_features.to(self.patch_embedding.weight.dtype)
        return encode_blocks(features, sound_features_mask, self.config.hidden_size, self._encode_block)

    def _encode_block(self, features: Tensor, real: Tensor) -> Tensor:
        """Encode at most 30.08 s: (b, P * 16, M), real frames (b, t) → (b, t, D)."""
        hidden = self.patch_embedding(features[:, None]).flatten(2).transpose(1, 2)
        # The convolution sees zeros past a clip's end, as if the clip were alone.
        hidden = self.post_extract_proj(self.layer_norm(hidden)) * real[:, :, None]
        hidden = self.encoder_layer_norm(hidden + self.pos_conv(hidden))
        hidden = nn.functional.dropout(hidden, self.config.dropout, self.training)
        position_bias = self._position_bias(hidden.shape[1])
        padding = None if bool(real.all()) else ~real[:, None, None]
        for layer in self.layers:
            hidden = layer(hidden, position_bias, padding)
        return hidden

    def _position_bias(self, num_frames: int) -> Tensor:
        """Look up the bias (H, t, t) of each head for each pair of query and key."""
        # Always on the CPU: another device may round a logarithm over a bucket's edge.
        distances = torch.arange(1 - num_frames, num_frames, device="cpu")
        buckets = relative_buckets(distances, self.config.num_buckets, self.config.max_distance)
        by_distance = self.relative_attention_bias(buckets.to(self.relative_attention_bias.weight.device)).T
        # Query i sees its keys at distances -i ... t - 1 - i: a window that moves one to the left with each query.
        return by_distance.unfold(1, num_frames, 1).flip(1)

    def classify(self, frames: Tensor, frames_mask: Tensor) -> Tensor:
        """Tell the probability of each AudioSet class: what `forward` returns → (B, num_classes), NaN without frames.

        Raises:
            ValueError: if the model was built without its classifier.
        """
        if self.predictor is None:
            raise ValueError("this BEATs has no classifier; convert a fine-tuned checkpoint and keep its predictor")
        logits = self.predictor(frames) * frames_mask[:, :, None]
        return (logits.sum(dim=1) / frames_mask.sum(dim=1, keepdim=True)).sigmoid()


def relative_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Sort distances (key minus query, int) into buckets: half for each direction, exact when near, then logarithmic.

    Source: T5 (arXiv 1910.10683), sec. 2.1, as in BEATs' code.
    """
    half = num_buckets // 2
    exact = half // 2
    magnitudes = distances.abs()
    growth = torch.log(magnitudes.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(magnitudes < exact, magnitudes, far) + (distances > 0).long() * half
