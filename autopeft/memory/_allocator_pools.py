"""Blocks of device memory and the pools of free ones, as CUDA's caching allocator keeps them (``allocator.py``)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from autopeft.units import MIB

SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB


class Block:
    """A range of addresses in a segment: in use, free, or (expandable segments only) without memory behind it."""

    __slots__ = ("address", "free", "mapped", "next", "pool", "previous", "size")

    def __init__(self, pool: Pool, address: int, size: int) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.free = False
        self.mapped = True
        self.previous: Block | None = None
        self.next: Block | None = None

    def cut(self, size: int) -> Block:
        """Shortens this block to ``size`` and returns the rest, which follows it."""
        rest = Block(self.pool, self.address + size, self.size - size)
        rest.mapped = self.mapped
        rest.previous, rest.next = self, self.next
        if self.next is not None:
            self.next.previous = rest
        self.next = rest
        self.size = size
        return rest

    def swallow_next(self) -> None:
        """Takes the following block's range over."""
        gone = self.next
        assert gone is not None
        self.size += gone.size
        self.next = gone.next
        if gone.next is not None:
            gone.next.previous = self


_ADDRESS_BITS = 64
"""A pool is ordered by one number a block, size before address: numbers compare faster than pairs."""


class Pool:
    """The free blocks of one pool, smallest first, lowest address first; and the unmapped ones by address."""

    __slots__ = ("_blocks", "_order", "page_bytes", "small", "unmapped")

    def __init__(self, small: bool) -> None:
        self.small = small
        self.page_bytes = SMALL_SEGMENT_BYTES if small else LARGE_SEGMENT_BYTES
        self.unmapped: list[Block] = []
        self._order: list[int] = []
        self._blocks: dict[int, Block] = {}

    def add(self, block: Block) -> None:
        """Puts a block among the free ones."""
        block.free = True
        place = block.size << _ADDRESS_BITS | block.address
        insort(self._order, place)
        self._blocks[place] = block

    def remove(self, block: Block) -> None:
        """Takes a block from the free ones."""
        block.free = False
        place = block.size << _ADDRESS_BITS | block.address
        del self._order[bisect_left(self._order, place)]
        del self._blocks[place]

    def take_smallest(self, size: int) -> Block | None:
        """Takes the smallest free block that holds ``size`` from the free ones; None if there is none."""
        order = self._order
        index = bisect_left(order, size << _ADDRESS_BITS)
        if index == len(order):
            return None
        block = self._blocks.pop(order.pop(index))
        block.free = False
        return block

    def at_least(self, size: int) -> Iterator[Block]:
        """Returns the free blocks that hold ``size``, smallest first."""
        for index in range(bisect_left(self._order, size << _ADDRESS_BITS), len(self._order)):
            yield self._blocks[self._order[index]]

    def all_free(self) -> list[Block]:
        """Returns the free blocks as they are now, smallest first."""
        return [self._blocks[place] for place in self._order]


def least_expandable(pool: Pool, size: int) -> Block:
    """Returns the free block with room for ``size`` that expandable segments take.

    A block in front of unmapped addresses counts with what it could grow to, so that the growing end is kept for
    requests that need it; the search stops at the first larger block, as torch's does.
    """
    blocks = iter(pool.at_least(size))
    best = next(blocks)
    for block in blocks:
        if _expandable_size(block) >= _expandable_size(best):
            break
        best = block
    return best


def _expandable_size(block: Block) -> int:
    following = block.next
    return block.size + (following.size if following is not None and not following.mapped else 0)


def lowest_room(pool: Pool, size: int) -> Block | None:
    """Returns the first block of the lowest run of free and unmapped blocks that together hold ``size``."""
    for unmapped in pool.unmapped:
        start = unmapped
        if start.previous is not None and start.previous.free:
            start = start.previous
        room = 0
        block: Block | None = start
        while block is not None and (block.free or not block.mapped) and room < size:
            room += block.size
            block = block.next
        if room >= size:
            return start
    return None


def add_unmapped(pool: Pool, hole: Block) -> None:
    """Joins a block that lost its memory with its unmapped neighbours, in address order."""
    if hole.next is not None and not hole.next.mapped:
        pool.unmapped.remove(hole.next)
        hole.swallow_next()
    before = hole.previous
    if before is not None and not before.mapped:
        before.swallow_next()
        return
    insort(pool.unmapped, hole, key=lambda block: block.address)
