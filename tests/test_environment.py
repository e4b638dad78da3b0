"""The circumstances that travel with a number."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from stapes import environment as module
from stapes.environment import environment, git_sha


def test_everything_is_there_and_is_json() -> None:
    found = environment(device="cpu", dtype="bfloat16")
    assert list(found) == [
        "device", "device_name", "dtype", "num_threads", "num_cores", "memory_bytes", "os", "python", "versions",
        "git_sha", "date",
    ]  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["device"], found["dtype"]) == ("cpu", "bfloat16")
    assert found["num_threads"] == torch.get_num_threads()
    assert found["num_cores"] == os.cpu_count()
    assert found["memory_bytes"] > 2**28
    assert found["python"] == platform.python_version()
    assert found["device_name"]
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["stapes"] == version("stapes")
    assert all(key in found["versions"] for key in ("transformers", "peft", "accelerate", "tokenizers", "numpy"))
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["date"])).total_seconds()) < 5


def test_threads_are_unknown_without_torch() -> None:
    code = (
        "import sys; from stapes.environment import environment as e; print(e()['num_threads'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None False\n"


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *settings, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`git_sha` looks where its own file lies, not where the program was started."""
    source = tmp_path / "checkout" / "environment.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(module, "__file__", str(source))

    def sha_now() -> str | None:
        git_sha.cache_clear()
        return git_sha()

    try:
        assert sha_now() is None
        git(source.parent, "init", "-q")
        assert sha_now() is None  # no commit yet
        (source.parent / "theirs").write_text("")
        git(source.parent, "add", "theirs")
        git(source.parent, "commit", "-qm", "somebody else's project, in which we are installed")
        assert sha_now() is None
        git(source.parent, "add", ".")
        git(source.parent, "commit", "-qm", "first")
        clean = git(source.parent, "rev-parse", "HEAD")[:12]
        assert re.fullmatch(r"[0-9a-f]{12}", clean)
        assert sha_now() == clean
        (source.parent / "untracked").write_text("")
        assert sha_now() == clean
        source.write_text("changed")
        assert sha_now() == clean + "+"
        monkeypatch.setenv("PATH", "")
        assert sha_now() is None  # no git on this machine
    finally:
        git_sha.cache_clear()
