"""Trips through lossy codecs, in memory: what telephones and compressed files do to a recording."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from ..errors import RecipeError
from .audio import SAMPLE_RATE_HZ


class _Codec(NamedTuple):
    format: str
    subtype: str
    rate_hz: int
    levels: tuple[float, float] | None  # libsndfile's compression level: lightest, strongest


# The levels span what is in use for speech. Measured on six clips at 16 kHz (libsndfile 1.2.2): mp3 38 to 25 kb/s,
# vorbis 49 to 30, opus 27 to 12. At level 1.0 libsndfile refuses mp3.
_CODECS = {
    "mulaw": _Codec("WAV", "ULAW", 8_000, None),
    "alaw": _Codec("WAV", "ALAW", 8_000, None),
    "gsm": _Codec("WAV", "GSM610", 8_000, None),
    "mp3": _Codec("MP3", "MPEG_LAYER_III", SAMPLE_RATE_HZ, (0.5, 0.95)),
    "vorbis": _Codec("OGG", "VORBIS", SAMPLE_RATE_HZ, (0.5, 1.0)),
    "opus": _Codec("OGG", "OPUS", SAMPLE_RATE_HZ, (0.92, 0.98)),
}
KINDS = tuple(_CODECS)
"""`mulaw`, `alaw` (ITU-T G.711) and `gsm` (GSM 06.10) at a telephone's 8 kHz; `mp3`, `vorbis` and `opus` at 16 kHz."""


def require_codecs(kinds: Iterable[str]) -> None:
    """Refuse kinds of codec that do not exist or that this libsndfile lacks.

    Raises:
        RecipeError: naming the kind and those there are.
    """
    for kind in kinds:
        if kind not in _CODECS:
            close = difflib.get_close_matches(kind, KINDS, n=1)
            guess = f"did you mean `{close[0]}`? " if close else ""
            raise RecipeError(f"augment.codec: `{kind}` is not a codec; {guess}known codecs are {', '.join(KINDS)}")
        if not soundfile.check_format(_CODECS[kind].format, _CODECS[kind].subtype):
            version = soundfile.__libsndfile_version__
            raise RecipeError(
                f"augment.codec: libsndfile {version} cannot write `{kind}`; leave it out or install a newer libsndfile"
            )


def encode_and_decode(waveform: np.ndarray, kind: str, strength: float) -> np.ndarray:
    """Send a clip through a codec and back.

    No codec here shifts the clip: libsndfile takes out the delay of those that have one. What a codec appends to fill
    its last block is cut off. A clip that is louder than full scale is turned down for the trip and up after it: codecs
    clip there, or worse, and that is another effect.

    Args:
        waveform: (N,), float32, mono, 16 kHz.
        kind: one of `KINDS`.
        strength: 0 to 1, from the codec's best quality to its worst; no matter to `mulaw`, `alaw` and `gsm`.

    Returns:
        (N,), float32.
    """
    codec = _CODECS[kind]
    scale = max(1.0, float(np.abs(waveform).max()))
    narrow = _resample(waveform / np.float32(scale), SAMPLE_RATE_HZ, codec.rate_hz)
    level = None
    if codec.levels is not None:
        light, strong = codec.levels
        level = light + strength * (strong - light)
    stream = io.BytesIO()
    with soundfile.SoundFile(
        stream, "w", codec.rate_hz, 1, codec.subtype, format=codec.format, compression_level=level
    ) as sound:
        # One second at a time: libsndfile 1.2.2 dies of a Vorbis clip of 4 minutes that is written at once.
        for start in range(0, narrow.shape[0], codec.rate_hz):
            sound.write(narrow[start : start + codec.rate_hz])
    stream.seek(0)
    decoded, _ = soundfile.read(stream, dtype="float32")
    wide = _resample(decoded, codec.rate_hz, SAMPLE_RATE_HZ)[: waveform.shape[0]]
    return np.pad(wide, (0, waveform.shape[0] - wide.shape[0])) * np.float32(scale)


def _resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    return waveform if from_hz == to_hz else soxr.resample(waveform, from_hz, to_hz, quality="HQ")
