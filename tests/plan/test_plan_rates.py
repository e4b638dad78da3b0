"""Measured rates become times; what was measured is kept, read back, and refused when it is of another version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stapes.environment import environment
from stapes.errors import StapesError
from stapes.plan import calibration_path, read_calibration
from stapes.plan.rates import Calibration
from stapes.plan.work import Attention, Linear, Pointwise, Stage

VALUES = {
    "num_threads": 2,
    "linears": {"float": [[1.0, 4.0], [8.0, 32.0]], "int8": [[1.0, 1.0], [2.0, 2.0]]},
    "linear_rows": [1, 64],
    "linear_sizes": [100, 400],
    "attention": [[10.0, 1.0], [1000.0, 100.0]],
    "pointwise": {"norm": 1.0, "rms_norm": 2.0, "gelu": 3.0, "gated": 4.0, "add": 5.0},
    "layers": {"encoder": 0.5, "decoder": 0.25, "step": 0.5, "qformer": 1.0, "adapter": 2.0},
    "calls": {"encoder": 7.0, "connector": 8.0, "prefill": 9.0, "per_token": 10.0},
    "features": [0.5, 0.125],
    "process_bytes": 1000,
    "token_bytes": 2.0,
    "environment": environment(),
}


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path))
    path = calibration_path(2)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(VALUES))
    read = read_calibration(2)
    assert read is not None
    return read


@pytest.mark.parametrize(
    ("rows", "size", "seconds"),
    [
        (1, 100, 1.0),  # measured
        (64, 400, 32.0),  # measured
        (8, 100, 8.0**0.5),  # half way between 1 and 64 rows on a logarithmic scale
        (8, 200, (8.0 * 4.0) ** 0.5),  # half way between sizes too
        (128, 100, 16.0),  # beyond: in proportion
        (1, 800, 8.0),
        (1, 50, 0.5),
    ],
)
def test_a_linear_takes_what_was_measured_near_it(
    calibration: Calibration, rows: int, size: int, seconds: float
) -> None:
    assert calibration.op_seconds(Linear(rows, size, 1)) == pytest.approx(seconds)
    assert calibration.op_seconds(Linear(rows, 1, size, times=3)) == pytest.approx(3 * seconds)


def test_other_operations(calibration: Calibration) -> None:
    assert calibration.op_seconds(Attention(5, 5, 2, 2)) == pytest.approx(10.0)
    assert calibration.op_seconds(Pointwise("gelu", 10, times=2)) == pytest.approx(60.0)
    assert calibration.op_seconds(Linear(1, 100, 1, storage="int8")) == pytest.approx(1.0)
    assert calibration.features_seconds(4) == pytest.approx(1.0)


def test_a_stage_is_its_call_its_layers_and_its_operations(calibration: Calibration) -> None:
    stage = Stage("prefill", (Linear(1, 100, 1), Pointwise("add", 1)), (("decoder", 4), ("adapter", 2)))
    assert calibration.stage_seconds(stage) == pytest.approx(9 + 4 * 0.25 + 2 * 2.0 + 1.0 + 5.0)


def test_a_machine_that_was_not_measured_has_no_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAPES_CACHE", str(tmp_path))
    assert read_calibration(2) is None


@pytest.mark.parametrize("key", ["device_name", "versions", None])
def test_rates_of_another_cpu_or_torch_are_not_used(calibration: Calibration, key: str | None) -> None:
    here = environment()
    others = {"device_name": "Pentium 90", "versions": {**here["versions"], "torch": "1.0"}}
    noted = {**here, key: others[key]} if key else {}
    calibration_path(2).write_text(json.dumps({**VALUES, "environment": noted}))
    cpu, torch = noted.get("device_name", "?"), noted.get("versions", {}).get("torch", "?")
    with pytest.warns(UserWarning, match="it is not used") as warned:
        assert read_calibration(2) is None
    (one,) = warned
    assert str(one.message) == (
        f"{calibration_path(2)}: measured on {cpu} with torch {torch}, and here is {here['device_name']} with torch "
        f"{here['versions']['torch']}; it is not used: run `stapes plan --calibrate` again"
    )


def test_a_file_of_another_version_is_refused(calibration: Calibration) -> None:
    calibration_path(2).write_text(json.dumps({**VALUES, "linears_of_old": 1}))
    with pytest.raises(StapesError, match=r"cpu-2-threads\.json: .*run `stapes plan --calibrate` again"):
        read_calibration(2)
