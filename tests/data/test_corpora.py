from __future__ import annotations

import csv
import io
import json

import datasets
import numpy as np
import pytest
import soundfile

from stapes.data.audio import load_audio
from stapes.data.check import check_manifests
from stapes.data.corpora import Corpus, import_dataset
from stapes.data.sample import load_manifest
from stapes.errors import AudioError, ManifestError, StapesError


def encode(form: str = "OGG", seconds: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).uniform(-0.5, 0.5, round(22_050 * seconds)), 22_050, format=form)
    return buffer.getvalue()


def rows(*contents: bytes, column: str = "sentence") -> datasets.Dataset:
    audio = [{"bytes": content, "path": None} for content in contents]
    texts = [f"text {number}" for number in range(len(contents))]
    table = datasets.Dataset.from_dict({"audio": audio, column: texts, "answer": ["yes"] * len(contents)})
    return table.cast_column("audio", datasets.Audio())


def test_a_folder_of_save_to_disk(tmp_path):
    contents = [encode("OGG"), encode("FLAC", 1.0), encode("WAV")]
    rows(*contents).save_to_disk(tmp_path / "corpus")
    done = import_dataset(Corpus(str(tmp_path / "corpus")), tmp_path / "out")
    assert done.manifest == tmp_path / "out/train.jsonl"
    assert (done.num_samples, done.left_out) == (3, ())
    first, second, _ = [json.loads(line) for line in done.manifest.read_text().splitlines()]
    assert first == {
        "id": "train-000000",
        "audio": "train/000000.ogg",
        "duration_s": 0.5,
        "task": "asr",
        "target": "text 0",
        "source": "corpus",
    }
    assert (second["audio"], second["duration_s"]) == ("train/000001.flac", 1.0)
    # Not decoded and encoded again, which would lose quality.
    assert [sample.audio.read_bytes() for sample in load_manifest(done.manifest)] == contents
    assert check_manifests([done.manifest]).problems == ()


def test_a_dictionary_of_splits(tmp_path):
    table = rows(encode(), encode())
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "corpus")
    for split, count in {"train": 2, "test": 1}.items():
        assert import_dataset(Corpus(str(tmp_path / "corpus"), split), tmp_path / "out").num_samples == count
    with pytest.raises(ManifestError, match="has no split `dev`; its splits are train, test"):
        import_dataset(Corpus(str(tmp_path / "corpus"), "dev"), tmp_path / "out")


def test_a_folder_of_parquet_files(tmp_path):
    (tmp_path / "corpus").mkdir()
    rows(encode(), encode()).to_parquet(str(tmp_path / "corpus/test-0.parquet"))
    done = import_dataset(Corpus(str(tmp_path / "corpus"), "test"), tmp_path / "out", limit=1)
    assert done.num_samples == 1


@pytest.mark.parametrize("metadata", ["csv", "jsonl"])
def test_a_folder_of_audio_files_with_metadata(tmp_path, metadata):
    folder = tmp_path / "corpus" / "train"
    folder.mkdir(parents=True)
    entries = [{"file_name": f"{name}.flac", "id": name, "caption": f"{name}!"} for name in ("cat", "dog")]
    for entry in entries:
        (folder / entry["file_name"]).write_bytes(encode("FLAC"))
    with (folder / f"metadata.{metadata}").open("w") as stream:
        if metadata == "csv":
            writer = csv.DictWriter(stream, entries[0])
            writer.writeheader()
            writer.writerows(entries)
        else:
            stream.writelines(json.dumps(entry) + "\n" for entry in entries)
    done = import_dataset(Corpus(str(tmp_path / "corpus")), tmp_path / "out", task="audiocaption")
    samples = load_manifest(done.manifest)
    assert [(s.id, s.target, s.task) for s in samples] == [
        ("cat", "cat!", "audiocaption"),
        ("dog", "dog!", "audiocaption"),
    ]
    assert all(load_audio(sample.audio).shape == (8_000,) for sample in samples)


def test_columns_are_chosen_and_questions_kept(tmp_path):
    rows(encode(), column="question").save_to_disk(tmp_path / "corpus")
    corpus = Corpus(str(tmp_path / "corpus"), text="answer", prompt="question")
    sample = load_manifest(import_dataset(corpus, tmp_path / "out", task="qa").manifest)[0]
    assert (sample.prompt, sample.target) == ("text 0", "yes")


def test_an_id_that_several_rows_have_is_told_apart(tmp_path):
    table = rows(encode(), encode(), encode()).add_column("id", [7, 7, 8])
    table.save_to_disk(tmp_path / "corpus")
    done = import_dataset(Corpus(str(tmp_path / "corpus")), tmp_path / "out")
    assert [sample.id for sample in load_manifest(done.manifest)] == ["7", "7-000001", "8"]
    assert check_manifests([done.manifest]).problems == ()


def test_labels_become_their_names(tmp_path):
    table = rows(encode(), encode()).add_column("label", [1, 0])
    table = table.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    table.save_to_disk(tmp_path / "corpus")
    done = import_dataset(Corpus(str(tmp_path / "corpus"), text="label"), tmp_path / "out", task="audiocaption")
    assert [sample.target for sample in load_manifest(done.manifest)] == ["dog", "cat"]


def test_paths_in_a_table_are_read(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.wav").write_bytes(encode("WAV"))
    lines = [{"wav": name, "text": "hello"} for name in ("a.wav", "gone.wav")]
    (tmp_path / "corpus/train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = import_dataset(Corpus(str(tmp_path / "corpus"), audio="wav"), tmp_path / "out", skip_bad=True)
    assert done.num_samples == 1
    assert done.left_out[0].endswith("gone.wav: cannot be read: No such file or directory")


@pytest.mark.parametrize(
    ("columns", "task", "message"),
    [
        ({}, "asr", "none of the columns text, .* is there; .*`--text`; there are audio, words, answer"),
        ({"text": "word"}, "asr", r"has no column `word` \(`--text`\); there are audio, words, answer"),
        ({"text": "words", "audio": "wav"}, "asr", r"has no column `wav` \(`--audio`\)"),
        ({"text": "answer"}, "qa", "task `qa` needs a column of questions; name it with `--prompt`"),
    ],
)
def test_columns_that_are_not_there_are_refused(tmp_path, columns, task, message):
    rows(encode(), column="words").save_to_disk(tmp_path / "corpus")
    with pytest.raises(ManifestError, match=message):
        import_dataset(Corpus(str(tmp_path / "corpus"), **columns), tmp_path / "out", task=task)
    assert not (tmp_path / "out").exists()


def test_a_bad_row_stops_the_import_or_is_left_out_and_named(tmp_path):
    rows(encode(), b"no audio", encode()[:2_000]).save_to_disk(tmp_path / "corpus")
    corpus = Corpus(str(tmp_path / "corpus"))
    with pytest.raises(AudioError, match=r"row 1: column `audio`: not audio .*; `--skip-bad` leaves such rows out"):
        import_dataset(corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = import_dataset(corpus, tmp_path / "out", skip_bad=True)
    assert done.num_samples == 1
    assert [message.split(": ")[0][-5:] for message in done.left_out] == ["row 1", "row 2"]
    assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == ["000000.ogg"]


def test_what_is_there_is_not_written_over(tmp_path):
    rows(encode()).save_to_disk(tmp_path / "corpus")
    import_dataset(Corpus(str(tmp_path / "corpus")), tmp_path / "out")
    with pytest.raises(StapesError, match="is there already; remove it or name another folder"):
        import_dataset(Corpus(str(tmp_path / "corpus")), tmp_path / "out")


def test_what_is_no_corpus_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="cannot be loaded as a corpus"):
        import_dataset(Corpus(str(tmp_path / "empty")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
