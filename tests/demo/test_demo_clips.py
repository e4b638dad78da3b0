"""Example clips: what a line of `clips.jsonl` becomes, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stapes.demo.clips import Clip, load_clips
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
    assert load_clips(tmp_path / "clips.jsonl") == [
        Clip("misc_crow-2", audio, "asr", "misc crow 2", None, None, ""),
        Clip("q", audio, "qa", "Crow", "Which animal?", "a crow", "Sonic Pi, CC0"),
        Clip("c", audio, "audiocaption", "c", None, None, "CC0"),  # what is asked of a caption, its button asks
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"clips\.jsonl:1: not JSON: "),
        ([1], r"clips\.jsonl:1: holds no object"),
        ({"audio": "crow.ogg"}, r"clips\.jsonl:1: has no `id`$"),
        ({"id": "a"}, r"clips\.jsonl:1: has no `audio`$"),
        ({"id": 3, "audio": "crow.ogg"}, r"clips\.jsonl:1: `id` is 3; wanted text$"),
        ({"id": "a", "audio": "crow.ogg", "task": "asrr"}, r"1: task `asrr` is none of asr, audiocaption, qa$"),
        ({"id": "a", "audio": "cow.ogg"}, r"clips\.jsonl:1: clip `a` wants `cow\.ogg`, which does not exist$"),
    ],
)
def test_a_line_that_is_wrong(tmp_path: Path, line: Any, message: str) -> None:
    write(tmp_path, line)
    with pytest.raises(ManifestError, match=message):
        load_clips(tmp_path / "clips.jsonl")


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError, match=r"clips\.jsonl: cannot be read: No such file or directory; name a manifest of clips$"
    ):
        load_clips(tmp_path / "clips.jsonl")


def test_the_clips_that_ship_can_be_read() -> None:
    clips = load_clips(Path(__file__).parents[2] / "models" / "stapes-tiny" / "examples" / "clips.jsonl")
    assert {clip.task for clip in clips} >= {"asr", "audiocaption"}
    assert all(clip.target and clip.credit for clip in clips)


def test_lines_end_where_those_of_other_manifests_do(tmp_path: Path) -> None:
    (tmp_path / "crow.ogg").write_bytes(b"no audio is opened here")
    title = "a\u2028b\x85c"
    line = json.dumps({"id": "a", "audio": "crow.ogg", "title": title}, ensure_ascii=False).encode()
    (tmp_path / "clips.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\n" + line + b"\n{")
    with pytest.raises(ManifestError, match=r"clips\.jsonl:4: not JSON: "):
        load_clips(tmp_path / "clips.jsonl")
    (tmp_path / "clips.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\n" + line + b"\n")
    assert [clip.title for clip in load_clips(tmp_path / "clips.jsonl")] == [title, title]
