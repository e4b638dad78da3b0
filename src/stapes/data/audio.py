"""Audio files to waveforms: float32, mono, 16 kHz. What cannot be read whole is refused, never replaced."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile
import soxr

from ..errors import AudioError

SAMPLE_RATE_HZ = 16_000
"""What Whisper was trained at; every waveform inside stapes has this rate."""

MIN_SAMPLES = 400
"""One 25 ms analysis window at 16 kHz: a shorter clip holds no feature frame."""

MAX_CHANNELS = 64
"""The largest axis of a two-dimensional array that is taken for channels."""

Fault = Literal["missing", "unreadable", "empty", "nan", "truncated", "too_short"]

_RATE_RANGE_HZ = (1_000, 1_000_000)
_BLOCK_FRAMES = 1 << 20
# Encoders disagree on whether the frame that holds an MP3's own header counts; two MP3 frames are 48 ms at 48 kHz.
_MP3_SLACK_FRAMES = 2 * 1152
# Programs that write a WAV to a pipe do not know its length and put 2 or 4 GiB there.
_UNKNOWN_LENGTH_BYTES = 0x7FFF_F000
_UNKNOWN_FRAMES = 1 << 62
# A line of libsndfile's log on a WAV, AIFF, AU, W64 or RF64 file that stops before its header says.
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)


class UnusableAudioError(AudioError):
    """An audio file or array that cannot be used; `fault` says why in one word."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault: Fault = fault


@dataclass(frozen=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        duration_s: length in seconds.
        sample_rate_hz: the file's own rate.
        num_channels: 1 for mono.
        format: libsndfile's name of the container, e.g. `WAV`, `FLAC`, `OGG`, `MP3`.
    """

    duration_s: float
    sample_rate_hz: int
    num_channels: int
    format: str


def load_audio(source: str | Path | bytes, *, name: str | None = None) -> np.ndarray:
    """Read a whole audio file, whatever its name: wav, flac, ogg, mp3 and what else libsndfile knows.

    Args:
        source: a path, or the content of a file.
        name: what error messages call it; the path, or `audio`.

    Returns:
        Samples (N,), float32, mono (the mean of all channels), at 16 kHz (soxr HQ), N ≥ 400.

    Raises:
        UnusableAudioError: (an `AudioError`) if it is missing, unreadable, empty, cut off, shorter than 25 ms, or
            holds NaN or infinity. A cut cannot be seen in an Ogg file that ends with a whole page, nor in an MP3
            without a Xing header.
    """
    name = name or ("audio" if isinstance(source, bytes) else str(source))
    with _open(source, name) as (stream, sound):
        samples = _decode(sound, name)
        _refuse_cut(stream, sound, samples.shape[0], name)
        sample_rate_hz = sound.samplerate
    return prepare_waveform(samples, sample_rate_hz, name=name)


def prepare_waveform(samples: np.ndarray, sample_rate_hz: int, *, name: str = "audio") -> np.ndarray:
    """Turn samples at any rate into what the model takes.

    Args:
        samples: (N,), or (N, C) or (C, N) with C ≤ 64 channels and N > 64, so that the two cannot be confused.
            Floats in [-1, 1], or signed integers, whose full scale becomes [-1, 1).
        sample_rate_hz: rate of `samples`, from 1 kHz to 1 MHz.
        name: what error messages call it.

    Returns:
        Samples (N,), float32, mono, at 16 kHz, N ≥ 400.

    Raises:
        UnusableAudioError: (an `AudioError`) if there are no samples, too few, NaN or infinity, or the shape, type
            or rate make no sense.
    """
    low, high = _RATE_RANGE_HZ
    if not low <= sample_rate_hz <= high:
        raise UnusableAudioError(f"{name}: sample rate {sample_rate_hz} Hz; wanted {low} to {high} Hz", "unreadable")
    samples = np.asarray(samples)
    if samples.size == 0:
        raise UnusableAudioError(f"{name}: holds 0 samples; record or export it again", "empty")
    mono = _to_mono(_to_float(samples, name), name)
    finite = np.isfinite(mono)
    if not finite.all():
        first_s = int(np.argmin(finite)) / sample_rate_hz
        raise UnusableAudioError(
            f"{name}: {int((~finite).sum())} of {mono.shape[0]} samples are NaN or infinite, the first at "
            f"{first_s:.3f} s; export it again",
            "nan",
        )
    if sample_rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, sample_rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    if mono.shape[0] < MIN_SAMPLES:
        raise UnusableAudioError(
            f"{name}: lasts {1000 * mono.shape[0] / SAMPLE_RATE_HZ:.1f} ms; wanted at least "
            f"{1000 * MIN_SAMPLES // SAMPLE_RATE_HZ} ms, one analysis window",
            "too_short",
        )
    return np.ascontiguousarray(mono, dtype=np.float32)


def probe(path: str | Path, *, name: str | None = None) -> AudioInfo:
    """Read the header of an audio file; its samples are not decoded, so a cut may go unseen.

    Those of an MP3 whose header does not say how many there are have to be, to be counted; none is kept.

    Args:
        path: the file.
        name: what error messages call it; the path unless given.

    Raises:
        UnusableAudioError: (an `AudioError`) if the file is missing, not audio, or holds no samples.
    """
    name = name or str(path)
    with _open(path, name) as (_, sound):
        if sound.frames == 0:
            raise UnusableAudioError(f"{name}: holds 0 samples; record or export it again", "empty")
        num_frames = sound.frames
        if sound.format == "MP3":
            with _open_stream(path, name) as again:  # the other one's position is libsndfile's
                has_length = _mp3_has_length(again)
            num_frames = num_frames if has_length else sum(map(len, _blocks(sound, name)))
        return AudioInfo(num_frames / sound.samplerate, sound.samplerate, sound.channels, sound.format)


@contextmanager
def _open(source: str | Path | bytes, name: str) -> Iterator[tuple[BinaryIO, soundfile.SoundFile]]:
    with _open_stream(source, name) as stream:
        if not stream.seekable():
            raise UnusableAudioError(
                f"{name}: is a pipe, which can be read in order only; save it as a file", "unreadable"
            )
        if stream.seek(0, os.SEEK_END) == 0:
            raise UnusableAudioError(f"{name}: is an empty file (0 bytes); copy or download it again", "empty")
        stream.seek(0)
        # A file descriptor has no name, so that nothing but the content decides what it is (soundfile takes the name
        # `.raw` for headerless samples); bytes are read through Python, which is slower and gives the same.
        handle = stream if isinstance(stream, io.BytesIO) else os.dup(stream.fileno())
        try:
            sound = soundfile.SoundFile(handle)
        except soundfile.LibsndfileError as error:
            # On a fragment of MP3 libsndfile says that the file does not exist (code 7), which would mislead.
            reason = "" if error.code == 7 else f" ({error.error_string.rstrip('.')})"
            raise UnusableAudioError(
                f"{name}: not audio that libsndfile can read{reason}; convert it to wav, flac, ogg or mp3", "unreadable"
            ) from error
        with sound:
            if sound.frames >= _UNKNOWN_FRAMES:
                raise UnusableAudioError(
                    f"{name}: its {sound.format} header does not say how long it is, as when it was written to a "
                    "pipe; encode it again into a file",
                    "unreadable",
                )
            yield stream, sound


def _open_stream(source: str | Path | bytes, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return Path(source).open("rb")
    except FileNotFoundError:
        raise UnusableAudioError(f"{name}: no such file", "missing") from None
    except IsADirectoryError:
        raise UnusableAudioError(f"{name}: is a folder; name an audio file in it", "unreadable") from None
    except (OSError, ValueError) as error:
        # ValueError: a path that no file can have, with a null or a lone surrogate in it.
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnusableAudioError(f"{name}: cannot be opened: {reason}", "unreadable") from error


def _decode(sound: soundfile.SoundFile, name: str) -> np.ndarray:
    """Read all frames, (N,)."""
    blocks = list(_blocks(sound, name))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _blocks(sound: soundfile.SoundFile, name: str) -> Iterator[np.ndarray]:
    """Read all frames in blocks (N,), because a damaged header may promise more than memory holds."""
    try:
        while (block := sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)).shape[0]:
            yield block.mean(axis=1)
    except soundfile.LibsndfileError as error:
        raise UnusableAudioError(
            f"{name}: its {sound.format} data is cut off or damaged ({_reason(sound, error)}); copy or encode it again",
            "truncated",
        ) from error


def _reason(sound: soundfile.SoundFile, error: soundfile.LibsndfileError) -> str:
    # For FLAC the library's own message is empty and the decoder's is in the log.
    logged = re.findall(r"ERROR\s*:\s*(\S+)", sound.extra_info)
    return logged[0] if logged else error.error_string.strip() or f"libsndfile error {error.code}"


def _refuse_cut(stream: BinaryIO, sound: soundfile.SoundFile, num_frames: int, name: str) -> None:
    """Raise if the file ends before its own header, chunk or page says it does."""
    got = wanted = None
    if sound.format == "OGG":
        if (missing := _missing_ogg_bytes(stream)) > 0:
            size = stream.seek(0, os.SEEK_END)
            got, wanted = f"{size} bytes", f"{size + missing}"
    elif sound.format == "MP3" and not _mp3_has_length(stream):
        return  # libsndfile guessed it from a bit rate that may vary
    elif sound.frames - num_frames > (_MP3_SLACK_FRAMES if sound.format == "MP3" else 0):
        got, wanted = f"{num_frames} samples", f"{sound.frames}"
    elif (cut := _CUT_CHUNK.search(sound.extra_info)) and int(cut[2]) < int(cut[1]) < _UNKNOWN_LENGTH_BYTES:
        got, wanted = f"{cut[2]} bytes", cut[1]
    if got is not None:
        raise UnusableAudioError(
            f"{name}: is cut off: holds {got} where its {sound.format} header promises {wanted}; "
            "copy or download it again",
            "truncated",
        )


def _mp3_has_length(stream: BinaryIO) -> bool:
    """Tell whether an MP3's first frame says how many follow, as `Xing`, `Info` (LAME) and `VBRI` (Fraunhofer) do."""
    stream.seek(0)
    head = stream.read(10)
    if head[:3] == b"ID3":  # a tag of 10 bytes and its length, in seven bits a byte (ID3v2.4.0, section 3.1)
        stream.seek(10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False)))
    else:
        stream.seek(0)
    # The mark lies behind four bytes of header and at most 32 of side information.
    frame = re.search(rb"\xff[\xe0-\xff].{2,34}?(?:(VBRI)|(?:Xing|Info)...([\x00-\xff]))", stream.read(4096), re.DOTALL)
    return frame is not None and (frame[1] is not None or bool(frame[2][0] & 1))


def _missing_ogg_bytes(stream: BinaryIO) -> int:
    """Count the bytes by which the last page of an Ogg file falls short of its own header (RFC 3533, section 6)."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 66_000))  # a page has at most 65,307 bytes
    tail = stream.read()
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        return 1
    return max(0, 27 + page[26] + sum(page[27 : 27 + page[26]]) - len(page))


def _to_float(samples: np.ndarray, name: str) -> np.ndarray:
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32, copy=False)
    if np.issubdtype(samples.dtype, np.signedinteger):
        return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    raise UnusableAudioError(
        f"{name}: samples are {samples.dtype}; wanted floats in [-1, 1] or signed integers", "unreadable"
    )


def _to_mono(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.ndim == 1:
        return samples
    channel_axes = [axis for axis, size in enumerate(samples.shape) if size <= MAX_CHANNELS]
    if samples.ndim != 2 or len(channel_axes) != 1:
        raise UnusableAudioError(
            f"{name}: samples have shape {samples.shape}; wanted (N,), (N, C) or (C, N) with at most {MAX_CHANNELS} "
            f"channels C and more than {MAX_CHANNELS} samples N",
            "unreadable",
        )
    return samples.mean(axis=channel_axes[0])
