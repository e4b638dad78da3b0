from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stapes.data.noise import cut_noise, list_recordings, mix
from stapes.errors import AudioError

PLACES = np.linspace(0, 0.999, 50)


def test_recordings_are_found_in_all_folders_sorted_and_nothing_else(tmp_path: Path) -> None:
    wanted = ["a.wav", "b/a.flac", "b/c/z.OGG", "b.mp3", "z.opus"]
    for name in [*wanted, "LICENSE", "a.txt", "._a.wav", ".hidden/b.wav", "b/wav"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_recordings(tmp_path) == tuple(sorted(tmp_path / name for name in wanted))


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.wav").touch()
    folder = tmp_path / "noises"
    folder.mkdir()
    for name in ("second", "first"):
        (folder / name).symlink_to(tmp_path / "elsewhere")
    (folder / "self").symlink_to(folder)
    (folder / "b.wav").symlink_to(tmp_path / "elsewhere" / "a.wav")
    assert list_recordings(folder) == (folder / "b.wav", folder / "first" / "a.wav")


def test_what_is_no_folder_of_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=f"{tmp_path}/none: cannot be read as a folder: No such file"):
        list_recordings(tmp_path / "none")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(AudioError, match=f"{tmp_path}/notes.txt: cannot be read as a folder: Not a directory"):
        list_recordings(tmp_path / "notes.txt")
    with pytest.raises(AudioError, match=f"{tmp_path}: holds no audio files"):
        list_recordings(tmp_path)
    # What was refused is looked at again.
    (tmp_path / "a.wav").touch()
    assert list_recordings(tmp_path) == (tmp_path / "a.wav",)


def test_a_stretch_of_a_long_recording_is_that_part_of_it() -> None:
    recording = np.random.default_rng(0).standard_normal(10_320).astype(np.float32)
    np.testing.assert_array_equal(cut_noise(recording, 1_000, 0.5), recording[5_000:6_000])
    starts = {int(np.flatnonzero(recording == cut_noise(recording, 1_000, where)[500])[0]) for where in PLACES[3:-6]}
    assert len(starts) == len(PLACES[3:-6])


def test_a_short_recording_is_looped_with_its_end_faded_into_its_beginning() -> None:
    recording = np.random.default_rng(0).standard_normal(2_320).astype(np.float32)
    looped = cut_noise(recording, 7_000, 0)
    np.testing.assert_array_equal(looped[:2_000], looped[2_000:4_000])
    np.testing.assert_array_equal(looped[320:2_000], recording[320:2_000])
    # Fading keeps the power of what is not alike.
    assert np.square(looped[:320]).mean() == pytest.approx(np.square(recording).mean(), rel=0.25)


@pytest.mark.parametrize("num_samples", [400, 1_234, 5_000])
def test_a_loop_does_not_click(num_samples: int) -> None:
    # A tone that the recording's length does not divide: cut and joined bluntly, it jumps by more than it ever moves.
    recording = np.sin(2 * np.pi * 50.3 * np.arange(num_samples) / 16_000).astype(np.float32)
    largest_step = 2 * np.pi * 50.3 / 16_000
    steps = np.abs(np.diff(cut_noise(recording, 20_000, 0.3)))
    # Fading adds at most the slope of its square-root curve, steepest in the first sample after the seam.
    assert steps.max() < 0.15
    assert np.percentile(steps, 99) < 2 * np.sqrt(2) * largest_step


def test_quiet_stretches_of_a_recording_are_skipped() -> None:
    generator = np.random.default_rng(0)
    recording = np.zeros(80_000, np.float32)
    recording[10_000:18_000] = generator.standard_normal(8_000)
    recording[50_000:] = 1e-4 * generator.standard_normal(30_000)
    mean_power = np.square(recording).mean()
    for where in PLACES:
        stretch = cut_noise(recording, 4_000, where)
        assert np.square(stretch).mean() > mean_power / 10_000
    # After the burst the loop goes round to it, and begins with its first loud sample; before another, with that one.
    loud = np.flatnonzero(np.square(recording, dtype=np.float64) >= mean_power * 80_000 / 79_680)[0]
    np.testing.assert_array_equal(cut_noise(recording, 4_000, 0.9), recording[loud : loud + 4_000])
    recording[70_000] = 5
    np.testing.assert_array_equal(cut_noise(recording, 4_000, 0.5)[:9], recording[70_000:70_009])


def test_a_silent_recording_is_refused() -> None:
    with pytest.raises(AudioError, match=r"hum\.wav: holds only silence"):
        cut_noise(np.zeros(1_000, np.float32), 500, 0.5, name="hum.wav")


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 33.3])
def test_mixing_keeps_the_clip_and_meets_the_ratio(snr_db: float) -> None:
    generator = np.random.default_rng(0)
    clip, noise = generator.standard_normal(8_000).astype(np.float32), generator.uniform(-3, 3, 8_000)
    added = mix(clip, noise, snr_db) - clip.astype(np.float64)
    assert np.corrcoef(added, noise)[0, 1] == pytest.approx(1, abs=1e-6)
    assert 10 * np.log10(np.square(clip).mean() / np.square(added).mean()) == pytest.approx(snr_db, abs=1e-3)


def test_a_silent_clip_gets_no_noise() -> None:
    assert not mix(np.zeros(100, np.float32), np.ones(100), 0.0).any()
