"""The simulated allocator follows the rules of PyTorch's: sizes of blocks, segments, splitting and merging."""

from __future__ import annotations

import pytest

from stapes.plan.allocator import MIB, Memory


def take(memory: Memory, *sizes: float) -> int:
    """Take blocks of these MiB and return how many bytes are counted for them."""
    before = memory.in_use
    for size in sizes:
        memory.take(round(size * MIB), "x")
    return memory.in_use - before


@pytest.mark.parametrize(
    ("asked", "counted"),
    [
        (1 / MIB, 512),  # a byte takes 512
        (513 / MIB, 1024),
        (1, MIB),
        (6.25, 6.25 * MIB),  # from a segment of 20 MiB, of which more than 1 MiB is left
        (19.5 / 2, 9.75 * MIB),
        (25, 26 * MIB),  # a segment of its own, of which 1 MiB is left: too little to be a block
        (24.9, 26 * MIB - 26 * MIB + 24.9 * MIB),  # 1.1 MiB is left and becomes a block
        (24, 24 * MIB),
    ],
)
def test_a_block_is_as_large_as_the_allocator_makes_it(asked: float, counted: float) -> None:
    memory = Memory(rounds=True)
    memory.take(round(asked * MIB), "x")
    assert memory.in_use == -(-counted // 512) * 512


def test_a_free_block_is_reused_and_split() -> None:
    memory = Memory(rounds=True)
    block = memory.take(40 * MIB, "x")
    memory.drop(block)
    assert memory.in_use == 0
    assert take(memory, 25) == 25 * MIB  # 15 MiB of the free 40 are left over: they become a block
    assert take(memory, 14.5) == 15 * MIB  # half a MiB would be left: the block is taken whole
    assert take(memory, 25) == 26 * MIB  # nothing is free any more


def test_free_neighbours_become_one_block() -> None:
    memory = Memory(rounds=True)
    blocks = [memory.take(6 * MIB, "x") for _ in range(3)]  # one segment of 20 MiB
    memory.drop(blocks[0])
    memory.drop(blocks[2])
    memory.drop(blocks[1])
    assert take(memory, 19.5) == 20 * MIB
    assert memory.reserved == 20 * MIB


def test_small_and_large_tensors_do_not_share_segments() -> None:
    memory = Memory(rounds=True)
    memory.drop(memory.take(40 * MIB, "x"))
    memory.take(512, "x")
    assert take(memory, 39.5) == 40 * MIB


def test_the_best_fitting_block_is_taken() -> None:
    memory = Memory(rounds=True)
    large, middle = memory.take(50 * MIB, "x"), memory.take(30 * MIB, "x")
    memory.drop(large, middle)
    take(memory, 29.5)
    assert take(memory, 49.5) == 50 * MIB


def test_empty_cache_gives_whole_segments_back_only() -> None:
    memory = Memory(rounds=True)
    memory.drop(memory.take(40 * MIB, "x"))
    kept, dropped = memory.take(6 * MIB, "x"), memory.take(6 * MIB, "x")  # out of the free 40
    memory.drop(dropped)
    memory.drop(memory.take(60 * MIB, "x"))
    assert memory.reserved == 100 * MIB
    memory.empty_cache()
    assert memory.reserved == 40 * MIB
    assert take(memory, 33.5) == 34 * MIB  # what is left of the segment that is still in use
    memory.drop(kept)
    other = Memory(rounds=True)
    other.drop(other.take(40 * MIB, "x"))
    other.empty_cache()
    assert take(other, 25) == 26 * MIB


def test_the_peak_says_when_and_what_for() -> None:
    memory = Memory(rounds=True)
    memory.phase = "load"
    memory.take(25 * MIB, "weights")
    memory.phase = "run"
    scratch = memory.take(100, "activations")
    memory.drop(scratch)
    memory.phase = "after"
    memory.take(10, "activations")
    assert memory.peak.phase == "run"
    assert memory.peak.by_part == {"weights": 25 * MIB, "activations": 100}
    assert memory.peak.waste == MIB + 412
    assert memory.peak.total == 26 * MIB + 512
    assert memory.peaks_by_phase == {"load": 26 * MIB, "run": 26 * MIB + 512, "after": 26 * MIB + 512}


def test_without_rounding_a_tensor_takes_what_it_holds() -> None:
    memory = Memory(rounds=False)
    memory.drop(memory.take(1000, "x"))
    memory.take(999, "x")
    assert (memory.in_use, memory.peak.total, memory.peak.waste) == (999, 1000, 0)
