"""Finished run folders to read and to change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from written_runs import write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run called `tiny`; read it, but change nothing in it."""
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run called `tiny`, to be changed."""
    return shutil.copytree(finished_run, tmp_path / "tiny")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Factory `(name, *, seed=0, damages=…, start=…) -> folder` of finished runs."""
    return lambda name, **settings: write_run(tmp_path / name, **settings)
