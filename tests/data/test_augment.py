from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from stapes.data.augment import (
    BandPass,
    Codec,
    Effect,
    Gain,
    Noise,
    Reverb,
    Speed,
    augment,
    augment_frames,
    sample_seed,
    spec_augment,
)
from stapes.errors import AudioError, RecipeError

SpeechLike = Callable[[float, int], np.ndarray]

ALL = (
    Speed(1, (0.9, 1.1)),
    Reverb(1, (0.2, 0.5)),
    Noise(1, (0, 20)),
    BandPass(1, 300, 3400),
    Codec(1, ("mulaw", "gsm", "mp3", "vorbis")),
    Gain(1, (-6, 6)),
)


def kind_of(effect: Effect) -> str:
    return type(effect).__name__


def tone(frequency_hz: float, num_samples: int = 16_000) -> np.ndarray:
    return np.sin(2 * np.pi * frequency_hz * np.arange(num_samples) / 16_000).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.square(samples, dtype=np.float64).mean())


def level_db(samples: np.ndarray, against: np.ndarray) -> float:
    return 10 * np.log10(power(samples) / power(against))


def gain_db(clip: np.ndarray, effects: tuple[Effect, ...], seed: int) -> float:
    return level_db(augment(clip, effects, seed), clip)


@pytest.mark.parametrize("effects", [*((effect,) for effect in ALL), ALL], ids=[*map(kind_of, ALL), "all"])
def test_the_seed_decides(speech_like: SpeechLike, effects: tuple[Effect, ...]) -> None:
    clip = speech_like(1.0, 0)
    before = clip.copy()
    first = augment(clip, effects, 1)
    np.testing.assert_array_equal(clip, before)
    np.testing.assert_array_equal(augment(clip, effects, 1), first)
    if effects != (BandPass(1, 300, 3400),):  # it has nothing to draw
        assert not np.array_equal(augment(clip, effects, 2), first)


@pytest.mark.parametrize("effect", ALL, ids=kind_of)
@pytest.mark.parametrize("num_samples", [400, 401, 16_000])
def test_any_clip_gives_finite_float32(effect: Effect, num_samples: int) -> None:
    loud = 3 * np.random.default_rng(0).standard_normal(num_samples)
    for clip in (np.zeros(num_samples), loud):
        for seed in range(8):
            changed = augment(clip, [effect], seed)
            assert changed.dtype == np.float32
            assert changed.ndim == 1
            assert np.isfinite(changed).all()
            assert changed.shape[0] >= 400
            if not isinstance(effect, Speed):
                assert changed.shape == clip.shape


@pytest.mark.parametrize("effect", [effect for effect in ALL if not isinstance(effect, Codec)], ids=kind_of)
def test_silence_stays_silent(effect: Effect) -> None:
    assert not augment(np.zeros(4_000), [effect], 0).any()


@pytest.mark.parametrize("shape", [(399,), (0,), (1, 16_000)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape .*; wanted \(N,\) with N ≥ 400"):
        augment(np.zeros(shape), [], 0)


def test_an_effect_happens_with_its_probability(speech_like: SpeechLike) -> None:
    clip = speech_like(0.1, 0)

    def share(p: float) -> float:
        return sum(not np.array_equal(augment(clip, [Gain(p, (6, 6))], seed), clip) for seed in range(1_000)) / 1_000

    assert share(0) == 0
    assert share(1) == 1
    assert share(0.3) == pytest.approx(0.3, abs=0.045)  # 3 binomial standard deviations


def test_effects_happen_independently(speech_like: SpeechLike) -> None:
    clip = speech_like(0.1, 0)
    both = [Speed(0.5, (2, 2)), Gain(0.5, (6, 6))]
    outcomes = [augment(clip, both, seed) for seed in range(400)]
    happened = [(len(out) < len(clip), float(np.abs(out).max()) > 0.6) for out in outcomes]
    for outcome in ((False, False), (False, True), (True, False), (True, True)):
        assert happened.count(outcome) / 400 == pytest.approx(0.25, abs=0.07)


def test_what_one_effect_draws_depends_on_no_other(speech_like: SpeechLike) -> None:
    clip = speech_like(0.5, 0)
    for seed in range(5):
        alone = augment(clip, [Noise(1, (0, 20))], seed)
        gain_alone = augment(clip, [Gain(1, (-6, 6))], seed)
        gain = np.float32(10 ** (gain_db(clip, (Gain(1, (-6, 6)),), seed) / 20))
        np.testing.assert_allclose(gain * clip, gain_alone, rtol=1e-6)
        # The same noise at the same ratio and the same gain, whatever else stands in the list and in which order.
        after = augment(clip, [Speed(0, (2, 3)), Noise(1, (0, 20)), Gain(1, (-6, 6))], seed)
        before = augment(clip, [Gain(1, (-6, 6)), Noise(1, (0, 20)), Codec(0, ("gsm",))], seed)
        np.testing.assert_allclose(after, gain * alone, atol=1e-6)
        np.testing.assert_allclose(before, gain * alone, atol=1e-6)


def test_other_settings_of_an_effect_move_its_draws_and_no_others(speech_like: SpeechLike) -> None:
    clip = speech_like(0.5, 0)
    for seed in range(5):
        low, high = (gain_db(clip, (Gain(1, span),), seed) for span in ((0, 1), (0, 10)))
        assert high == pytest.approx(10 * low, abs=1e-4)
        mild = augment(clip, [Noise(1, (10, 10)), Gain(1, (-6, 6))], seed)
        harsh = augment(clip, [Noise(1, (-10, -10)), Gain(1, (-6, 6))], seed)
        # The noise is the same but for its level.
        gain = np.float32(10 ** (gain_db(clip, (Gain(1, (-6, 6)),), seed) / 20))
        np.testing.assert_allclose(harsh - gain * clip, 10 * (mild - gain * clip), atol=1e-5)


def test_two_effects_of_a_kind_draw_apart(speech_like: SpeechLike) -> None:
    clip = speech_like(0.5, 0)
    once, twice = (gain_db(clip, (Gain(1, (-6, 6)),) * times, 0) for times in (1, 2))
    assert abs(twice - 2 * once) > 0.1


def test_draws_are_spread_over_the_span(speech_like: SpeechLike) -> None:
    clip = speech_like(0.1, 0)
    gains_db = [gain_db(clip, (Gain(1, (-6, 6)),), seed) for seed in range(400)]
    quartiles = np.percentile(gains_db, [0, 25, 50, 75, 100])
    np.testing.assert_allclose(quartiles, [-6, -3, 0, 3, 6], atol=1.0)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 7.5, 40.0])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_signal_to_noise_ratio_is_exact(
    speech_like: SpeechLike, tmp_path: Path, snr_db: float, recorded: bool
) -> None:
    soundfile.write(tmp_path / "hum.wav", 0.01 * tone(100, 5_000), 16_000, subtype="FLOAT")
    clip = speech_like(1.0, 0).astype(np.float64)
    noise = augment(clip, [Noise(1, (snr_db, snr_db), tmp_path if recorded else None)], 0) - clip
    assert level_db(clip, noise) == pytest.approx(snr_db, abs=1e-3)


def test_noise_without_a_folder_is_white(speech_like: SpeechLike) -> None:
    clip = speech_like(4.0, 0)
    noise = augment(clip, [Noise(1, (0, 0))], 0) - clip
    bands = np.square(np.abs(np.fft.rfft(noise)))[:32_000].reshape(8, -1).mean(axis=1)
    np.testing.assert_allclose(bands / bands.mean(), 1, atol=0.06)  # 4 standard deviations of 4,000 values
    assert abs(np.corrcoef(noise, clip)[0, 1]) < 0.02


def test_noises_are_drawn_from_all_files_of_a_folder(speech_like: SpeechLike, tmp_path: Path) -> None:
    (tmp_path / "deeper" / "down").mkdir(parents=True)
    files = {500: "a.wav", 1_000: "deeper/b.FLAC", 2_000: "deeper/down/c.ogg"}
    for frequency, name in files.items():
        soundfile.write(tmp_path / name, 0.5 * tone(frequency, 48_000), 16_000)
    (tmp_path / "LICENSE").write_text("not audio")
    clip = speech_like(0.5, 0)
    strongest = []
    for seed in range(40):
        noise = augment(clip, [Noise(1, (0, 0), tmp_path)], seed) - clip
        strongest.append(int(np.abs(np.fft.rfft(noise)).argmax()) * 2)  # bins of 2 Hz
    assert set(strongest) == set(files)


@pytest.mark.parametrize("kind", [Noise, Reverb])
def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_drawn(kind: type, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=f"{tmp_path / 'none'}: cannot be read as a folder: No such file"):
        kind(0, (1, 1), tmp_path / "none")
    (tmp_path / "notes.txt").write_text("not audio")
    with pytest.raises(AudioError, match=f"{tmp_path}: holds no audio files"):
        kind(0, (1, 1), tmp_path)


@pytest.mark.parametrize("effect", [Noise, Reverb])
def test_a_file_that_cannot_be_used_is_named(speech_like: SpeechLike, tmp_path: Path, effect: type) -> None:
    (tmp_path / "broken.wav").write_bytes(b"not audio")
    with pytest.raises(AudioError, match=r"broken\.wav: not audio"):
        augment(speech_like(0.5, 0), [effect(1, (1, 1), tmp_path)], 0)
    (tmp_path / "broken.wav").unlink()
    soundfile.write(tmp_path / "broken.wav", np.zeros(1_000), 16_000)
    with pytest.raises(AudioError, match=r"broken\.wav: holds only silence"):
        augment(speech_like(0.5, 0), [effect(1, (1, 1), tmp_path)], 0)


@pytest.mark.parametrize("db", [-20.0, 0.0, 6.0, 20.0])
def test_gain_is_exact_and_never_clips(db: float) -> None:
    clip = 0.9 * tone(440)
    louder = augment(clip, [Gain(1, (db, db))], 0)
    np.testing.assert_allclose(louder, clip * 10 ** (db / 20), rtol=1e-6)


def test_a_gain_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"Gain\(p=1, db=\(1000, 1000\)\) made samples that are not finite"):
        augment(tone(440), [Gain(1, (1_000, 1_000))], 0)


@pytest.mark.parametrize(
    ("factor", "num_samples", "expected"),
    [(1.1, 16_000, 14_545), (0.9, 16_000, 17_778), (2.0, 16_000, 8_000), (1.0, 12_345, 12_345), (1.5, 16_001, 10_667)],
)
def test_speed_changes_length_and_pitch(factor: float, num_samples: int, expected: int) -> None:
    clip = tone(440, num_samples)
    faster = augment(clip, [Speed(1, (factor, factor))], 0)
    assert faster.shape == (expected,)
    middle = slice(500, expected - 500)
    np.testing.assert_allclose(faster[middle], tone(440 * factor, expected)[middle], atol=2e-3)


@pytest.mark.parametrize("num_samples", [400, 600])
def test_speed_leaves_a_window_to_analyse(num_samples: int) -> None:
    assert augment(tone(440, num_samples), [Speed(1, (4, 4))], 0).shape == (400,)


def test_reverb_keeps_time_and_level() -> None:
    # White, so that it is like itself at no other time.
    clip = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    for seed in range(5):
        wet = augment(clip, [Reverb(1, (0.3, 0.3))], seed)
        assert level_db(wet, clip) == pytest.approx(0, abs=1e-4)
        assert np.correlate(wet, clip[2_000:-2_000]).argmax() == 2_000
        assert not np.array_equal(wet, clip)


def test_recorded_impulse_responses_are_drawn_from_a_folder(tmp_path: Path) -> None:
    # An echo of half the level 100 ms after the direct sound, which itself comes 25 ms into the recording.
    response = np.zeros(4_000)
    response[400], response[2_000] = 0.8, 0.4
    soundfile.write(tmp_path / "echo.wav", response, 16_000, subtype="FLOAT")
    click = np.zeros(8_000)
    click[1_000] = 1.0
    wet = augment(click, [Reverb(1, (0.1, 0.1), tmp_path)], 0)
    expected = np.zeros(8_000)
    expected[1_000], expected[2_600] = 2 / np.sqrt(5), 1 / np.sqrt(5)
    np.testing.assert_allclose(wet, expected, atol=1e-6)


@pytest.mark.parametrize(("frequency", "least_db"), [(100, 80), (150, 45), (6_000, 80)])
def test_the_band_pass_stops_what_is_outside(frequency: int, least_db: float) -> None:
    clip = tone(frequency)
    middle = slice(4_000, -4_000)  # switching a tone on and off is not outside the band
    passed = augment(clip, [BandPass(1, 300, 3_400)], 0)
    assert level_db(passed[middle], clip[middle]) < -least_db


def test_the_band_pass_leaves_what_is_inside_and_its_phase() -> None:
    clip = tone(1_000)
    passed = augment(clip, [BandPass(1, 300, 3_400)], 0)
    np.testing.assert_allclose(passed[4_000:-4_000], clip[4_000:-4_000], atol=1e-5)


@pytest.mark.parametrize("edge", [300, 3_400])
def test_the_band_pass_is_6_db_down_at_its_edges(edge: int) -> None:
    passed = augment(tone(edge), [BandPass(1, 300, 3_400)], 0)
    assert level_db(passed[4_000:-4_000], tone(edge)[4_000:-4_000]) == pytest.approx(-6.02, abs=0.02)


@pytest.mark.parametrize("band", [(300, 8_000), (400, 300), (0, 3_000)])
def test_a_band_that_16_khz_cannot_hold_is_refused(band: tuple[float, float]) -> None:
    with pytest.raises(RecipeError, match=f"low_hz {band[0]}, high_hz {band[1]}; wanted 0 < low_hz < high_hz < 8000"):
        BandPass(0, *band)


def test_each_kind_of_codec_comes_up(speech_like: SpeechLike) -> None:
    clip = speech_like(0.5, 0)
    telephone = augment(clip, [Codec(1, ("mulaw",))], 0)
    same = sum(np.array_equal(augment(clip, [Codec(1, ("mulaw", "vorbis"))], seed), telephone) for seed in range(40))
    assert 10 < same < 30


def test_unknown_codecs_are_refused() -> None:
    known = "known codecs are mulaw, alaw, gsm, mp3, vorbis, opus"
    with pytest.raises(RecipeError, match=f"`ulaw` is not a codec; did you mean `mulaw`\\? {known}"):
        Codec(0, ("gsm", "ulaw"))
    with pytest.raises(RecipeError, match=f"names no kinds; {known}"):
        Codec(0, ())


def test_sample_seeds_are_the_same_everywhere() -> None:
    assert sample_seed(0, "a", 0) == 3434604995308849598
    assert sample_seed(1, "Ärger 音", 7) == 8231385639078987432
    triples = [(seed, name, draw) for seed in (0, 1) for name in ("1", "11", "a") for draw in (0, 1, 11)]
    seeds = {sample_seed(*triple) for triple in triples}
    assert len(seeds) == len(triples)
    assert all(0 <= seed < 2**63 for seed in seeds)


def masked_parts(masks: dict[str, float], seed: int, shape: tuple[int, int] = (80, 300)) -> tuple[int, int]:
    """Count the frames and mel bins that are masked throughout; every other feature is checked to be as it was."""
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = features.clone()
    masked = spec_augment(features, **masks, seed=seed)  # type: ignore[arg-type]
    assert torch.equal(features, before)
    changed = masked != features
    assert (masked[changed] == features.mean()).all()
    frames, bins = changed.all(dim=0), changed.all(dim=1)
    assert torch.equal(changed, frames[None, :] | bins[:, None])
    return int(frames.sum()), int(bins.sum())


MASKS = {"time_masks": 2, "max_time_frames": 40, "freq_masks": 2, "max_freq_bins": 15, "max_share": 0.4}


def test_masks_cover_up_to_their_limits() -> None:
    counts = [masked_parts(MASKS, seed) for seed in range(300)]
    frames, bins = zip(*counts, strict=True)
    assert 60 < max(frames) <= 80
    assert 22 < max(bins) <= 30
    # Two masks from 0 to 40 and from 0 to 15: 40 and 15 on average, less what overlaps.
    assert np.mean(frames) == pytest.approx(40 - 20 * 20 / 300, abs=3)
    assert np.mean(bins) == pytest.approx(15 - 7.5 * 7.5 / 80, abs=1)


@pytest.mark.parametrize("num_frames", [2, 9, 100, 101])
@pytest.mark.parametrize("max_share", [0.05, 0.2, 1.0])
def test_time_masks_never_cover_more_than_their_share(num_frames: int, max_share: float) -> None:
    masks = {**MASKS, "time_masks": 3, "max_time_frames": 1_000, "freq_masks": 0, "max_share": max_share}
    counts = [masked_parts(masks, seed, (80, num_frames))[0] for seed in range(100)]
    assert max(counts) <= max_share * num_frames
    if max_share * num_frames >= 3:
        assert max(counts) > 0.6 * max_share * num_frames - 3


def test_no_masks_leave_everything() -> None:
    assert masked_parts({**MASKS, "time_masks": 0, "freq_masks": 0}, 0) == (0, 0)


def test_frequency_masks_may_be_wider_than_the_spectrum() -> None:
    masks = {**MASKS, "time_masks": 0, "freq_masks": 1, "max_freq_bins": 500}
    counts = [masked_parts(masks, seed)[1] for seed in range(200)]
    # From 0 to all 80, evenly.
    np.testing.assert_allclose(np.percentile(counts, [0, 25, 50, 75, 100]), [0, 20, 40, 60, 80], atol=10)


def test_the_seed_decides_about_masks_and_each_axis_for_itself() -> None:
    features = torch.randn(80, 300, generator=torch.Generator().manual_seed(0))

    def changed(seed: int, **other: float) -> torch.Tensor:
        return spec_augment(features, **{**MASKS, **other}, seed=seed) != features  # type: ignore[arg-type]

    assert torch.equal(changed(1), changed(1))
    assert not torch.equal(changed(1), changed(2))
    time, frequency = changed(1, freq_masks=0), changed(1, time_masks=0)
    assert torch.equal(changed(1), time | frequency)
    counts = np.array([masked_parts({**MASKS, "time_masks": 1, "freq_masks": 1}, seed) for seed in range(200)])
    assert abs(np.corrcoef(counts.T)[0, 1]) < 0.22  # 3 standard deviations


def test_frames_get_noise_of_the_drawn_size_and_masks_over_time_and_channels() -> None:
    frames = torch.randn(200, 512, generator=torch.Generator().manual_seed(0))
    no_masks = {**MASKS, "time_masks": 0, "freq_masks": 0}
    noise = augment_frames(frames, (0.25, 0.25), no_masks, seed=3) - frames
    assert float(noise.std()) == pytest.approx(0.25, rel=0.02)
    assert abs(float(noise.mean())) < 0.005
    sizes = [float((augment_frames(frames, (0.0, 0.5), no_masks, seed) - frames).std()) for seed in range(60)]
    assert max(sizes) > 0.4
    assert min(sizes) < 0.1
    masked = augment_frames(frames, (0.0, 0.0), {**MASKS, "freq_masks": 0}, seed=1) != frames
    assert 0 < int(masked.all(dim=1).sum()) == int(masked.any(dim=1).sum()) <= 80
    masked = augment_frames(frames, (0.0, 0.0), {**MASKS, "time_masks": 0}, seed=1) != frames
    assert 0 < int(masked.all(dim=0).sum()) == int(masked.any(dim=0).sum()) <= 30
    assert torch.equal(augment_frames(frames, (0.1, 0.3), MASKS, 5), augment_frames(frames, (0.1, 0.3), MASKS, 5))
