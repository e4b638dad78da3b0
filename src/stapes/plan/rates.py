"""How fast a CPU is, measured once, and the time that operations take at those rates."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

from ..environment import environment
from ..errors import StapesError
from ..files import read_json
from ..weights import cache_folder
from .work import Attention, LayerKind, Linear, Op, Pointwise, PointwiseKind, Stage, StageName, Storage


@dataclass(frozen=True)
class Calibration:
    """What was measured on this machine; times in seconds, memory in bytes.

    Attributes:
        num_threads: of torch.
        linears: for each storage, the time of a Linear by rows (outer) and by values of its weight (inner).
        linear_rows, linear_sizes: the grid of `linears`; weights were too many for the caches, as in a model.
        attention: (multiplications, time) of scaled_dot_product_attention, in rising order.
        pointwise: time of one value.
        layers: time of one layer beyond that of its operations.
        calls: time of one call beyond its layers and operations.
        features: (time of a call, time of a second of audio) of log-mel features.
        process_bytes: RSS of a process that has imported what answering takes, and answered with a tiny model.
        token_bytes: of the tokenizer, for each token it knows.
        environment: of the measurement.
    """

    num_threads: int
    linears: dict[Storage, list[list[float]]]
    linear_rows: list[int]
    linear_sizes: list[int]
    attention: list[tuple[float, float]]
    pointwise: dict[PointwiseKind, float]
    layers: dict[LayerKind, float]
    calls: dict[StageName, float]
    features: tuple[float, float]
    process_bytes: int
    token_bytes: float
    environment: dict[str, Any]

    def stage_seconds(self, stage: Stage) -> float:
        """Predict how long one timed part of an answer takes."""
        layers = sum(self.layers[kind] * count for kind, count in stage.layers)
        return self.calls[stage.name] + layers + sum(self.op_seconds(op) for op in stage.ops)

    def op_seconds(self, op: Op) -> float:
        """Predict how long an operation takes beyond the cost of calling it, which `layers` holds."""
        match op:
            case Linear():
                return op.times * self._linear_seconds(op.rows, op.inputs * op.outputs, op.storage)
            case Attention():
                return op.times * self._attention_seconds(op.queries * op.keys * op.heads * op.head_width)
            case Pointwise():
                return op.times * op.elements * self.pointwise[op.kind]

    def features_seconds(self, audio_s: float) -> float:
        """Predict how long the features of a clip take."""
        return self.features[0] + self.features[1] * audio_s

    def _linear_seconds(self, rows: int, size: int, storage: Storage) -> float:
        """Interpolate between measured rows and sizes, on logarithmic scales; beyond them time grows in proportion."""
        table = self.linears[storage]
        by_size = [_interpolate(self.linear_rows, [row[i] for row in table], rows) for i in range(len(table[0]))]
        return _interpolate(self.linear_sizes, by_size, size)

    def _attention_seconds(self, multiplications: int) -> float:
        counts, seconds = zip(*self.attention, strict=True)
        return _interpolate(counts, seconds, multiplications)


def calibration_path(num_threads: int) -> Path:
    """Return where this machine's measurements with `num_threads` are kept."""
    return cache_folder() / "calibration" / f"cpu-{num_threads}-threads.json"


def read_calibration(num_threads: int) -> Calibration | None:
    """Read what `stapes plan --calibrate` measured; None if it has not been run with as many threads.

    What was measured on another CPU or with another torch, in a cache that moved with its disk or outlived an upgrade,
    is not used: a warning says so.

    Raises:
        StapesError: if the file is damaged or was made by another version of the planner.
    """
    path = calibration_path(num_threads)
    if not path.exists():
        return None
    values = read_json(path)
    try:
        calibration = Calibration(
            **{**values, "attention": [tuple(pair) for pair in values["attention"]], "features": (*values["features"],)}
        )
    except (TypeError, KeyError) as error:
        raise StapesError(f"{path}: of another version of the planner; run `stapes plan --calibrate` again") from error
    there, here = _machine(calibration.environment), _machine(environment())
    if there != here:
        warnings.warn(
            f"{path}: measured on {there}, and here is {here}; it is not used: run `stapes plan --calibrate` again",
            stacklevel=2,
        )
        return None
    return calibration


def _machine(circumstances: dict[str, Any]) -> str:
    """Name the CPU and the torch that rates belong to."""
    versions = circumstances.get("versions", {})
    return f"{circumstances.get('device_name', '?')} with torch {versions.get('torch', '?')}"


def _interpolate(places: Sequence[float], values: Sequence[float], at: float) -> float:
    """Read a positive curve between its points, straight on logarithmic scales; outside in proportion to `at`."""
    if at <= places[0]:
        return values[0] * at / places[0]
    if at >= places[-1]:
        return values[-1] * at / places[-1]
    right = bisect_right(places, at)
    low, high = places[right - 1], places[right]
    share = log(at / low) / log(high / low)
    return exp((1 - share) * log(values[right - 1]) + share * log(values[right]))
