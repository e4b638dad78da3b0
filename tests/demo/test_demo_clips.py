"""Example clips: what a line of `clips.jsonl` becomes, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stapes.demo.clips import Clip, load_clips, shipped_clips
from stapes.errors import ManifestError


def write(folder: Path, *lines: Any) -> None:
    (folder / "crow.ogg").write_bytes(b"no audio is opened here")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "clips.jsonl").write_text(text + "\n", encoding="utf-8")


def test_what_a_line_becomes(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"id": "misc_crow-2", "audio": "crow.ogg"},
        "",
        {
            "id": "q",
            "audio": "crow.ogg",
            "task": "qa",
            "prompt": "Which animal?",
            "target": "a crow",
            "title": "Crow",
            "source": "Sonic Pi",
            "licence": "CC0",
        },
        {"id": "c", "audio": "crow.ogg", "task": "audiocaption", "prompt": "Describe it.", "licence": "CC0"},
    )
    audio = tmp_path.resolve() / "crow.ogg"
    assert load_clips(tmp_path) == [
        Clip("misc_crow-2", audio, "misc crow 2", None, None, ""),
        Clip("q", audio, "Crow", "Which animal?", "a crow", "Sonic Pi, CC0"),
        Clip("c", audio, "c", None, None, "CC0"),  # what is asked of a caption, its button asks
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"clips\.jsonl:1: not JSON: "),
        ([1], r"clips\.jsonl:1: holds no object"),
        ({"audio": "crow.ogg"}, r"clips\.jsonl:1: has no `id`$"),
        ({"id": "a"}, r"clips\.jsonl:1: has no `audio`$"),
        ({"id": 3, "audio": "crow.ogg"}, r"clips\.jsonl:1: `id` is 3; wanted text$"),
        ({"id": "a", "audio": "cow.ogg"}, r"clips\.jsonl:1: clip `a` wants `cow\.ogg`, which does not exist$"),
    ],
)
def test_a_line_that_is_wrong(tmp_path: Path, line: Any, message: str) -> None:
    write(tmp_path, line)
    with pytest.raises(ManifestError, match=message):
        load_clips(tmp_path)


def test_a_folder_without_clips(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"clips\.jsonl: cannot be read .* a folder of examples holds"):
        load_clips(tmp_path)


def test_shipped_clips_can_be_read_if_there_are_any() -> None:
    folder = shipped_clips()
    assert folder is None or load_clips(folder)
