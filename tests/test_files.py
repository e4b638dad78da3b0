"""A file or folder is complete or not there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from stapes.errors import StapesError
from stapes.files import full_disk_explained, read_json, staged_folder, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_arrives_with_the_folders_it_needs(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "Stapes: Steigbügel\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"Stapes: Steigb\xc3\xbcgel\n"
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_new_text_replaces_the_old(tmp_path: Path) -> None:
    write_text(tmp_path / "c.txt", "long old text")
    with (tmp_path / "c.txt").open() as reader:
        write_text(tmp_path / "c.txt", "new")
        assert reader.read() == "long old text"  # who reads meanwhile never sees half of each
    assert (tmp_path / "c.txt").read_text() == "new"


def test_a_full_disk_leaves_the_old_text_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "c.txt", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "c.txt", "new")
    assert (tmp_path / "c.txt").read_text() == "old"
    assert names(tmp_path) == ["c.txt"]


def test_json_goes_there_and_back(tmp_path: Path) -> None:
    value = {"name": "Größe", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert (tmp_path / "x.json").read_text(encoding="utf-8").startswith('{\n  "name": "Größe",\n')
    assert (tmp_path / "x.json").read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_what_is_not_json_is_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_json(tmp_path / "x.json", value)
    assert names(tmp_path) == []


def test_json_that_cannot_be_read_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(StapesError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}: no such file"
    path.write_text('{\n "a": 1,\n "b" 2\n}')
    with pytest.raises(StapesError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}:3: not JSON: Expecting ':' delimiter"
    path.write_text("")
    with pytest.raises(StapesError) as caught:
        read_json(path)
    assert str(caught.value) == f"{path}:1: not JSON: Expecting value"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(StapesError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: not UTF-8 text: ")


def test_a_staged_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "run" / "align"
    with staged_folder(final) as work:
        assert work == tmp_path / "run" / "align.partial"
        (work / "x.json").write_text(json.dumps(1))
        assert not final.exists()
    assert names(tmp_path / "run") == ["align"]
    assert names(final) == ["x.json"]


def write_half(final: Path, error: BaseException, keep_on_error: bool = False) -> None:
    with staged_folder(final, keep_on_error) as work:
        (work / "half").write_text("12")
        raise error


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
def test_a_staged_folder_that_fails_is_never_there(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_half(tmp_path / "align", error)
    assert names(tmp_path) == []


def test_what_an_interruption_left_is_thrown_away_or_kept(tmp_path: Path) -> None:
    final = tmp_path / "align"
    with pytest.raises(ValueError, match="stop"):
        write_half(final, ValueError("stop"), keep_on_error=True)
    assert names(tmp_path) == ["align.partial"]
    with staged_folder(final, keep_on_error=True) as work:
        assert (work / "half").read_text() == "12"
    assert names(final) == ["half"]

    other = tmp_path / "tune"
    (tmp_path / "tune.partial").mkdir()
    (tmp_path / "tune.partial" / "stale").write_text("")
    with staged_folder(other) as work:
        assert names(work) == []
    assert names(other) == []


def test_a_finished_folder_is_never_written_again(tmp_path: Path) -> None:
    (tmp_path / "align").mkdir()
    (tmp_path / "align" / "weights").write_text("trained")
    with pytest.raises(FileExistsError, match="align exists already"), staged_folder(tmp_path / "align"):
        pytest.fail("the block must not run")
    assert (tmp_path / "align" / "weights").read_text() == "trained"
    assert names(tmp_path) == ["align"]


def test_a_full_disk_is_told_whatever_words_a_library_has_for_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, full_disk_explained(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))


def test_other_errors_are_not_blamed_on_the_disk(tmp_path: Path) -> None:
    for error in (RuntimeError("unexpected pos 576 vs 534"), StapesError("no space for this"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, full_disk_explained(tmp_path):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("keep_on_error", [False, True])
def test_a_failure_before_anything_was_written_leaves_no_empty_folders(keep_on_error: bool, tmp_path: Path) -> None:
    with pytest.raises(StapesError), staged_folder(tmp_path / "eval" / "tune", keep_on_error):
        raise StapesError("no such model folder")
    assert names(tmp_path) == []


def test_names_that_are_no_text_are_written_escaped_and_read_back(tmp_path):
    value = {"manifests": [os.fsdecode(b"caf\xe9.jsonl"), "café"]}
    write_json(tmp_path / "scores.json", value)
    assert (tmp_path / "scores.json").read_bytes().isascii()
    assert read_json(tmp_path / "scores.json") == value
