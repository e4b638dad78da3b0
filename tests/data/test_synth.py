from __future__ import annotations

import json
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from stapes.cli.main import app
from stapes.data.check import check_manifests
from stapes.data.sample import load_manifest
from stapes.data.synth import Speaker, open_engine, synthesize
from stapes.errors import AudioError, ManifestError, StapesError, UsageError

needs_flite = pytest.mark.skipif(which("flite") is None, reason="flite is not installed")
needs_espeak = pytest.mark.skipif(which("espeak-ng") is None, reason="espeak-ng is not installed")


class Whistler:
    """An engine whose clips tell what was asked: as long as the text, as high as the voice says."""

    def __init__(self, fail_on: str = "") -> None:
        self.fail_on = fail_on
        self.asked: list[tuple[str, str, float]] = []

    def __call__(self, text: str, voice: str, rate: float, rng: np.random.Generator) -> np.ndarray:
        if text == self.fail_on:
            raise AudioError(f"cannot speak {text}")
        self.asked.append((text, voice, rate))
        time_s = np.arange(round(1600 * len(text) / rate)) / 16_000
        return (0.3 * np.sin(2 * np.pi * float(voice) * time_s)).astype(np.float32)


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("one\n\n  two and  \nthree\n")
    return path


def test_a_clip_and_a_manifest_line_for_each_sentence(sentences, tmp_path):
    speak = Whistler()
    done = synthesize(sentences, tmp_path / "out", Speaker("whistler", ("200",), speak))
    assert (done.num_samples, done.num_spoken, done.seconds_of_speech) == (3, 3, 1.5)
    assert done.manifest == tmp_path / "out/lines.jsonl"
    assert json.loads(done.manifest.read_text().splitlines()[1]) == {
        "id": "lines-000001",
        "audio": "lines/000001.flac",
        "duration_s": 0.7,
        "task": "asr",
        "target": "two and",
        "source": "whistler 200",
    }
    assert check_manifests([done.manifest]).problems == ()
    assert sorted(path.name for path in (tmp_path / "out/lines").iterdir()) == [f"00000{n}.flac" for n in range(3)]


def test_voices_and_rates_depend_on_seed_and_line_alone(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("".join(f"sentence {number}\n" for number in range(60)))
    asked = []
    for out, seed, jobs in (("a", 0, 1), ("b", 0, 4), ("c", 1, 1)):
        speak = Whistler()
        synthesize(
            path, tmp_path / out, Speaker("whistler", ("200", "300"), speak), rates=(0.8, 1.25), seed=seed, jobs=jobs
        )
        asked.append(sorted(speak.asked))
    assert asked[0] == asked[1] != asked[2]
    rates = [rate for _, _, rate in asked[0]]
    assert 0.8 <= min(rates) < 0.9
    assert 1.15 < max(rates) <= 1.25
    assert 15 < sum(voice == "200" for _, voice, _ in asked[0]) < 45


def test_an_interrupted_run_goes_on_where_it_stopped(sentences, tmp_path):
    with pytest.raises(AudioError, match="cannot speak three"):
        synthesize(sentences, tmp_path / "out", Speaker("whistler", ("200",), Whistler(fail_on="three")))
    assert not (tmp_path / "out/lines.jsonl").exists()
    assert (tmp_path / "out/lines.partial/000000.flac").exists()
    with pytest.raises(StapesError, match=r"another text, engine, voices, rates or another seed"):
        synthesize(sentences, tmp_path / "out", Speaker("whistler", ("200",), Whistler()), seed=1)
    speak = Whistler()
    done = synthesize(sentences, tmp_path / "out", Speaker("whistler", ("200",), speak))
    assert [text for text, _, _ in speak.asked] == ["three"]
    assert (done.num_samples, done.num_spoken) == (3, 1)
    assert len(load_manifest(done.manifest)) == 3


def test_what_cannot_be_spoken_is_refused(sentences, tmp_path):
    def silence(*_: object) -> np.ndarray:
        return np.zeros(16_000, np.float32)

    with pytest.raises(AudioError, match='"one": was spoken as silence'):
        synthesize(sentences, tmp_path / "out", Speaker("whistler", ("200",), silence))
    with pytest.raises(UsageError, match=r"rates \(1.1, 0.9\)"):
        synthesize(sentences, tmp_path / "b", Speaker("whistler", ("200",), Whistler()), rates=(1.1, 0.9))
    with pytest.raises(ManifestError, match="no such file"):
        synthesize(tmp_path / "gone.txt", tmp_path / "b", Speaker("whistler", ("200",), Whistler()))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ManifestError, match="holds no sentence"):
        synthesize(tmp_path / "empty.txt", tmp_path / "b", Speaker("whistler", ("200",), Whistler()))
    (tmp_path / "null.txt").write_text("a\nb\0c\n")
    with pytest.raises(ManifestError, match=r"null.txt:2: holds a null character"):
        synthesize(tmp_path / "null.txt", tmp_path / "b", Speaker("whistler", ("200",), Whistler()))
    assert not (tmp_path / "b").exists()


def test_a_finished_manifest_is_not_written_over(sentences, tmp_path):
    synthesize(sentences, tmp_path / "out", Speaker("whistler", ("200",), Whistler()))
    with pytest.raises(StapesError, match="is there already"):
        synthesize(sentences, tmp_path / "out", Speaker("whistler", ("200",), Whistler()))


def test_an_engine_that_is_not_installed_is_named_with_the_way_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"flite is not on the PATH; install it, e\.g\. `apt-get install flite`"):
        open_engine("flite", ["slt"])
    with pytest.raises(UsageError, match="`apt-get install espeak-ng`"):
        open_engine("espeak-ng", ["en-us"])
    with pytest.raises(UsageError, match="kokoro"):
        open_engine("kokoro", ["af_heart"])


def test_an_engine_that_fails_says_why(monkeypatch, tmp_path):
    program = tmp_path / "flite"
    program.write_text(
        '#!/bin/sh\n[ "$1" = -lv ] && echo "Voices available: slt " && exit 0\necho "no room" >&2; exit 3\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(AudioError, match="flite, speaking 'hello': no room"):
        open_engine("flite", ["slt"]).speak("hello", "slt", 1.0, np.random.default_rng(0))


@needs_flite
def test_flite_speaks_any_text_at_the_rate_that_is_asked(tmp_path):
    speak = open_engine("flite", ["slt", "kal16"]).speak
    rng = np.random.default_rng(0)
    slow, fast = (speak("the tide ebbed at noon", "slt", rate, rng) for rate in (0.8, 1.25))
    assert 1.4 < slow.shape[0] / fast.shape[0] < 1.7
    # A text that looks like an option or a command is spoken, nothing else.
    odd = speak(f"-o {tmp_path}/x $(touch {tmp_path}/y); `touch {tmp_path}/z`", "kal16", 1.0, rng)
    assert odd.shape[0] > 16_000
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"flite has no voice `nobody`; it has .*slt"):
        open_engine("flite", ["nobody"])


@needs_espeak
def test_espeak_speaks_and_knows_its_variants():
    speak = open_engine("espeak-ng", ["en-us", "en-gb+f3"]).speak
    rng = np.random.default_rng(0)
    slow, fast = (speak("the tide ebbed at noon", "en-gb+f3", rate, rng) for rate in (0.8, 1.25))
    assert 1.3 < slow.shape[0] / fast.shape[0] < 1.8
    for voice, lacks in (("nobody", "nobody"), ("en-us+nobody", "nobody")):
        with pytest.raises(UsageError, match=f"espeak-ng has no voice `{lacks}`"):
            open_engine("espeak-ng", [voice])


@needs_flite
def test_the_verb(sentences, tmp_path):
    command = ["data", "synth", str(sentences), "--voices", "slt,rms", "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    figures = json.loads(done.stdout)
    assert (figures["num_samples"], figures["voices"]) == (3, ["slt", "rms"])
    samples = load_manifest(figures["manifest"])
    assert {sample.source for sample in samples} <= {"flite slt", "flite rms"}
    assert soundfile.info(samples[0].audio).samplerate == 16_000


def test_a_byte_order_mark_is_not_spoken(tmp_path):
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    speak = Whistler()
    done = synthesize(tmp_path / "lines.txt", tmp_path / "out", Speaker("whistler", ("200",), speak))
    assert [sample.target for sample in load_manifest(done.manifest)] == ["one", "two"]
    assert [text for text, _, _ in speak.asked] == ["one", "two"]
