from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from stapes.cli.main import app
from stapes.data.audio import load_audio
from stapes.data.degrade import degrade
from stapes.data.sample import load_manifest
from stapes.errors import StapesError, UsageError


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    time_s = np.arange(16_000) / 16_000
    lines = []
    for name, pitch in (("low", 200), ("high", 900)):
        soundfile.write(tmp_path / f"{name}.wav", 0.2 * np.sin(2 * np.pi * pitch * time_s), 16_000, subtype="FLOAT")
        lines.append({"id": name, "audio": f"{name}.wav", "task": "qa", "prompt": "High?", "target": name})
    (tmp_path / "tones.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "tones.jsonl"


def power(samples: np.ndarray) -> float:
    return float(np.mean(samples**2))


def test_noise_has_the_asked_ratio_and_the_texts_stay(manifest, tmp_path):
    made = load_manifest(degrade(manifest, tmp_path / "out", snr_db=10))
    assert [(s.id, s.task, s.prompt, s.target) for s in made] == [
        (s.id, s.task, s.prompt, s.target) for s in load_manifest(manifest)
    ]
    for before, after in zip(load_manifest(manifest), made, strict=True):
        clean = load_audio(before.audio)
        noise = load_audio(after.audio) - clean
        assert 10 * np.log10(power(clean) / power(noise)) == pytest.approx(10, abs=0.01)


def test_gain_changes_the_level_and_nothing_else(manifest, tmp_path):
    made = load_manifest(degrade(manifest, tmp_path / "out", gain_db=-20))
    clean, quiet = load_audio(load_manifest(manifest)[0].audio), load_audio(made[0].audio)
    np.testing.assert_allclose(quiet, clean / 10, atol=1e-6)


def test_the_seed_decides_about_the_noise(manifest, tmp_path):
    clips = [
        load_audio(load_manifest(degrade(manifest, tmp_path / name, snr_db=5, seed=seed))[0].audio)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])


def test_what_it_refuses(manifest, tmp_path):
    with pytest.raises(UsageError, match="nothing to change"):
        degrade(manifest, tmp_path / "out")
    with pytest.raises(UsageError, match="wants a signal-to-noise ratio"):
        degrade(manifest, tmp_path / "out", gain_db=3, noise_folder=tmp_path)
    degrade(manifest, tmp_path / "out", gain_db=3)
    with pytest.raises(StapesError, match=r"out/tones: is there already"):
        degrade(manifest, tmp_path / "out", gain_db=3)
    (tmp_path / "low.wav").unlink()
    with pytest.raises(StapesError, match=r"low\.wav"):
        degrade(manifest, tmp_path / "other", gain_db=3)
    assert not list(tmp_path.glob("other/*"))


def test_the_verb(manifest, tmp_path):
    command = ["data", "degrade", str(manifest), "--snr-db", "20", "--gain-db", "-6", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"2 samples: {tmp_path}/out/tones.jsonl\n"
