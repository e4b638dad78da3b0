"""`stapes ablate --run`: two recipes run, and measured beside what is predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stapes.cli.main import app


@pytest.mark.slow
def test_recipes_are_run_and_measured_beside_what_is_predicted(small_parts: Path, tmp_path: Path) -> None:
    paths = [small_parts / f"stack-{stack}.yaml" for stack in (4, 8)]
    for path, stack in zip(paths, (4, 8), strict=True):
        path.write_text(
            f"extends: small.yaml\nname: {path.stem}\nmodel: {{connector: {{stack: {stack}}}}}\ncompress: []\n"
        )
    words = ["ablate", *map(str, paths), "--run", "--out", str(tmp_path), "--device", "v100-32gb", "--json"]
    done = CliRunner().invoke(app, words)
    four, eight = json.loads(done.stdout)["tables"]["stack"]
    assert (four["variant"], eight["variant"]) == ("stack-4", "stack-8")
    for row in (four, eight):
        assert row["measured_wer"] > 0
        assert row["measured_ttft_ms"] > 0
        assert row["measured_peak_bytes"] > row["predicted_peak_bytes"] > 0  # of a process, and of blocks on a GPU
    for page in ("report.md", "report.html"):
        text = (tmp_path / "report" / page).read_text(encoding="utf-8")
        assert "measured WER, %" in text
        assert "predicted memory, GiB" in text
