from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from stapes.cli.main import app
from stapes.data.sample import load_manifest
from stapes.errors import AudioError, ManifestError, UsageError


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """One good sample, one that is missing, one that is clipped."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000)
    soundfile.write(tmp_path / "good.wav", samples, 16_000)
    soundfile.write(tmp_path / "loud.wav", np.clip(samples * 9, -1, 1), 16_000)
    lines = [{"id": name, "audio": f"{name}.wav", "target": "x", "speaker": 1} for name in ("good", "gone", "loud")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "m.jsonl"


def run(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_check_prints_a_line_for_each_problem_and_a_summary(manifest):
    done = run("check", manifest)
    gone, loud, summary = done.stdout.splitlines()
    assert gone == f"{manifest}:2: sample `gone`: {manifest.parent / 'gone.wav'}: no such file"
    assert loud.startswith(f"warning: {manifest}:3: sample `loud`: ")
    assert summary == "3 samples: 1 error (1 missing), 1 warning (1 clipped)"
    assert done.exit_code == 1


def test_check_exits_0_when_there_are_warnings_only_and_1_when_strict(manifest):
    clean = manifest.parent / "sub" / "clean.jsonl"
    assert run("check", manifest, "--drop-bad", clean).exit_code == 1
    assert [sample.id for sample in load_manifest(clean)] == ["good", "loud"]
    assert json.loads(clean.read_text().splitlines()[0])["speaker"] == 1
    assert run("check", clean).exit_code == 0
    strict = run("check", clean, "--strict")
    assert strict.exit_code == 1
    assert strict.stdout.splitlines()[-1] == "2 samples: 1 error (1 clipped), 0 warnings"


def test_check_says_how_many_samples_are_kept(manifest):
    clean = manifest.parent / "clean.jsonl"
    done = run("check", manifest, "--drop-bad", clean)
    assert done.stdout.splitlines()[-1] == f"kept 2 of 3 samples: {clean}"


def test_check_writes_several_clean_manifests_into_a_folder(manifest):
    other = manifest.with_name("other.jsonl")
    other.write_text(manifest.read_text())
    out = manifest.parent / "clean"
    run("check", manifest, other, "--drop-bad", out)
    assert sorted(path.name for path in out.iterdir()) == ["m.jsonl", "other.jsonl"]
    assert [sample.id for sample in load_manifest(out / "other.jsonl")] == ["good", "loud"]


def test_check_prints_one_json_document(manifest):
    done = run("check", manifest, "--json", "--drop-bad", manifest.parent / "clean.jsonl")
    document = json.loads(done.stdout)
    assert document["errors"] == {"missing": 1}
    assert document["environment"]["versions"]["stapes"]
    assert "kept 2 of 3 samples" in done.stderr


def test_check_never_writes_over_what_it_checks(manifest):
    for out in (manifest, manifest.parent):
        assert isinstance(run("check", manifest, "--drop-bad", out).exception, UsageError)
    (manifest.parent / "sub").mkdir()
    twin = manifest.parent / "sub" / "m.jsonl"
    twin.write_text(manifest.read_text())
    done = run("check", manifest, twin, "--drop-bad", manifest.parent / "clean")
    assert "two manifests would both become" in str(done.exception)
    assert len(load_manifest(manifest)) == 3


def test_check_does_not_write_a_manifest_without_samples(manifest):
    done = run("check", manifest, "--max-s", "0.5", "--drop-bad", manifest.parent / "clean.jsonl")
    assert isinstance(done.exception, ManifestError)
    assert "no sample is good" in str(done.exception)
    assert "3 samples: 3 errors (2 too_long, 1 missing)" in done.stdout
    assert not (manifest.parent / "clean.jsonl").exists()


def test_stats_writes_page_and_json_and_prints_what_there_is(manifest):
    clean = manifest.parent / "clean.jsonl"
    run("check", manifest, "--drop-bad", clean)
    out = manifest.parent / "out"
    done = run("stats", clean, "--out", out)
    assert done.stdout.splitlines() == [
        f"{clean}: 2 samples, 0.00 h, 2 words, 1 different",
        f"page: {out / 'stats.html'}",
    ]
    document = json.loads(run("stats", clean, clean.with_name("clean.jsonl"), "--out", out, "--json").stdout)
    assert document == json.loads((out / "stats.json").read_text())
    assert document["environment"]["device"] == "cpu"


def test_import_makes_a_manifest(manifest):
    folder = manifest.parent / "corpus"
    folder.mkdir()
    (folder / "a.wav").write_bytes((manifest.parent / "good.wav").read_bytes())
    (folder / "b.wav").write_bytes(b"text")
    (folder / "metadata.csv").write_text("file_name,text\na.wav,hello\nb.wav,hello\n")
    out = manifest.parent / "imported"
    done = run("import", folder, out, "--skip-bad")
    assert done.stdout == f"1 samples, 1 left out: {out / 'train.jsonl'}\n"
    assert done.stderr.startswith(f"left out: {folder}, split train, row 1: column `audio`: ")
    assert [sample.target for sample in load_manifest(out / "train.jsonl")] == ["hello"]
    assert json.loads(run("import", folder, out / "2", "--limit", "1", "--json").stdout)["num_samples"] == 1


def test_prepare_makes_manifests_and_says_what_it_left_out(manifest):
    root, out = manifest.parent / "clotho", manifest.parent / "data/clotho"
    (root / "development").mkdir(parents=True)
    (root / "development/good.wav").write_bytes((manifest.parent / "good.wav").read_bytes())
    heading = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    rows = "good.wav,a,b,c,d,e\ngone.wav,a,b,c,d,e\n"
    (root / "clotho_captions_development.csv").write_text(heading + rows)
    assert isinstance(run("prepare", "clotho", root, "--out", out).exception, AudioError)
    assert not out.parent.exists()
    done = run("prepare", "clotho", root, "--out", out, "--skip-missing")
    assert done.stdout == f"5 samples: {out / 'stage1.jsonl'}\n5 samples: {out / 'stage2.jsonl'}\n"
    assert done.stderr.startswith(f"left out: {root / 'clotho_captions_development.csv'}:3: no `gone.wav` in ")
    assert run("check", out / "stage1.jsonl").exit_code == 0
    again = run(
        "prepare", "clotho", root, "--out", out.with_name("2"), "--skip-missing", "--split", "development", "--json"
    )
    assert json.loads(again.stdout)["manifests"] == {str(out.with_name("2") / f"stage{n}.jsonl"): 5 for n in (1, 2)}
