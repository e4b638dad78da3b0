from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stapes.data.check import check_manifests
from stapes.data.sample import load_manifest
from stapes.errors import ManifestError


def noise(seconds: float, peak: float = 0.5) -> np.ndarray:
    return np.random.default_rng(0).uniform(-peak, peak, round(16_000 * seconds))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """One good sample and one of each kind that is not; returns the manifest."""
    sounds = {
        "good": noise(1.0),
        "empty": np.zeros(0),
        "click": noise(0.05),
        "one": noise(1 / 16_000),
        "silent": 0.3 + noise(1.0, 5e-4),
        "clipped": np.clip(noise(1.0, 3.0), -1, 1),
        "long": noise(31.0),
        "cut": noise(1.0),
        "nan": np.where(np.arange(16_000) == 7, np.nan, 0.1),
    }
    for name, samples in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT" if name == "nan" else "PCM_16")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:20_000])
    (tmp_path / "text.wav").write_text("not audio " * 50)
    line = {"id": "good", "audio": "good.wav", "target": "x", "duration_s": 1.0}
    lines = [
        json.dumps(line),
        '{"id": "broken"',
        *(
            json.dumps({"id": name, "audio": f"{name}.wav", "target": "x"})
            for name in [*list(sounds)[1:], "text", "no"]
        ),
        json.dumps(line | {"target": " "}),
        json.dumps(line | {"id": "off", "duration_s": 2.0}),
        json.dumps(line | {"id": "near", "duration_s": 1.15}),
        '["broken", "too"]',
        json.dumps(
            {"id": "double", "audio": "good.wav", "extra_audio": ["good.wav"], "target": "x", "duration_s": 2.1}
        ),
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(lines))
    return manifest


def test_every_kind_of_problem_is_found_once_with_its_line(corpus):
    report = check_manifests([corpus])
    assert [(p.where.rpartition(":")[2], p.id, p.kind, p.warning) for p in report.problems] == [
        ("2", None, "broken_line", False),
        ("3", "empty", "empty", False),
        ("4", "click", "too_short", False),
        ("5", "one", "too_short", False),
        ("6", "silent", "silent", False),
        ("7", "clipped", "clipped", True),
        ("8", "long", "too_long", True),
        ("9", "cut", "truncated", False),
        ("10", "nan", "nan", False),
        ("11", "text", "unreadable", False),
        ("12", "no", "missing", False),
        ("13", "good", "duplicate_id", False),
        ("13", "good", "empty_target", False),
        ("14", "off", "wrong_duration", False),
        ("16", None, "broken_line", False),
    ]
    assert report.num_samples == 17
    assert len(report.errors) == 13
    assert len(report.warnings) == 2


def test_a_problem_reads_where_what_and_the_way_out(corpus):
    folder = corpus.parent
    by_id = {problem.id: str(problem) for problem in check_manifests([corpus]).problems if problem.id != "good"}
    assert by_id[None] == f"{corpus}:16: is a list; wanted an object with `id`, `audio`, `target`"
    assert by_id["no"] == f"{corpus}:12: sample `no`: {folder / 'no.wav'}: no such file"
    assert by_id["off"] == (
        f"{corpus}:14: sample `off`: {folder / 'good.wav'}: lasts 1.00 s but `duration_s` is 2; "
        "take a whole copy or correct `duration_s`"
    )
    assert by_id["silent"].endswith("is silent (below -60 dBFS throughout); record or export it again, or drop it")


def test_good_samples_are_those_without_errors_and_strictly_without_warnings(corpus):
    report = check_manifests([corpus])
    assert [[s.id for s in group] for group in report.good_samples()] == [["good", "clipped", "long", "near", "double"]]
    assert [[s.id for s in group] for group in report.good_samples(strict=True)] == [["good", "near", "double"]]


def test_limits_of_length_are_errors_when_asked_for(corpus):
    report = check_manifests([corpus], min_s=1.5, max_s=2.0)
    kinds = {problem.id: problem.kind for problem in report.errors}
    assert kinds["near"] == "too_short"
    assert kinds["long"] == kinds["double"] == "too_long"


def test_ids_may_repeat_across_manifests_but_not_within(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000)
    line = json.dumps({"id": "a", "audio": "a.wav", "target": "x"}) + "\n"
    (tmp_path / "1.jsonl").write_text(line)
    (tmp_path / "2.jsonl").write_text(line)
    assert check_manifests([tmp_path / "1.jsonl", tmp_path / "2.jsonl"]).problems == ()


def test_each_file_is_decoded_once_and_progress_is_told(corpus):
    told = []
    check_manifests([corpus, corpus], progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 11) for number in range(1, 12)]


def test_the_report_is_json_with_counts(corpus):
    document = json.loads(json.dumps(check_manifests([corpus]).to_dict()))
    assert document["num_samples"] == 17
    assert document["errors"]["broken_line"] == 2
    assert document["warnings"] == {"clipped": 1, "too_long": 1}
    assert document["problems"][0]["where"] == f"{corpus}:2"


def test_a_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="no such manifest"):
        check_manifests([tmp_path / "none.jsonl"])


def test_a_drop_bad_manifest_is_clean_in_another_folder(corpus):
    from stapes.data.sample import write_manifest

    clean = corpus.parent / "other" / "clean.jsonl"
    write_manifest(check_manifests([corpus]).good_samples(strict=True)[0], clean)
    assert check_manifests([clean]).problems == ()
    assert [sample.id for sample in load_manifest(clean)] == ["good", "near", "double"]
