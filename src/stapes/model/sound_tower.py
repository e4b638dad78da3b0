"""Audio models of transformers as sound encoders: AST, CLAP's audio tower, encoders of waveforms such as HuBERT."""

# No `from __future__ import annotations`: it would turn types into texts, which `strict` does not check.

import copy
import json
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoModel,
    BatchFeature,
    ClapAudioModel,
    ClapFeatureExtractor,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)
from transformers.configuration_utils import SubConfigSpec

from .fbank import SAMPLE_RATE_HZ, check_sampling_rate, stack_waveforms
from .patches import check_features

FRAME_RATE_HZ = 50
"""Of what a tower gives, as of Whisper's encoder."""

_WAVEFORM_BLOCK_S = 30
_AST_FRAME_RATE_HZ = 100
_AST_WINDOW = 400
_SPECTROGRAM_TYPES = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "clap_audio_model": "ClapFeatureExtractor",
}
_WAVEFORM_TYPES = dict.fromkeys(("wav2vec2", "hubert", "data2vec-audio"), "Wav2Vec2FeatureExtractor")
TOWER_TYPES = {**_SPECTROGRAM_TYPES, **_WAVEFORM_TYPES}
"""Types of models whose output is a sequence that can be told in time → the front end of each."""


@strict
class SoundTowerConfig(PreTrainedConfig):
    """Configuration of `SoundTower`.

    Attributes:
        tower_config: of the model itself, of a type in `TOWER_TYPES`.
        hidden_size: D.
        num_mel_bins: M; 1 where the model hears samples.
        block_features: feature frames (or samples) that are encoded together.
        block_frames: the frames at 50 Hz that these become.
    """

    model_type = "stapes_sound_tower"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "tower_config": SubConfigSpec(config_class=AutoConfig, model_type="audio-spectrogram-transformer")
    }

    tower_config: Any = None
    hidden_size: int = 768
    num_mel_bins: int = 1
    block_features: int = _WAVEFORM_BLOCK_S * SAMPLE_RATE_HZ
    block_frames: int = _WAVEFORM_BLOCK_S * FRAME_RATE_HZ


class SoundTowerFeatureExtractor(FeatureExtractionMixin):
    """A front end of transformers whose features follow each clip's length instead of one length for all.

    Where we differ from those front ends: nothing is cut. AST and CLAP hear blocks of 10.24 and 10 s, the last one
    padded as their front ends pad (AST with zeros, CLAP with the clip once more).

    Args:
        front_end: the settings of the front end (`to_dict` of it).
        kwargs: see `FeatureExtractionMixin`.
    """

    model_input_names = ["sound_features", "sound_features_mask"]  # noqa: RUF012 - the base class declares it so

    def __init__(self, front_end: dict[str, Any], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.front_end = front_end

    def __call__(self, raw_speech: Sequence[np.ndarray], sampling_rate: int | None = None) -> BatchFeature:
        """Transform B waveforms (N,), float, mono, 16 kHz, in [-1, 1].

        Returns:
            `sound_features` (B, F, M), float32, right-padded with zeros: F is 1024 for each 10.24 s (AST), 1001 for
            each 10 s (CLAP), or N with M = 1; `sound_features_mask` (B, F), int64.

        Raises:
            ValueError: if a waveform is not one-dimensional or shorter than 25 ms, or `sampling_rate` is not 16 kHz.
        """
        check_sampling_rate(sampling_rate)
        stack_waveforms(raw_speech)  # refuses what is no waveform
        front_end = _front_end(json.dumps(self.front_end, sort_keys=True))
        rows = [torch.from_numpy(_features(front_end, waveform)) for waveform in raw_speech]
        features = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(features.shape[1])[None] < lengths[:, None]).long()
        return BatchFeature({"sound_features": features, "sound_features_mask": mask})


class SoundTower(PreTrainedModel):
    """A model of transformers, its output told in time: frames at 50 Hz, in which several may say the same.

    AST gives 12 mel bands every 100 ms and CLAP 2 every 310 ms: the bands are averaged, and each frame takes the step
    that lies nearest to it.
    """

    config: SoundTowerConfig
    config_class = SoundTowerConfig
    base_model_prefix = ""
    main_input_name = "sound_features"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: SoundTowerConfig, tower: PreTrainedModel | None = None) -> None:
        """Build the model; a tower that is given is used as it is."""
        super().__init__(config)
        self.tower = tower or _build_tower(config.tower_config)
        self.post_init()

    def forward(self, sound_features: Tensor, sound_features_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode features, one clip and block after another: what a clip becomes does not depend on its neighbours.

        Args:
            sound_features: (B, F, M) of `SoundTowerFeatureExtractor`, right-padded.
            sound_features_mask: (B, F), 1 on real frames; None when nothing is padded.

        Returns:
            frames (B, T', D), zero where padded, and their mask (B, T'), bool.

        Raises:
            ValueError: if M is not that of the tower's front end.
        """
        check_features(sound_features, self.config.num_mel_bins)
        size = self.config.block_features
        clips = []
        for row, features in enumerate(sound_features.to(self.dtype)):
            length = len(features) if sound_features_mask is None else int(sound_features_mask[row].sum())
            clips.append(torch.cat([self._encode_block(block) for block in features[:length].split(size)]))
        lengths = torch.tensor([len(clip) for clip in clips], device=sound_features.device)
        frames = nn.utils.rnn.pad_sequence(clips, batch_first=True)
        return frames, torch.arange(frames.shape[1], device=lengths.device)[None] < lengths[:, None]

    def _encode_block(self, features: Tensor) -> Tensor:
        """Encode one block: (F, M) → (T', D)."""
        num_frames = len(features) * self.config.block_frames // self.config.block_features
        tower: Any = self.tower
        config = tower.config
        if num_frames == 0:
            return features.new_zeros(0, self.config.hidden_size)
        match config.model_type:
            case "audio-spectrogram-transformer":
                num_bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
                # Two tokens for the whole block come first; the others go by band, then by time.
                tokens = tower(input_values=features[None]).last_hidden_state[:, 2:]
                steps = tokens.unflatten(1, (num_bands, -1)).mean(dim=1).transpose(1, 2)
            case "clap_audio_model":
                # A model that fuses views of long clips gets one view: blocks are never too long.
                views = features[None, None].expand(-1, 4 if config.enable_fusion else 1, -1, -1)
                is_longer = torch.zeros(1, 1, dtype=torch.bool, device=features.device)
                steps = tower(input_features=views, is_longer=is_longer).last_hidden_state.mean(dim=2)
            case _:
                # The rest of a long clip may be shorter than what one step is made of.
                missing = max(0, _samples_of_a_step(config) - len(features))
                samples = nn.functional.pad(features.T, (0, missing))
                steps = tower(input_values=samples).last_hidden_state.transpose(1, 2)
        # With one step for each frame this changes nothing.
        return nn.functional.interpolate(steps, size=num_frames, mode="nearest-exact")[0].T


def describe_tower(tower_config: PreTrainedConfig, front_end: dict[str, Any]) -> SoundTowerConfig:
    """Tell the sizes of a tower by its configuration and the settings of its front end.

    Raises:
        ValueError: if the model's type is not in `TOWER_TYPES`, or the front end is not the one of that type.
    """
    kind, wanted = front_end.get("feature_extractor_type"), TOWER_TYPES.get(tower_config.model_type)
    if wanted is None:
        raise ValueError(f"is a `{tower_config.model_type}` model; wanted one of {', '.join(TOWER_TYPES)}")
    if kind != wanted:
        raise ValueError(f"its front end is a {kind}, that of a `{tower_config.model_type}` is a {wanted}")
    # A copy: a composite configuration clears the attention implementation of those it is given.
    config: Any = copy.deepcopy(tower_config)
    match tower_config.model_type:
        case "audio-spectrogram-transformer":
            block = config.max_length
            frames = block * FRAME_RATE_HZ // _AST_FRAME_RATE_HZ
            return SoundTowerConfig(
                tower_config=config,
                hidden_size=config.hidden_size,
                num_mel_bins=config.num_mel_bins,
                block_features=block,
                block_frames=frames,
            )
        case "clap_audio_model":
            samples = front_end["max_length_s"] * front_end["sampling_rate"]
            return SoundTowerConfig(
                tower_config=config,
                hidden_size=config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1),
                num_mel_bins=config.num_mel_bins,
                block_features=samples // front_end["hop_length"] + 1,
                block_frames=front_end["max_length_s"] * FRAME_RATE_HZ,
            )
        case _:
            width = config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size
            return SoundTowerConfig(tower_config=config, hidden_size=width)


def _samples_of_a_step(config: Any) -> int:
    """Count the samples that one step of a stack of convolutions sees."""
    samples, apart = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples += (kernel - 1) * apart
        apart *= stride
    return samples


def _build_tower(config: Any) -> PreTrainedModel:
    # transformers' AutoModel knows the whole of CLAP only.
    return ClapAudioModel(config) if config.model_type == "clap_audio_model" else AutoModel.from_config(config)


@cache
def _front_end(settings: str) -> Any:
    """Build a front end once: the filters of CLAP's take longer than a clip."""
    values = json.loads(settings)
    match values.pop("feature_extractor_type", None):
        case "ASTFeatureExtractor":
            return ASTFeatureExtractor(**values)
        case "ClapFeatureExtractor":
            return ClapFeatureExtractor(**values)
        case "Wav2Vec2FeatureExtractor":
            return Wav2Vec2FeatureExtractor(**values)
        case kind:
            raise ValueError(f"front_end: is a {kind!r}; wanted one of {', '.join(sorted({*TOWER_TYPES.values()}))}")


def _features(front_end: Any, waveform: np.ndarray) -> np.ndarray:
    """Transform one clip (N,) → (F, M), float32."""
    rate_hz = front_end.sampling_rate
    match front_end:
        case ASTFeatureExtractor():
            name, shortest = "input_values", _AST_WINDOW
            block = front_end.max_length * rate_hz // _AST_FRAME_RATE_HZ
        case ClapFeatureExtractor():
            import soxr

            waveform = soxr.resample(waveform, SAMPLE_RATE_HZ, rate_hz, quality="HQ")
            name, shortest, block = "input_features", front_end.fft_window_size, front_end.nb_max_samples
        case _:
            samples = front_end(waveform, sampling_rate=rate_hz, return_tensors="np")["input_values"][0]
            return samples.astype(np.float32)[:, None]
    # A rest of less than one window makes no features.
    pieces = [waveform[start : start + block] for start in range(0, len(waveform) - shortest + 1, block)]
    blocks = [front_end(piece, sampling_rate=rate_hz)[name][0] for piece in pieces]
    # Of CLAP's views, which are alike in a block that is not too long, the first.
    views = [np.asarray(features)[0] if np.ndim(features) == 3 else np.asarray(features) for features in blocks]
    return np.concatenate(views).astype(np.float32)
