from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stapes.data.sample import (
    Sample,
    load_manifest,
    load_sample_audio,
    parse_manifest,
    probe_sample,
    sample_duration_s,
    write_manifest,
)
from stapes.errors import AudioError, ManifestError

GOOD = {"id": "a", "audio": "a.wav", "target": "hello"}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def write_wav(path: Path, value: float, num_samples: int = 1_600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(num_samples, value), 16_000, subtype="FLOAT")
    return path


def test_a_line_is_a_sample(tmp_path):
    line = {"id": "ä", "audio": "sub/b.ogg", "duration_s": 2, "task": "qa", "prompt": "Why?", "target": "yes"}
    path = write(tmp_path / "m.jsonl", GOOD, line | {"source": "corpus", "extra_audio": ["c.ogg"]})
    assert load_manifest(path) == [
        Sample("a", tmp_path / "a.wav", None, "asr", None, "hello"),
        Sample("ä", tmp_path / "sub/b.ogg", 2.0, "qa", "Why?", "yes", "corpus", (tmp_path / "c.ogg",)),
    ]
    assert [sample.where for sample in load_manifest(str(path))] == [f"{path}:1", f"{path}:2"]


def test_null_counts_as_left_out(tmp_path):
    path = write(tmp_path / "m.jsonl", GOOD | {"duration_s": None, "task": None, "prompt": None, "extra_audio": None})
    assert load_manifest(path) == [Sample("a", tmp_path / "a.wav", None, "asr", None, "hello")]


def test_byte_order_mark_blank_lines_and_crlf_are_tolerated(tmp_path):
    line = json.dumps(GOOD | {"target": "Zürich"}, ensure_ascii=False)
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + line.encode() + b"\r\n\r\n  \n" + line.encode())
    samples = load_manifest(tmp_path / "m.jsonl")
    assert [(sample.target, sample.where[-2:]) for sample in samples] == [("Zürich", ":2"), ("Zürich", ":5")]


def test_absolute_audio_paths_stay(tmp_path):
    path = write(tmp_path / "m.jsonl", GOOD | {"audio": "/corpus/a.wav"})
    assert load_manifest(path)[0].audio == Path("/corpus/a.wav")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a",', "not JSON: Expecting property name"),
        ("['a']", "not JSON"),
        ('["a"]', "is a list; wanted an object with `id`, `audio`, `target`"),
        ("null", "is null; wanted an object"),
        ({"id": "a", "path": "a.wav", "text": "x"}, "has no `audio`, `target`; its keys are `id`, `path`, `text`"),
        (GOOD | {"target": None}, "has no `target`"),
        (GOOD | {"id": 7}, r"`id` is a number \(7\); wanted a text"),
        (GOOD | {"audio": ["a.wav"]}, r"`audio` is a list \(\['a.wav'\]\); wanted a text"),
        (GOOD | {"duration_s": "3"}, r"`duration_s` is a text \('3'\); wanted a number"),
        (GOOD | {"duration_s": True}, "`duration_s` is a truth value"),
        (GOOD | {"duration_s": -1}, "`duration_s` is -1; wanted seconds above 0"),
        (GOOD | {"duration_s": 10**400}, r"`duration_s` is 10{20,60}; wanted seconds above 0, or leave it out$"),
        (GOOD | {"duration_s": float("nan")}, "not JSON: NaN is none of its numbers"),
        (GOOD | {"score": float("-inf")}, "not JSON: -Infinity is none of its numbers"),
        (GOOD | {"target": "\ud83d"}, r"not text: half of a character is missing beside \\ud83d"),
        (
            GOOD | {"task": "asrr"},
            r"`asrr` is not a task; did you mean `asr`\? known tasks are `asr`, `audiocaption`, `qa`",
        ),
        (GOOD | {"task": "zzz"}, "`zzz` is not a task; known tasks are `asr`"),
        (GOOD | {"task": "qa"}, "sample `a` is a `qa` without `prompt`; add its question"),
        (GOOD | {"extra_audio": [1]}, r"`extra_audio\[…\]` is a number \(1\); wanted a text"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "m.jsonl", GOOD, "", line, GOOD)
    with pytest.raises(ManifestError, match=message) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    # Those who want them all get the lines around it too.
    assert [type(entry) for entry in parse_manifest(path)] == [Sample, ManifestError, Sample]


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"id": "\xff"}')
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: not UTF-8 text: invalid start byte at byte 8"):
        load_manifest(tmp_path / "m.jsonl")


def test_manifests_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(ManifestError, match="no such manifest"):
        load_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        load_manifest(tmp_path)
    for name, content in {"a.jsonl": "", "b.jsonl": "\n \n", "c.json": '{"annotation": []}'}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ManifestError, match=f"{name}: holds no samples"):
            load_manifest(tmp_path / name)


def test_keys_that_are_not_known_are_ignored_with_one_warning(tmp_path, caplog):
    path = write(tmp_path / "m.jsonl", GOOD | {"speaker": 1}, GOOD | {"speaker": 2})
    with caplog.at_level(logging.WARNING):
        assert len(load_manifest(path)) == 2
        load_manifest(path)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{path}: ignores `speaker`; known keys are `id`, ")


def test_a_salmonn_document_is_read(tmp_path):
    annotation = [
        {"path": "a.wav", "text": "hello"},
        {"path": "/root/b.wav", "text": "a dog", "task": "audiocaption_v2", "testset_id": 17},
        {"path": "a.wav", "text": "two", "task": "QA", "Q": "How many?", "expand_wav": ["c.wav"]},
        {"path": "a.wav", "text": "female", "task": "gender_recognition"},
        {"path": "a.wav", "text": "HH AH", "task": "phone_recognition", "source": "libri"},
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"annotation": annotation}, indent=1))
    a = tmp_path / "a.wav"
    phones = "Provide the phonetic transcription for the speech."
    assert load_manifest(path) == [
        Sample("a-0", a, None, "asr", None, "hello"),
        Sample("17", Path("/root/b.wav"), None, "audiocaption", None, "a dog"),
        Sample("a-2", a, None, "qa", "How many?", "two", None, (tmp_path / "c.wav",)),
        Sample("a-3", a, None, "qa", "What is the gender of the speaker?", "female"),
        Sample("a-4", a, None, "qa", phones, "HH AH", "libri"),
    ]
    assert load_manifest(path)[1].where == f"{path}:annotation[1]"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "a.wav"}, "has no `text`"),
        ({"path": 1, "text": "x"}, "`path` is a number"),
        ({"path": "a.wav", "text": "x", "task": "QA"}, "is a `QA` without `Q`"),
        (
            {"path": "a.wav", "text": "x", "task": "gender_recogniton"},
            r"did you mean `gender_recognition`\? known tasks are `asr`",
        ),
        ({"path": "a.wav", "text": "x", "expand_wav": "b.wav"}, "`expand_wav` is a text"),
        (["a.wav"], "is a list; wanted an object with `path`, `text`"),
    ],
)
def test_a_wrong_annotation_is_named(tmp_path, entry, message):
    path = write(tmp_path / "t.json", {"annotation": [{"path": "a.wav", "text": "x"}, entry]})
    with pytest.raises(ManifestError, match=message) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}:annotation[1]: ")


def test_a_json_document_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{\n "data": []\n}')
    with pytest.raises(ManifestError, match=r"a\.json: has no key `annotation`"):
        load_manifest(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"annotation": {}}')
    with pytest.raises(ManifestError, match="`annotation` is an object; wanted a list"):
        load_manifest(tmp_path / "b.json")
    (tmp_path / "c.json").write_text('{\n "annotation": [\n  {"path": }]}')
    with pytest.raises(ManifestError, match="not JSON: Expecting value: line 3 column 12"):
        load_manifest(tmp_path / "c.json")


def test_json_lines_under_the_name_json_are_read(tmp_path):
    assert len(load_manifest(write(tmp_path / "one.json", GOOD))) == 1
    assert len(load_manifest(write(tmp_path / "two.json", GOOD, GOOD))) == 2
    document = write(tmp_path / "salmonn.jsonl", {"annotation": [{"path": "a.wav", "text": "x"}]})
    assert load_manifest(document)[0].target == "x"


def test_what_is_written_is_what_is_read_from_another_folder(tmp_path):
    samples = [
        Sample("1", tmp_path / "audio/ä b.wav", 1.5, "qa", "Why?", "ja", "src", (tmp_path / "audio/c.wav",)),
        Sample("2", Path("/nowhere/b.wav"), None, "asr", None, "", others={"speaker": 3}),
    ]
    path = tmp_path / "new/folder/m.jsonl"
    write_manifest(samples, path)
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["audio"] == "../../audio/ä b.wav"
    assert second == {"id": "2", "audio": "/nowhere/b.wav", "task": "asr", "target": "", "speaker": 3}
    read = load_manifest(path)
    assert read[0].audio.resolve() == samples[0].audio
    assert [s.id for s in read] == ["1", "2"]
    assert read[0].extra_audio[0].resolve() == samples[0].extra_audio[0]
    assert read[1] == samples[1]


def test_clips_are_joined_with_a_tenth_of_a_second_of_silence(tmp_path):
    a, b = write_wav(tmp_path / "a.wav", 0.25), write_wav(tmp_path / "b.wav", 0.5, 800)
    sample = Sample("x", a, None, "asr", None, "", extra_audio=(b,))
    expected = np.concatenate([np.full(1_600, 0.25), np.zeros(1_600), np.full(800, 0.5)]).astype(np.float32)
    np.testing.assert_array_equal(load_sample_audio(sample), expected)
    assert sample_duration_s(sample) == pytest.approx(0.25)
    assert sample_duration_s(Sample("x", a, 9.0, "asr", None, "")) == 9.0


def test_bad_audio_is_named_with_line_and_sample(tmp_path):
    path = write(tmp_path / "m.jsonl", GOOD)
    write_wav(tmp_path / "a.wav", 0.0, 0)
    with pytest.raises(AudioError) as caught:
        load_sample_audio(load_manifest(path)[0])
    assert str(caught.value) == (
        f"{path}:1: sample `a`: {tmp_path / 'a.wav'}: holds 0 samples; record or export it again; "
        "`stapes data check --drop-bad` writes a clean manifest"
    )


def test_a_length_that_no_header_tells_is_named_with_line_and_sample(tmp_path):
    path = write(tmp_path / "m.jsonl", GOOD, GOOD | {"duration_s": 2.0})
    wrong = f"sample `a`: {tmp_path / 'a.wav'}: no such file; `stapes data check --drop-bad` writes a clean manifest"
    unknown, known = load_manifest(path)
    for read, sample in ((sample_duration_s, unknown), (probe_sample, unknown), (probe_sample, known)):
        with pytest.raises(AudioError) as caught:
            read(sample)
        assert str(caught.value) == f"{sample.where}: {wrong}"
    assert sample_duration_s(known) == 2.0
    write_wav(tmp_path / "a.wav", 0.1)
    assert probe_sample(known) == pytest.approx(0.1)
