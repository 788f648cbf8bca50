"""Replays allocations through the rules of CUDA's caching allocator and says how much memory it would hold.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` of PyTorch, read at commit 001074d25084:

- A request is rounded up to 512 bytes. Up to 1 MiB it is served from the small pool, above from the large one.
- The smallest free block that fits is taken; of equal ones that with the lowest address.
- Without one, a segment is taken from the driver: 2 MiB for the small pool; 20 MiB for requests between 1 and 10 MiB;
  otherwise the request rounded up to 2 MiB.
- What is left of a block becomes a free block of its own if it is at least 512 bytes (small pool) or more than 1 MiB
  (large pool). A smaller rest stays part of the block, and *counts as allocated*.
- A freed block merges with its free neighbours. Only wholly free segments go back to the driver, when asked.
- With expandable segments each pool is one range of addresses that grows by pages of 2 MiB (small) or 20 MiB (large);
  every rest of at least 512 bytes is split off; ``empty_cache`` gives back every page that is wholly free.

The constants are the same at the earlier commit eb42ad6eca0c and in ``c10/core/AllocatorConfig.h`` of torch 2.13, which
only made the 20 MiB a setting (``large_segment_size_mb``).

Left out: several streams (training runs on one), CUDA graphs, ``roundup_power2_divisions``,
``garbage_collection_threshold``, and a full device, where the allocator first gives back its free segments and tries
again. Addresses of new segments are taken to rise, which decides between free blocks of one size only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from autopeft.errors import InvalidInputError
from autopeft.memory._allocator_pools import (
    LARGE_SEGMENT_BYTES,
    SMALL_SEGMENT_BYTES,
    Block,
    Pool,
    add_unmapped,
    least_expandable,
    lowest_room,
)
from autopeft.units import MIB

MIN_BLOCK_BYTES = 512
SMALL_REQUEST_BYTES = 1 * MIB
OWN_SEGMENT_BYTES = 10 * MIB
"""The least request that gets a segment of its own size (``kMinLargeAlloc``)."""
SEGMENT_STEP_BYTES = 2 * MIB
_ENDLESS_BYTES = 2**60


class MemoryEvent(NamedTuple):
    """One event of a program's memory, in order of time.

    Attributes:
        action: "allocate" and "free" name a block; "empty_cache" gives free memory back; "mark" begins a phase.
        block: any number; it may be used again once the block is free. 0 where there is none.
        size_bytes: as requested, not rounded; counts for "allocate" only.
        name: of the phase that a "mark" begins.
    """

    action: Literal["allocate", "free", "empty_cache", "mark"]
    block: int = 0
    size_bytes: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """What a user sets in ``PYTORCH_CUDA_ALLOC_CONF``; the defaults are torch's.

    Attributes:
        expandable_segments: one growing segment a pool instead of many.
        max_split_size_bytes: blocks of this size and more are neither split nor given to smaller requests;
            None: no limit.
        device_bytes: what the driver has to give. Beyond it torch gives all wholly free segments back before it asks
            again; the replay then goes on past the limit instead of running out of memory. None: endless.
    """

    expandable_segments: bool = False
    max_split_size_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """The highest marks between two "mark" events, what was held at the first one included."""

    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the allocator would have reported.

    Attributes:
        peak_allocated_bytes: ``torch.cuda.max_memory_allocated()``: blocks as handed out, unsplit rests included.
        peak_reserved_bytes: ``torch.cuda.max_memory_reserved()``.
        allocated_bytes: allocated at the end.
        reserved_bytes: reserved at the end.
        phases: peaks by the name of the "mark" that began a phase; phases of one name share theirs. "" is what comes
            before the first mark, where something does.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    phases: dict[str, PhasePeak] = field(default_factory=dict)


def rounded_bytes(size_bytes: int) -> int:
    """Returns the bytes of the block that a request gets, before any unsplit rest."""
    return max(MIN_BLOCK_BYTES, -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES)


def segment_bytes(rounded: int) -> int:
    """Returns the bytes that are taken from the driver for a rounded request, without expandable segments."""
    if rounded <= SMALL_REQUEST_BYTES:
        return SMALL_SEGMENT_BYTES
    if rounded < OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-rounded // SEGMENT_STEP_BYTES) * SEGMENT_STEP_BYTES


def replay(events: Iterable[MemoryEvent], settings: AllocatorSettings | None = None) -> Replay:
    """Returns what the caching allocator reports after some events on an empty device.

    Raises:
        InvalidInputError: if a block is freed that is not allocated, or allocated twice; the text names the event.
    """
    allocator = _Allocator(settings or AllocatorSettings())
    allocate, free = allocator.allocate, allocator.free
    live: dict[int, Block] = {}
    for number, (action, block, size_bytes, name) in enumerate(events):
        if action == "allocate":
            if block in live:
                raise InvalidInputError(f"event {number} allocates block {block}, which is still allocated; free it")
            live[block] = allocate(size_bytes)
        elif action == "free":
            if block not in live:
                raise InvalidInputError(f"event {number} frees block {block}, which is not allocated at that point")
            free(live.pop(block))
        elif action == "empty_cache":
            allocator.empty_cache()
        else:
            allocator.begin_phase(name)
    return allocator.result()


class _Allocator:
    """The state of the allocator on one device and one stream."""

    def __init__(self, settings: AllocatorSettings) -> None:
        self._expandable = settings.expandable_segments
        self._device_bytes = _ENDLESS_BYTES if settings.device_bytes is None else settings.device_bytes
        self._max_split = settings.max_split_size_bytes or _ENDLESS_BYTES
        self._plain = not settings.expandable_segments and settings.max_split_size_bytes is None
        self._small, self._large = Pool(small=True), Pool(small=False)
        self._next_address = 0
        self._allocated = self._reserved = 0
        self._phase, self._phase_allocated, self._phase_reserved = "", 0, 0
        self._phases: dict[str, PhasePeak] = {}

    def allocate(self, size_bytes: int) -> Block:
        """Returns the block that a request gets."""
        size = -(-size_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES or MIN_BLOCK_BYTES
        pool = self._small if size <= SMALL_REQUEST_BYTES else self._large
        block = pool.take_smallest(size) if self._plain else self._taken(pool, size)
        if block is None:
            block = self._grow(pool, size) if self._expandable else self._new_segment(pool, size)
        if self._is_split(block, size):
            pool.add(block.cut(size))
        self._allocated += block.size
        if self._allocated > self._phase_allocated:
            self._phase_allocated = self._allocated
        return block

    def free(self, block: Block) -> None:
        """Takes a block back and joins it with its free neighbours."""
        self._allocated -= block.size
        pool = block.pool
        after, before = block.next, block.previous
        if after is not None and after.free:
            pool.remove(after)
            block.swallow_next()
        if before is not None and before.free:
            pool.remove(before)
            before.swallow_next()
            block = before
        pool.add(block)

    def empty_cache(self) -> None:
        """Gives wholly free segments, or pages of expandable ones, back to the driver."""
        for pool in (self._large, self._small):
            for block in pool.all_free():
                if self._expandable:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    pool.remove(block)
                    self._reserved -= block.size

    def begin_phase(self, name: str) -> None:
        """Notes the peaks of the phase that ends, and starts the next one's at what is held now."""
        self._end_phase()
        self._phase = name
        self._phase_allocated, self._phase_reserved = self._allocated, self._reserved

    def result(self) -> Replay:
        """Returns the peaks so far."""
        self._end_phase()
        return Replay(
            peak_allocated_bytes=max((peak.allocated_bytes for peak in self._phases.values()), default=0),
            peak_reserved_bytes=max((peak.reserved_bytes for peak in self._phases.values()), default=0),
            allocated_bytes=self._allocated,
            reserved_bytes=self._reserved,
            phases=dict(self._phases),
        )

    def _end_phase(self) -> None:
        if self._phase == "" and self._phase_reserved == 0:
            return
        known = self._phases.get(self._phase, PhasePeak(0, 0))
        self._phases[self._phase] = PhasePeak(
            max(known.allocated_bytes, self._phase_allocated), max(known.reserved_bytes, self._phase_reserved)
        )

    def _taken(self, pool: Pool, size: int) -> Block | None:
        """Returns the free block that serves a request, no longer free; None if the driver must be asked."""
        best = next(iter(pool.at_least(size)), None)
        if best is None:
            return None
        if self._expandable:
            best = least_expandable(pool, size)
        oversized = best.size >= self._max_split
        if (size < self._max_split and oversized) or (
            size >= self._max_split and best.size >= size + LARGE_SEGMENT_BYTES
        ):
            return None
        pool.remove(best)
        return best

    def _is_split(self, block: Block, size: int) -> bool:
        rest = block.size - size
        if block.pool.small or self._expandable:
            return rest >= MIN_BLOCK_BYTES
        return size < self._max_split and rest > SMALL_REQUEST_BYTES

    def _reserve(self, size: int) -> None:
        self._reserved += size
        self._phase_reserved = max(self._phase_reserved, self._reserved)

    def _new_segment(self, pool: Pool, size: int) -> Block:
        if self._reserved + segment_bytes(size) > self._device_bytes:
            self.empty_cache()
        block = Block(pool, self._next_address, segment_bytes(size))
        self._next_address += block.size
        self._reserve(block.size)
        return block

    def _grow(self, pool: Pool, size: int) -> Block:
        """Returns a block of at least ``size`` at the lowest address where pages can be added to make one."""
        block = lowest_room(pool, size)
        if block is None:
            # Addresses are the pool's own here: each has one endless range, whose pages start at a multiple of theirs.
            block = Block(pool, 0, _ENDLESS_BYTES)
            block.mapped = False
            pool.unmapped.append(block)
        if block.mapped:
            pool.remove(block)
        else:
            self._map(block, min(block.size, size))
        while block.size < size:
            following = block.next
            assert following is not None
            if following.mapped:
                pool.remove(following)
            else:
                self._map(following, min(following.size, size - block.size))
            block.swallow_next()
        if block.next is not None and block.next.free:
            pool.remove(block.next)
            block.swallow_next()
        return block

    def _map(self, block: Block, size: int) -> None:
        """Puts memory behind the first ``size`` bytes of an unmapped block, in whole pages."""
        pages_bytes = -(-size // block.pool.page_bytes) * block.pool.page_bytes
        unmapped = block.pool.unmapped
        index = unmapped.index(block)
        if pages_bytes < block.size:
            unmapped[index] = block.cut(pages_bytes)
        else:
            del unmapped[index]
        block.mapped = True
        self._reserve(pages_bytes)

    def _unmap(self, block: Block) -> None:
        """Takes the memory from behind every page that lies wholly in a free block."""
        pool, page = block.pool, block.pool.page_bytes
        start, end = -(-block.address // page) * page, (block.address + block.size) // page * page
        if start >= end:
            return
        pool.remove(block)
        if start > block.address:
            hole = block.cut(start - block.address)
            pool.add(block)
        else:
            hole = block
        if hole.address + hole.size > end:
            pool.add(hole.cut(end - start))
        hole.mapped = False
        self._reserved -= end - start
        add_unmapped(pool, hole)
