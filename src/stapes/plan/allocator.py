"""A device's memory, block by block, as PyTorch's CUDA caching allocator hands it out.

`torch.cuda.max_memory_allocated()` counts blocks, not tensors: a tensor gets a block of a multiple of 512 bytes, and
one above 1 MiB gets the whole of a free block where at most 1 MiB of that would be left over. Blocks come from segments
of 2 MiB (for tensors up to 1 MiB), 20 MiB (up to 10 MiB) or a multiple of 2 MiB, so that how much is wasted follows
from the order of allocations. This is simulated here; nothing in it is fitted.

Source: c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.5 with default settings, one stream.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

MIB = 1024**2
GIB = 1024**3
_SMALLEST = 512
_SMALL = MIB
_SMALL_SEGMENT = 2 * MIB
_MIDDLE_SEGMENT = 20 * MIB
_LARGE = 10 * MIB
_LARGE_STEP = 2 * MIB
_SEGMENT_GAP = GIB  # between addresses of segments: they never merge


@dataclass(eq=False)
class Block:
    """A stretch of a segment, free or in use; `requested` and `part` say what it is used for."""

    address: int
    size: int
    is_small: bool
    before: Block | None = None
    after: Block | None = None
    in_use: bool = False
    requested: int = 0
    part: str = ""


@dataclass
class Peak:
    """The most bytes in use at any moment.

    Attributes:
        total: bytes of blocks.
        phase: what was going on then.
        by_part: bytes asked for by each part then; with `waste` they add up to `total`.
        waste: bytes that rounding and undivided blocks took beyond what was asked for.
    """

    total: int = 0
    phase: str = ""
    by_part: dict[str, int] = field(default_factory=dict)
    waste: int = 0


class Memory:
    """Memory that is taken and given back by name, and remembers its peak.

    Attributes:
        in_use: bytes of blocks in use.
        reserved: bytes of the segments that blocks come from.
        peak: the most bytes in use so far.
        peaks_by_phase: the same, by the `phase` that was going on.

    Args:
        rounds: hand out blocks as the CUDA allocator does; else exactly what is asked for.
    """

    def __init__(self, *, rounds: bool) -> None:
        self.rounds = rounds
        self.phase = ""
        self.peak = Peak()
        self.peaks_by_phase: dict[str, int] = {}
        self.in_use = 0
        self.reserved = 0
        self._by_part: dict[str, int] = {}
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._next_address = 0

    def take(self, num_bytes: int, part: str) -> Block:
        """Take a block for a tensor of `num_bytes` that belongs to `part`."""
        block = self._find(max(1, num_bytes))
        block.in_use, block.requested, block.part = True, num_bytes, part
        self.in_use += block.size
        self._by_part[part] = self._by_part.get(part, 0) + num_bytes
        self.peaks_by_phase[self.phase] = max(self.in_use, self.peaks_by_phase.get(self.phase, 0))
        if self.in_use > self.peak.total:
            held = {name: size for name, size in self._by_part.items() if size}
            self.peak = Peak(self.in_use, self.phase, held, self.in_use - sum(held.values()))
        return block

    def drop(self, *blocks: Block) -> None:
        """Give blocks back; free neighbours become one."""
        for block in blocks:
            assert block.in_use
            self.in_use -= block.size
            self._by_part[block.part] -= block.requested
            block.in_use = False
            if self.rounds:
                self._merge(block)
                self._keep(block)

    def empty_cache(self) -> None:
        """Give segments that are free as a whole back to the device, as `torch.cuda.empty_cache` does."""
        for is_small, blocks in self._free.items():
            self._free[is_small] = [entry for entry in blocks if entry[2].before or entry[2].after]
            self.reserved -= sum(size for size, _, _ in blocks) - sum(size for size, _, _ in self._free[is_small])

    def _find(self, num_bytes: int) -> Block:
        if not self.rounds:
            return Block(0, num_bytes, is_small=False)
        size = _round_up(num_bytes, _SMALLEST)
        is_small = size <= _SMALL
        free = self._free[is_small]
        position = bisect_left(free, size, key=_size_of)
        block = free.pop(position)[2] if position < len(free) else self._new_segment(size, is_small)
        left_over = block.size - size
        if left_over >= _SMALLEST if is_small else left_over > _SMALL:
            rest = Block(block.address + size, left_over, is_small, before=block, after=block.after)
            if block.after:
                block.after.before = rest
            block.after, block.size = rest, size
            self._keep(rest)
        return block

    def _new_segment(self, size: int, is_small: bool) -> Block:
        segment = _SMALL_SEGMENT
        if not is_small:
            segment = _MIDDLE_SEGMENT if size < _LARGE else _round_up(size, _LARGE_STEP)
        self.reserved += segment
        block = Block(self._next_address, segment, is_small)
        self._next_address += segment + _SEGMENT_GAP
        return block

    def _merge(self, block: Block) -> None:
        before, after = block.before, block.after
        if before and not before.in_use:
            self._forget(before)
            block.address, block.before = before.address, before.before
            block.size += before.size
            if before.before:
                before.before.after = block
        if after and not after.in_use:
            self._forget(after)
            block.after = after.after
            block.size += after.size
            if after.after:
                after.after.before = block

    def _keep(self, block: Block) -> None:
        insort(self._free[block.is_small], (block.size, block.address, block), key=_size_and_address_of)

    def _forget(self, block: Block) -> None:
        free = self._free[block.is_small]
        free.pop(bisect_left(free, (block.size, block.address), key=_size_and_address_of))


def _size_of(entry: tuple[int, int, Block]) -> int:
    return entry[0]


def _size_and_address_of(entry: tuple[int, int, Block]) -> tuple[int, int]:
    return entry[:2]


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
