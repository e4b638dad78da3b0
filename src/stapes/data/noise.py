"""Noise from recordings: files found in a folder, cut to a clip's length, mixed in at an exact ratio."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import AudioError

AUDIO_SUFFIXES = (".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav")
"""Names of the files in a folder of recordings that are read; others are taken for notes."""

_SEAM_SAMPLES = 320  # 20 ms over which the end of a loop fades into its beginning
_QUIET_DB = -40.0  # relative to a recording's mean power


@cache
def list_recordings(folder: Path) -> tuple[Path, ...]:
    """List the audio files in a folder and all folders in it, sorted; links are followed, hidden files left out.

    A folder is listed once in a process.

    Raises:
        AudioError: if a folder cannot be read, or there is no audio file.
    """

    def refuse(error: OSError) -> None:
        raise AudioError(f"{error.filename}: cannot be read as a folder: {error.strerror}; name one with audio files")

    found: list[Path] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        # Of several links to one folder the first in sorted order counts, on every machine.
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        if real not in visited:
            found += [Path(parent, name) for name in names if name.lower().endswith(AUDIO_SUFFIXES) and name[0] != "."]
        visited.add(real)
    if not found:
        raise AudioError(f"{folder}: holds no audio files ({', '.join(AUDIO_SUFFIXES)}); name a folder that does")
    return tuple(sorted(found))


def cut_noise(recording: np.ndarray, num_samples: int, where: float, *, name: str = "noise") -> np.ndarray:
    """Cut a stretch of noise out of a recording that is played in a loop.

    The last 20 ms (of a short recording the last quarter) fade into the first with constant power, so that the seam
    does not click. If the recording is quiet throughout the stretch, more than 40 dB below its mean power (clips of
    ESC-50 are filled up with zeros), the stretch begins where it is next as loud as that.

    Args:
        recording: (N',), float32.
        num_samples: N.
        where: 0 to 1, where in the loop the stretch begins.
        name: what error messages call the recording.

    Returns:
        (N,), float64.

    Raises:
        AudioError: if the recording is silent.
    """
    seam = min(_SEAM_SAMPLES, recording.shape[0] // 4)
    period = recording.shape[0] - seam
    loop = recording[:period].astype(np.float64)
    rise = np.sqrt((np.arange(seam) + 0.5) / seam)
    loop[:seam] = loop[:seam] * rise + recording[period:] * rise[::-1]
    power = np.square(loop).mean()
    if power == 0:
        raise AudioError(f"{name}: holds only silence; take it out of the folder of noises")
    start = int(where * period) % period
    stretch = loop[(start + np.arange(num_samples)) % period]
    if np.square(stretch).mean() >= power * 10 ** (_QUIET_DB / 10):
        return stretch
    loud = np.flatnonzero(np.square(loop) >= power)
    start = loud[np.searchsorted(loud, start) % loud.shape[0]]
    return loop[(start + np.arange(num_samples)) % period]


def mix(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise so that the mean power of the clip is `snr_db` above that of the noise; a silent clip stays silent.

    Args:
        waveform: (N,), float32.
        noise: (N,), float, not silent.
        snr_db: exact but for rounding to float32.

    Returns:
        (N,), float32.
    """
    power = np.square(waveform, dtype=np.float64).mean()
    scale = math.sqrt(power / np.square(noise).mean()) * 10.0 ** (-snr_db / 20)
    return (waveform + scale * noise).astype(np.float32)
