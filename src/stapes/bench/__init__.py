"""Latency, memory and size of a model, each model in a process of its own."""

from .process import bench_model
from .protocols import NOTA, BenchSettings

__all__ = ["NOTA", "BenchSettings", "bench_model"]
