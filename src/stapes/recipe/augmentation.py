"""The sections of a recipe that say how training audio is disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from .section import PositiveSpan, Section, Span


class Noise(Section):
    """Additive noise: Gaussian, or clips from a folder, at a signal-to-noise ratio drawn from `snr_db`."""

    p: float = Field(ge=0, le=1)
    snr_db: Span
    folder: Path | None = None


class Gain(Section):
    """A change of level drawn from `db`."""

    p: float = Field(ge=0, le=1)
    db: Span


class Speed(Section):
    """Speed perturbation by resampling; 1.1 is 10 % faster and shorter."""

    p: float = Field(ge=0, le=1)
    factor: PositiveSpan


class Reverb(Section):
    """Convolution with an impulse response: a synthetic one that decays by 60 dB in `rt60_s`, or one from a folder."""

    p: float = Field(ge=0, le=1)
    rt60_s: PositiveSpan = (0.2, 0.8)
    folder: Path | None = None


class Codec(Section):
    """A trip through a lossy codec."""

    p: float = Field(ge=0, le=1)
    kinds: tuple[Literal["mulaw", "alaw", "gsm", "mp3", "vorbis", "opus"], ...] = Field(
        ("mulaw", "gsm", "mp3", "vorbis"), min_length=1
    )


class BandPass(Section):
    """Telephone-like band limits, in Hz, below half of 16 kHz."""

    p: float = Field(ge=0, le=1)
    low_hz: float = Field(300, gt=0)
    high_hz: float = Field(3400, gt=0, lt=8000)

    @model_validator(mode="after")
    def _band_is_open(self) -> BandPass:
        if self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz {self.low_hz:g} is not below high_hz {self.high_hz:g}")
        return self


class SpecAugment(Section):
    """Masks on the log-mel features (arXiv 1904.08779); a mask never covers more than `max_share` of a clip."""

    time_masks: int = Field(2, ge=0)
    max_time_frames: int = Field(40, ge=1)
    freq_masks: int = Field(2, ge=0)
    max_freq_bins: int = Field(15, ge=1)
    max_share: float = Field(0.2, gt=0, le=1)


class FrameAugment(Section):
    """On the encoder's stored output (values of order 1), drawn anew each time a clip is seen: noise, then masks."""

    noise_std: Span = (0.0, 0.3)
    masks: SpecAugment = SpecAugment(time_masks=2, max_time_frames=18, freq_masks=2, max_freq_bins=48, max_share=0.2)


class Augment(Section):
    """Augmentation of training audio, applied in this order. With a feature cache each clip has `copies` versions."""

    speed: Speed | None = None
    reverb: Reverb | None = None
    noise: Noise | None = None
    band_pass: BandPass | None = None
    codec: Codec | None = None
    gain: Gain | None = None
    spec_augment: SpecAugment | None = None
    frames: FrameAugment | None = None  # needs the feature cache
    copies: int = Field(4, ge=1)
