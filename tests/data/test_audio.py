from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stapes.data.audio import AudioInfo, UnusableAudioError, load_audio, prepare_waveform, probe
from stapes.errors import AudioError


def tone(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """A 440 Hz tone at 0.5; channel c holds it times (c + 1) / channels. (N,) or (N, C)."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return wave if channels == 1 else wave[:, None] * (np.arange(channels) + 1) / channels


def fault_of(path: Path | bytes) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(path)
    assert isinstance(caught.value, UnusableAudioError)
    if isinstance(path, Path):
        assert str(caught.value).startswith(f"{path}: ")
    return caught.value.fault


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [
        ("mono.wav", 16_000, 1, "PCM_16"),
        ("eight channels.wav", 16_000, 8, "PCM_16"),
        ("fast.wav", 192_000, 1, "PCM_16"),
        ("slow.wav", 8_000, 2, "PCM_U8"),
        ("deep.wav", 44_100, 1, "PCM_24"),
        ("float.wav", 48_000, 1, "FLOAT"),
        ("double.wav", 16_000, 1, "DOUBLE"),
        ("Ärger 音.flac", 22_050, 2, "PCM_24"),
        ("tone.ogg", 48_000, 1, "VORBIS"),
        ("tone.opus.ogg", 48_000, 1, "OPUS"),
        ("tone.mp3", 44_100, 2, "MPEG_LAYER_III"),
        ("tone.aiff", 16_000, 1, "PCM_16"),
    ],
)
def test_any_format_rate_and_channel_count_becomes_mono_16_khz(tmp_path, name, rate, channels, subtype):
    path = tmp_path / "a folder" / name
    path.parent.mkdir()
    soundfile.write(path, tone(1.0, rate, channels), rate, subtype=subtype, format="OGG" if "ogg" in name else None)
    waveform = load_audio(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (16_000,)
    # The mean of the channels, at the old level and pitch.
    expected = tone(1.0, 16_000) * (1 if channels == 1 else (channels + 1) / (2 * channels))
    middle = slice(2_000, 14_000)
    error = np.sqrt(np.mean((waveform[middle] - expected[middle]) ** 2))
    assert error < (0.02 if subtype in ("PCM_U8", "VORBIS", "OPUS", "MPEG_LAYER_III") else 1e-4)


def test_16_khz_mono_samples_are_not_touched(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 4_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav"), samples)


def test_a_path_its_text_and_its_bytes_give_the_same(tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, tone(1.0, 22_050), 22_050)
    expected = load_audio(path)
    np.testing.assert_array_equal(load_audio(str(path)), expected)
    np.testing.assert_array_equal(load_audio(path.read_bytes()), expected)


@pytest.mark.parametrize("name", ["flac.wav", "mp3.wav", "wav.raw", "ogg.txt", "wav"])
def test_the_content_decides_not_the_name(tmp_path, name):
    real = {"flac.wav": "FLAC", "mp3.wav": "MP3", "ogg.txt": "OGG"}.get(name, "WAV")
    soundfile.write(tmp_path / "real", tone(1.0, 16_000), 16_000, format=real)
    path = (tmp_path / "real").rename(tmp_path / name)
    assert load_audio(path).shape == (16_000,)
    assert probe(path).format == real


def test_what_is_not_a_file_is_refused(tmp_path):
    assert fault_of(tmp_path / "none.wav") == "missing"
    assert fault_of(tmp_path) == "unreadable"
    assert fault_of(Path("name\0with null.wav")) == "unreadable"


@pytest.mark.parametrize("content", [b"", b"hello " * 100, b"RIFF", b"OggS", b"fLaC", b"ID3\x04" + b"\0" * 60])
def test_what_is_not_audio_is_refused(tmp_path, content):
    path = tmp_path / "text.wav"
    path.write_bytes(content)
    expected = "unreadable" if content else "empty"
    assert fault_of(path) == expected
    assert fault_of(content) == expected


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "AIFF"])
def test_0_samples_are_refused(tmp_path, form):
    path = tmp_path / "a"
    soundfile.write(path, np.zeros(0), 16_000, format=form)
    assert fault_of(path) == "empty"


@pytest.mark.parametrize(("num_samples", "rate"), [(1, 16_000), (399, 16_000), (1_150, 48_000)])
def test_less_than_25_ms_is_refused(tmp_path, num_samples, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros(num_samples), rate)
    assert fault_of(tmp_path / "a.wav") == "too_short"


def test_25_ms_are_enough(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(400), 16_000)
    assert load_audio(tmp_path / "a.wav").shape == (400,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_located(tmp_path, bad):
    samples = np.zeros(16_000, np.float32)
    samples[[4_000, 5_000]] = bad
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    assert fault_of(tmp_path / "a.wav") == "nan"
    with pytest.raises(AudioError, match=r"2 of 16000 samples are NaN or infinite, the first at 0\.250 s"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("keep", [0.999, 0.9, 0.5, 0.2])
@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "FLAC", "OGG", "MP3"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, form, keep):
    path = tmp_path / "a"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * 48_000)
    soundfile.write(path, noise, 48_000, format=form)
    whole = path.read_bytes()
    assert load_audio(path).shape == (5 * 16_000,)
    path.write_bytes(whole[: int(len(whole) * keep)])
    if form == "MP3" and keep == 0.999:
        # Less than two MP3 frames (48 ms) are within what encoders disagree about.
        assert load_audio(path).shape[0] > 4.95 * 16_000
    else:
        assert fault_of(path) == "truncated"
        assert fault_of(path.read_bytes()) == "truncated"


@pytest.mark.parametrize("tag", [b"", b"ID3\x03\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256)])
def test_an_mp3_whose_header_says_no_length_is_whole(tmp_path, tag):
    # Encoders of the 2000s wrote no frame with the length before the sound; libsndfile then guesses it from a bit rate.
    path = tmp_path / "a.mp3"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 5 * 44_100)
    noise[:44_100] = 0
    soundfile.write(path, noise, 44_100, format="MP3", bitrate_mode="VARIABLE")
    first, second = (m.start() for m in list(re.finditer(rb"\xff\xfb", path.read_bytes()))[:2])
    assert b"Xing" in path.read_bytes()[first:second]
    path.write_bytes(tag + path.read_bytes()[second:])
    assert soundfile.info(path).frames > 6 * 44_100
    assert probe(path).duration_s == pytest.approx(5, abs=0.06)
    assert load_audio(path).shape[0] == pytest.approx(5 * 16_000, abs=0.06 * 16_000)


def test_every_cut_inside_an_ogg_page_is_seen(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000, format="OGG")
    whole = buffer.getvalue()
    last_page = whole.rfind(b"OggS")
    for end in range(last_page + 4, len(whole), 97):
        assert fault_of(whole[:end]) == "truncated", end


def test_a_wav_written_to_a_pipe_is_whole(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    start = content.find(b"data") + 4
    for unknown in (0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000):
        content[start : start + 4] = unknown.to_bytes(4, "little")
        path.write_bytes(content)
        assert load_audio(path).shape == (16_000,)


def test_a_flac_without_length_is_refused_not_read_into_all_memory(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(1.0, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO ends with 36 bits that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert fault_of(path) == "unreadable"
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    assert fault_of(path) == "truncated"


def test_arrays_of_either_channel_order_become_mono():
    samples = np.stack([np.zeros(1_000), np.ones(1_000)], axis=1)
    np.testing.assert_array_equal(prepare_waveform(samples, 16_000), np.full(1_000, 0.5, np.float32))
    np.testing.assert_array_equal(prepare_waveform(samples.T, 16_000), np.full(1_000, 0.5, np.float32))


def test_integers_are_scaled_by_their_range():
    samples = np.array([-32_768, 16_384] * 200, np.int16)
    np.testing.assert_array_equal(prepare_waveform(samples, 16_000)[:2], [-1.0, 0.5])


def test_an_array_at_another_rate_is_resampled():
    assert prepare_waveform(np.zeros(44_100), 44_100).shape == (16_000,)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((70, 70)), 16_000, r"shape \(70, 70\)"),
        (np.zeros((30, 30)), 16_000, r"shape \(30, 30\)"),
        (np.zeros((1, 1_000, 2)), 16_000, r"shape \(1, 1000, 2\)"),
        (np.float32(0), 16_000, r"shape \(\)"),
        (np.zeros(0), 16_000, "0 samples"),
        (np.zeros((0, 2)), 16_000, "0 samples"),
        (np.zeros(1_000, np.uint8), 16_000, "uint8"),
        (np.zeros(1_000, complex), 16_000, "complex128"),
        (np.zeros(1_000), 16, "sample rate 16 Hz"),
        (np.full(1_000, np.nan), 16_000, "1000 of 1000 samples are NaN"),
        (np.zeros(399), 16_000, r"24\.9 ms"),
    ],
)
def test_arrays_that_make_no_sense_are_refused(samples, rate, message):
    with pytest.raises(AudioError, match=message):
        prepare_waveform(samples, rate)


def test_probe_reads_the_header_only(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(2.5, 44_100, 2), 44_100)
    expected = AudioInfo(duration_s=2.5, sample_rate_hz=44_100, num_channels=2, format="FLAC")
    assert probe(tmp_path / "a.flac") == expected
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    with pytest.raises(AudioError, match="0 samples"):
        probe(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="no such file"):
        probe(tmp_path / "missing.wav")


def test_reading_leaves_no_file_open(tmp_path):
    soundfile.write(tmp_path / "good.wav", tone(0.1, 16_000), 16_000)
    (tmp_path / "bad.wav").write_bytes(b"text" * 100)
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("needs /proc")
    before = len(list(handles.iterdir()))
    for _ in range(20):
        load_audio(tmp_path / "good.wav")
        fault_of(tmp_path / "bad.wav")
    assert len(list(handles.iterdir())) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # so that whoever reads need not wait for one who writes
    try:
        os.write(writer, b"RIFF")
        for read in (load_audio, probe):
            with pytest.raises(UnusableAudioError, match=r"pipe: is a pipe, which .*; save it as a file$") as caught:
                read(tmp_path / "pipe")
            assert caught.value.fault == "unreadable"
    finally:
        os.close(writer)
