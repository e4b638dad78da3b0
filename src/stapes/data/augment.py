"""Seeded augmentation of training audio: what a clip becomes depends on its seed alone.

Each effect draws from a generator of its own, made from the seed and its name. Changing, adding or leaving out one
effect therefore changes nothing in what the others draw; and an effect draws its settings in the same way whatever
their span. audiomentations was considered: it draws from the global generators of `random` and `numpy.random`, which
cannot be seeded a clip, and needs librosa (numba, scikit-learn).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, assert_never

import numpy as np
import soxr

from ..errors import RecipeError
from .audio import MIN_SAMPLES, SAMPLE_RATE_HZ, load_audio
from .codecs import KINDS, encode_and_decode, require_codecs
from .filters import band_pass
from .noise import cut_noise, list_recordings, mix
from .reverb import DISTANCE_M, reverberate, synthetic_response

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Speed:
    """Speed perturbation by resampling (Ko et al. 2015, Interspeech): tempo and pitch change together.

    The result has N / factor samples, rounded; a clip is never sped up to less than 25 ms.

    Attributes:
        p: how probable it is.
        factor: lowest and highest; 1.1 is 10 % faster.
    """

    p: float
    factor: tuple[float, float]


@dataclass(frozen=True)
class Reverb:
    """Convolution with an impulse response; direct sound keeps its time and the clip its power. See `reverb.py`.

    Attributes:
        p: how probable it is.
        rt60_s: shortest and longest decay of a synthetic response by 60 dB; not used with a folder.
        folder: of recorded responses, searched with all folders in it; None for synthetic ones.
    """

    p: float
    rt60_s: tuple[float, float]
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            list_recordings(self.folder)


@dataclass(frozen=True)
class Noise:
    """Additive noise at an exact signal-to-noise ratio.

    Both powers are means over the whole clip, pauses included. A silent clip stays silent: at any ratio to it noise has
    no power. Recorded noise begins at a random place and is looped without a click; see `noise.py`.

    Attributes:
        p: how probable it is.
        snr_db: lowest and highest.
        folder: of recorded noises, searched with all folders in it; None for white Gaussian noise.
    """

    p: float
    snr_db: tuple[float, float]
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None:
            list_recordings(self.folder)


@dataclass(frozen=True)
class BandPass:
    """A Butterworth band-pass run forth and back: no delay, no change of phase, level not made up.

    Of order 4 at either edge and run twice: 6 dB down at the edges, some 48 dB an octave beyond.

    Attributes:
        p: how probable it is.
        low_hz, high_hz: the edges, below 8000 Hz.
    """

    p: float
    low_hz: float
    high_hz: float

    def __post_init__(self) -> None:
        if not 0 < self.low_hz < self.high_hz < SAMPLE_RATE_HZ / 2:
            raise RecipeError(
                f"augment.band_pass: low_hz {self.low_hz:g}, high_hz {self.high_hz:g}; wanted 0 < low_hz < high_hz < "
                f"{SAMPLE_RATE_HZ // 2}, half the sample rate"
            )


@dataclass(frozen=True)
class Codec:
    """A trip through a lossy codec, length and time kept. See `codecs.py`.

    Attributes:
        p: how probable it is.
        kinds: of `codecs.KINDS`; each is as probable as the others.
    """

    p: float
    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        require_codecs(self.kinds)
        if not self.kinds:
            raise RecipeError(f"augment.codec: names no kinds; known codecs are {', '.join(KINDS)}")


@dataclass(frozen=True)
class Gain:
    """A change of level. Samples above full scale stay as they are.

    A recorder would clip there, but that distorts, which a change of level should not do; and the model's log-mel
    features know no full scale.

    Attributes:
        p: how probable it is.
        db: lowest and highest.
    """

    p: float
    db: tuple[float, float]


_Option = TypeVar("_Option")

Effect = Speed | Reverb | Noise | BandPass | Codec | Gain


def augment(waveform: np.ndarray, effects: Sequence[Effect], seed: int) -> np.ndarray:
    """Apply effects, each with its probability, in their order.

    Args:
        waveform: (N,), float, mono, 16 kHz, N ≥ 400; it is not changed.
        effects: the first is applied first. Two of the same kind draw apart.
        seed: decides everything.

    Returns:
        (N,), float32, finite; another length ≥ 400 after `Speed`.

    Raises:
        AudioError: if a file of a noise or impulse-response folder cannot be used.
        RecipeError: if settings are so extreme that samples overflow.
        ValueError: if the shape is wrong.
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1 or waveform.shape[0] < MIN_SAMPLES:
        raise ValueError(f"a waveform has shape {waveform.shape}; wanted (N,) with N ≥ {MIN_SAMPLES} (25 ms at 16 kHz)")
    seen: Counter[str] = Counter()
    for effect in effects:
        kind = type(effect).__name__
        generator = np.random.default_rng(sample_seed(seed, kind, seen[kind]))
        seen[kind] += 1
        if generator.random() >= effect.p:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            waveform = _apply(effect, waveform, generator)
        if not np.isfinite(waveform).all():
            raise RecipeError(f"augment: {effect} made samples that are not finite; choose milder settings")
    return waveform


def sample_seed(seed: int, sample_id: str, draw: int) -> int:
    """Derive the seed of one draw of one sample, the same in every process and on every machine.

    Returns:
        63 bits, non-negative: fits numpy's and torch's generators.
    """
    digest = hashlib.blake2b(json.dumps([seed, sample_id, draw]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def spec_augment(
    features: Tensor,
    *,
    time_masks: int,
    max_time_frames: int,
    freq_masks: int,
    max_freq_bins: int,
    max_share: float,
    seed: int,
) -> Tensor:
    """Mask stretches of time and bands of frequency.

    Args:
        features: (M, F) log-mel, without padding; it is not changed.
        time_masks: how many.
        max_time_frames: each covers from 0 to this many frames.
        freq_masks: how many.
        max_freq_bins: each covers from 0 to this many mel bins.
        max_share: the time masks together never cover more of the F frames; each may have an equal part.
        seed: decides everything.

    Returns:
        (M, F), masks filled with the mean of all features.

    Source: SpecAugment (arXiv 1904.08779), sec. 2. Its fill of zero is the mean of its normalized features. Unlike it
    there is no time warping, which it found to matter least, and `max_share` bounds all time masks, not each.
    """
    num_bins, num_frames = features.shape
    longest = min(max_time_frames, int(max_share * num_frames / max(1, time_masks)))
    masked, mean = features.clone(), features.mean()
    generator = np.random.default_rng(sample_seed(seed, "SpecAugment.time", 0))
    for covered in _masks(generator, time_masks, longest, num_frames):
        masked[:, covered] = mean
    generator = np.random.default_rng(sample_seed(seed, "SpecAugment.frequency", 0))
    for covered in _masks(generator, freq_masks, min(max_freq_bins, num_bins), num_bins):
        masked[covered] = mean
    return masked


def augment_frames(frames: Tensor, noise_std: tuple[float, float], masks: Mapping[str, Any], seed: int) -> Tensor:
    """Disturb an encoder's output: noise, then masks over time and over channels.

    It costs no run of the encoder, so that stored output looks different each time.

    Args:
        frames: (T, D), without padding; it is not changed.
        noise_std: the noise's standard deviation is drawn between these two.
        masks: arguments of `spec_augment`, whose frequency bins are the D channels here.
        seed: decides everything.

    Returns:
        (T, D).
    """
    generator = np.random.default_rng(sample_seed(seed, "frames.noise", 0))
    std = generator.uniform(*noise_std)
    noise = std * generator.standard_normal(tuple(frames.shape), dtype=np.float32)
    return spec_augment((frames + frames.new_tensor(noise)).T, **masks, seed=seed).T


def _apply(effect: Effect, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    match effect:
        case Speed(factor=span):
            factor = min(generator.uniform(*span), waveform.shape[0] / MIN_SAMPLES)
            return soxr.resample(waveform, factor * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ, quality="HQ")
        case Reverb(rt60_s=span, folder=folder):
            if folder is None:
                rt60_s, distance_m = generator.uniform(*span), generator.uniform(*DISTANCE_M)
                return reverberate(waveform, synthetic_response(rt60_s, distance_m, generator))
            path = _choose(list_recordings(folder), generator)
            return reverberate(waveform, load_audio(path), name=str(path))
        case Noise(snr_db=span, folder=folder):
            snr_db = generator.uniform(*span)
            if folder is None:
                return mix(waveform, generator.standard_normal(waveform.shape[0]), snr_db)
            path = _choose(list_recordings(folder), generator)
            stretch = cut_noise(load_audio(path), waveform.shape[0], generator.random(), name=str(path))
            return mix(waveform, stretch, snr_db)
        case BandPass(low_hz=low_hz, high_hz=high_hz):
            return band_pass(waveform, low_hz, high_hz).astype(np.float32)
        case Codec(kinds=kinds):
            return encode_and_decode(waveform, _choose(kinds, generator), generator.random())
        case Gain(db=span):
            return (waveform * 10.0 ** (generator.uniform(*span) / 20)).astype(np.float32)
        case _:
            assert_never(effect)


def _choose(options: Sequence[_Option], generator: np.random.Generator) -> _Option:
    return options[int(generator.random() * len(options))]


def _masks(generator: np.random.Generator, count: int, longest: int, size: int) -> Iterator[slice]:
    for _ in range(count):
        width = int(generator.random() * (longest + 1))
        start = int(generator.random() * (size - width + 1))
        yield slice(start, start + width)
