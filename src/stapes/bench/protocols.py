"""What is measured, and on what: settings, clip and instruction of each protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import numpy as np

from ..data.audio import MIN_SAMPLES, SAMPLE_RATE_HZ, load_audio
from ..data.prompts import TEST_INSTRUCTIONS
from ..errors import StapesError

ProtocolName = Literal["stapes", "nota"]

NOTA_AUDIO_S = 10.0
NOTA_NEW_TOKENS = 2
"""The token that the prefill predicts and the one that the single cached step predicts."""

NOTA_INSTRUCTION = "Recognize the speech and give me the transcription."


@dataclass(frozen=True)
class BenchSettings:
    """How one model is measured: batch 1, greedy, the same clip in every run.

    Attributes:
        audio_s: length of the made-up clip in seconds; ignored when `audio` is given.
        new_tokens: tokens answered in a run, at least 2; the prefill predicts the first, cached steps the others.
        warmup: runs before the first that counts.
        repeats: runs that count.
        seed: of the made-up clip.
        protocol: `stapes` measures a whole answer; `nota` the published protocol, see `NOTA`.
        audio: an audio file in place of the made-up clip.
        num_threads: of torch on a CPU; torch's own choice if None.
        device: torch device; the first GPU if there is one, else the CPU.

    Raises:
        StapesError: if a value is out of range.
        ValueError: if `nota` is given another clip or number of tokens than it prescribes.
    """

    audio_s: float
    new_tokens: int
    warmup: int
    repeats: int
    seed: int = 0
    protocol: ProtocolName = "stapes"
    audio: Path | None = None
    num_threads: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        shortest_s = MIN_SAMPLES / SAMPLE_RATE_HZ
        for name, value, least in (
            ("audio_s", self.audio_s, shortest_s),
            ("new_tokens", self.new_tokens, 2),
            ("warmup", self.warmup, 0),
            ("repeats", self.repeats, 1),
            ("num_threads", self.num_threads, 1),
        ):
            if value is not None and not value >= least:
                raise StapesError(f"bench: {name} is {value}; give at least {least}")
        prescribed = (NOTA_AUDIO_S, NOTA_NEW_TOKENS, None)
        if self.protocol == "nota" and (self.audio_s, self.new_tokens, self.audio) != prescribed:
            raise ValueError("the nota protocol prescribes its clip and takes one cached step; use replace(NOTA, …)")


NOTA = BenchSettings(audio_s=NOTA_AUDIO_S, new_tokens=NOTA_NEW_TOKENS, warmup=10, repeats=100, protocol="nota")
"""The published efficiency protocol of the SALMONN line of work (nota-github/audiolm-evaluator).

Batch 1, 10 s of white noise, the asr test prompt, 10 warm-ups, 100 runs. Latency is TTFT (encode, prompt, one prefill)
plus TPOT (one cached step); the features are made beforehand and nothing is generated. Memory is the peak since the
process started, loading included, in GiB: of CUDA's allocator, or on a CPU of the resident set, which is another thing
and named so. Both columns are means over the runs, as published.

Where we differ: the original reads its clock without waiting for the GPU, so that it mostly follows the number of
layers; ours waits (`torch.cuda.synchronize`), and reads higher there. Fewer runs than prescribed are marked `reduced`.
"""


def is_reduced(settings: BenchSettings) -> bool:
    """Tell whether fewer runs were made than the published protocol prescribes."""
    return settings.protocol == "nota" and (settings.warmup < NOTA.warmup or settings.repeats < NOTA.repeats)


def make_clip(settings: BenchSettings) -> tuple[np.ndarray, str]:
    """Return the waveform (N,), float32 at 16 kHz, that every run hears, and what it is called.

    Raises:
        AudioError: if `settings.audio` cannot be used.
    """
    if settings.audio is not None:
        return load_audio(settings.audio), str(settings.audio)
    match settings.protocol:
        case "stapes":
            return speech_shaped_noise(settings.audio_s, settings.seed), "speech-shaped noise"
        case "nota":
            return white_noise(settings.audio_s, settings.seed), "white noise"
        case _:
            assert_never(settings.protocol)


def instruction_of(protocol: ProtocolName) -> str:
    """Return what the model is asked to do with the clip."""
    match protocol:
        case "stapes":
            return TEST_INSTRUCTIONS["asr"]
        case "nota":
            return NOTA_INSTRUCTION
        case _:
            assert_never(protocol)


def speech_shaped_noise(duration_s: float, seed: int) -> np.ndarray:
    """Make noise with the spectrum and rhythm of speech, so that no recording has to be shipped.

    White noise with speech's long-term spectrum, flat up to 500 Hz and falling by 9 dB an octave above (a smooth
    stand-in for Byrne et al. 1994, "An international comparison of long-term average speech spectra", fig. 2), in
    syllables of 4 Hz.

    Args:
        duration_s: length; rounded to whole samples.
        seed: of the noise; the same seed gives the same samples.

    Returns:
        (N,) float32 at 16 kHz, peak 0.5.
    """
    num_samples = round(duration_s * SAMPLE_RATE_HZ)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(num_samples))
    frequency_hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    spectrum *= np.maximum(frequency_hz / 500, 1) ** -1.5  # 20 log10(2^-1.5) = -9 dB
    syllables = 0.55 - 0.45 * np.cos(2 * np.pi * 4 * np.arange(num_samples) / SAMPLE_RATE_HZ)
    waveform = np.fft.irfft(spectrum, num_samples) * syllables
    return (0.5 * waveform / np.abs(waveform).max()).astype(np.float32)


def white_noise(duration_s: float, seed: int) -> np.ndarray:
    """Make Gaussian white noise (N,), float32 at 16 kHz, standard deviation 1; the same seed, the same samples."""
    return np.random.default_rng(seed).standard_normal(round(duration_s * SAMPLE_RATE_HZ)).astype(np.float32)
