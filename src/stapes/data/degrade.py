"""Test recordings under worse conditions: noise at one ratio, another level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from ..errors import StapesError, UsageError
from ..files import staged_folder
from .audio import SAMPLE_RATE_HZ
from .augment import Effect, Gain, Noise, augment, sample_seed
from .sample import Sample, load_manifest, load_sample_audio, write_manifest


def degrade(
    manifest: str | Path,
    out_dir: str | Path,
    *,
    snr_db: float | None = None,
    gain_db: float | None = None,
    noise_folder: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write each clip of a manifest with noise and at another level: `OUT/NAME/000000.flac` and `OUT/NAME.jsonl`.

    Ids, tasks, prompts and targets stay, so that `stapes eval --against` compares a model with itself on the clean
    clips. Samples beyond full scale are clipped, as a recorder would.

    Args:
        manifest: its name without suffix is NAME.
        out_dir: a folder; it may hold other manifests already.
        snr_db: signal-to-noise ratio over the whole clip; None adds no noise.
        gain_db: change of level, after the noise; None changes none.
        noise_folder: of recorded noises; white Gaussian noise if not given.
        seed: of the noise; each clip's depends on it and the clip's id alone.
        progress: called with the numbers of clips done and wanted.

    Returns:
        the new manifest.

    Raises:
        UsageError: if nothing is to be changed, or there is a noise folder and no ratio.
        ManifestError, AudioError: if the manifest or a clip cannot be used.
        StapesError: if the new manifest or its folder is there already.
    """
    manifest, out_dir = Path(manifest), Path(out_dir)
    effects: list[Effect] = []
    if snr_db is not None:
        effects.append(Noise(1.0, (snr_db, snr_db), None if noise_folder is None else Path(noise_folder)))
    elif noise_folder is not None:
        raise UsageError(f"noise folder {noise_folder}: wants a signal-to-noise ratio (`--snr-db`)")
    if gain_db is not None:
        effects.append(Gain(1.0, (gain_db, gain_db)))
    if not effects:
        raise UsageError("nothing to change; give a signal-to-noise ratio (`--snr-db`) or a gain (`--gain-db`)")
    samples = load_manifest(manifest)
    folder, out_path = out_dir / manifest.stem, out_dir / f"{manifest.stem}.jsonl"
    for path in (folder, out_path):
        if path.exists():
            raise StapesError(f"{path}: is there already; remove it or name another folder")
    changed: list[Sample] = []
    with staged_folder(folder) as work:
        for number, sample in enumerate(samples):
            waveform = augment(load_sample_audio(sample), effects, sample_seed(seed, sample.id, 0))
            name = f"{number:06d}.flac"
            soundfile.write(work / name, np.clip(waveform, -1, 1), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_24")
            changed.append(replace(sample, audio=folder / name, extra_audio=()))
            if progress:
                progress(number + 1, len(samples))
    # Last, so that a manifest's existence means that all its audio is there.
    write_manifest(changed, out_path)
    return out_path
