from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch

from stapes.bench import memory
from stapes.errors import UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")
MIB = 2**20


def test_peak_of_the_resident_set_rises_stays_and_is_reset():
    if not memory.reset_peak(CPU):
        pytest.skip("this system does not let a process reset its peak")
    before = memory.used_bytes(CPU)
    block = np.ones(64 * MIB, dtype=np.uint8)
    assert memory.used_bytes(CPU) - before == pytest.approx(64 * MIB, rel=0.1)
    del block

    assert memory.peak_bytes(CPU) - before == pytest.approx(64 * MIB, rel=0.1)
    assert memory.used_bytes(CPU) - before < 16 * MIB
    assert memory.reset_peak(CPU)
    assert memory.peak_bytes(CPU) - before < 16 * MIB


def test_used_bytes_is_what_the_system_says():
    assert memory.used_bytes(CPU) == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)


def test_refused_reset_is_told(tmp_path, monkeypatch):
    # A folder cannot be written as a file: the same OSError as a system that forbids the reset.
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path)
    assert memory.reset_peak(CPU) is False


def test_peak_without_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    # getrusage's peak is never reset, so it is at least what is in use.
    assert memory.peak_bytes(CPU) >= 0.95 * memory.used_bytes(CPU)


def test_gpu_memory_is_the_allocators_after_all_work(monkeypatch):
    asked = []

    def answer(name, value):
        monkeypatch.setattr(torch.cuda, name, lambda device: asked.append((name, device)) or value)

    answer("synchronize", None)
    answer("memory_allocated", 3 * MIB)
    answer("max_memory_allocated", 5 * MIB)
    answer("reset_peak_memory_stats", None)

    assert memory.used_bytes(GPU) == 3 * MIB
    assert memory.peak_bytes(GPU) == 5 * MIB
    assert memory.reset_peak(GPU) is True
    names = ["memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"]
    assert asked == [(name, GPU) for call in names for name in ("synchronize", call)]


def test_other_devices_are_refused():
    assert (memory.memory_kind(CPU), memory.memory_kind(GPU)) == ("rss", "cuda")
    with pytest.raises(UsageError, match="device `mps` cannot be measured; use cpu or cuda"):
        memory.used_bytes(torch.device("mps"))
