"""Turns the memory events of two shallow models into those of the deep one, event by event.

The shallow traces have ``n`` and ``n + p`` blocks, ``p`` being a whole period of the layer pattern. Their difference is
one period: the runs of events of ``p`` blocks in the middle, and what the runs outside the middle do more (the
optimizer's temporaries, gradients that are dropped together, the load). Both are repeated until the depth is reached:

- Runs of middle blocks are copied. What a copy frees lies in a block at the same distance as in the trace.
- The other runs are aligned with those of the shallower trace. Events that only the deeper trace has are repeated in
  their place; a request that grows with depth (a stack of one norm a parameter) grows on.
- What such a run frees is found by its kind and its age among the live ones of its kind.

The result holds exactly the bytes that it must at the end (checked), and has the order of a deep trace wherever a run
repeats one pattern. Where a run treats blocks in turns of different length, the order within it can differ, and with it
the reserved bytes by a segment or two.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from autopeft.memory._shallow_runs import (
    ExpansionError,
    Kind,
    LabelledEvent,
    Run,
    RunEvent,
    Shape,
    align,
    block_distance,
    note_ages,
    read_runs,
)
from autopeft.memory.allocator import MemoryEvent

MOST_HOLES = 32

__all__ = ["ExpansionError", "LabelledEvent", "expand", "memory_events"]


def expand(
    low: Sequence[LabelledEvent], high: Sequence[LabelledEvent], depths: tuple[int, int], layers: int
) -> list[LabelledEvent]:
    """Returns the events of a model of ``layers`` blocks, with ids of their own.

    Args:
        low: trace of ``depths[0]`` blocks, three or more.
        high: trace of ``depths[1]`` blocks, one whole period of the layer pattern deeper.
        depths: of the two traces.
        layers: at least ``depths[1]``, and a whole number of periods more.

    Raises:
        ExpansionError: if the traces do not differ by one period of blocks.
    """
    period = depths[1] - depths[0]
    if depths[0] < 3 or period < 1 or layers < depths[1] or (layers - depths[0]) % period:
        raise ExpansionError(
            f"traces of {depths[0]} and {depths[1]} blocks cannot be expanded to {layers}: the first needs three "
            "blocks or more, and the others must be deeper by whole periods; trace the full depth"
        )
    shape = Shape(head=depths[0] - 1, period=period, copies=(layers - depths[0]) // period)
    low_runs, high_runs = read_runs(low, shape, middle=False), read_runs(high, shape, middle=True)
    align(low_runs, high_runs, period)
    note_ages(high_runs)
    writer = _Writer(shape)
    for run, copy in _order(high_runs, shape):
        writer.write(run, copy)
    _check_end(low, high, writer.events, shape.copies)
    return writer.events


def memory_events(events: Iterable[LabelledEvent]) -> list[MemoryEvent]:
    """Returns events for the allocator's replay; a "mark" with the segment's name wherever the segment changes."""
    replayed: list[MemoryEvent] = []
    current = None
    for segment, _, action, block, size_bytes in events:
        if segment != current:
            replayed.append(MemoryEvent("mark", name=segment))
            current = segment
        replayed.append(MemoryEvent(action, block, size_bytes))
    return replayed


def _order(runs: list[Run], shape: Shape) -> Iterable[tuple[Run, int]]:
    """Returns the runs of the deep model in order, each with the number of its copy (the last one's for the tail)."""
    last = shape.copies - 1
    for is_middle, stretch in itertools.groupby(enumerate(runs), key=lambda numbered: numbered[1].zone[0] == "middle"):
        numbered = list(stretch)
        if not is_middle:
            yield from ((run, last if run.zone[0] == "tail" else 0) for _, run in numbered)
            continue
        copies = range(shape.copies) if _ascends(runs, numbered[0][0], numbered[-1][0]) else range(last, -1, -1)
        yield from ((run, copy) for copy in copies for _, run in numbered)


def _ascends(runs: list[Run], first: int, last: int) -> bool:
    """Returns whether a stretch of runs goes from lower blocks to higher ones, judged with its neighbours."""
    around = [run.block for run in runs[max(0, first - 1) : last + 2] if run.block is not None]
    return around[0] <= around[-1]


class _Writer:
    """Writes the deep model's events and keeps track of what is live in it."""

    def __init__(self, shape: Shape) -> None:
        self.events: list[LabelledEvent] = []
        self._shape = shape
        self._ids = itertools.count()
        self._sizes: dict[int, int] = {}
        self._kinds: dict[int, Kind] = {}
        self._by_kind: defaultdict[Kind, dict[int, None]] = defaultdict(dict)
        self._holes: Counter[Kind] = Counter()
        self._sites: dict[tuple[str, int | None, int, int], int] = {}
        self._site_of: dict[int, tuple[str, int | None, int, int]] = {}

    def write(self, run: Run, copy: int) -> None:
        """Writes one run; its repeated groups as often as the deep model has periods."""
        block = None if run.block is None else run.block + copy * self._shape.period
        position = 0
        for repeated, group in itertools.groupby(run.events, key=lambda event: event.repeated):
            events = list(group)
            for _ in range(1 if repeated is None else self._shape.copies):
                for offset, event in enumerate(events):
                    self._write_event(run, block, event, position + offset)
            position += len(events)

    def _write_event(self, run: Run, block: int | None, event: RunEvent, position: int) -> None:
        if event.origin is None:
            identity = next(self._ids)
            size = event.size_bytes + event.growth_bytes * (self._shape.copies - 1)
            self._sizes[identity] = size
            kind = self._kinds[identity] = run.kind(position)
            self._by_kind[kind][identity] = None
            site = (run.segment, block, run.occurrence, position)
            self._sites[site] = identity
            self._site_of[identity] = site
        else:
            identity = self._freed(run, block, event, event.origin)
            size = self._sizes.pop(identity)
            self._forget(self._kinds.pop(identity), identity)
            site = self._site_of.pop(identity)
            if self._sites.get(site) == identity:
                del self._sites[site]
        self.events.append(LabelledEvent(run.segment, block, event.action, identity, size))

    def _forget(self, kind: Kind, identity: int) -> None:
        """Drops a storage; a dictionary from which much was dropped is slow to look at the front of."""
        del self._by_kind[kind][identity]
        self._holes[kind] += 1
        if self._holes[kind] > MOST_HOLES:
            self._by_kind[kind] = dict.fromkeys(self._by_kind[kind])
            self._holes[kind] = 0

    def _freed(self, run: Run, block: int | None, event: RunEvent, origin: tuple[Run, int]) -> int:
        """Returns the storage that a free of the trace means at this place of the deep model."""
        source, position = origin
        distance = block_distance(run, source)
        if block is not None and distance is not None and abs(distance) <= self._shape.period:
            found = self._sites.get((source.segment, block + distance, source.occurrence, position))
            if found is not None and self._sizes[found] == event.size_bytes:
                return found
        peers = self._by_kind[source.kind(position)]
        older, younger = event.age
        aged = (
            itertools.islice(peers, older, None)
            if older <= younger
            else itertools.islice(reversed(peers), younger, None)
        )
        chosen = next(aged, None)
        if chosen is None:
            raise ExpansionError(
                f"segment {run.segment!r}, block {block}: no storage of {event.size_bytes} bytes from segment "
                f"{source.segment!r} is left to free, so the blocks do not repeat; trace the full depth"
            )
        return chosen


def _check_end(
    low: Sequence[LabelledEvent], high: Sequence[LabelledEvent], deep: Sequence[LabelledEvent], copies: int
) -> None:
    shallow, deeper, found = (_held_bytes(events) for events in (low, high, deep))
    expected = deeper + (deeper - shallow) * (copies - 1)
    if found != expected:
        raise ExpansionError(
            f"the expanded events hold {found} bytes at their end instead of {expected}; trace the full depth"
        )


def _held_bytes(events: Iterable[LabelledEvent]) -> int:
    live: dict[int, int] = {}
    for event in events:
        if event.action == "allocate":
            live[event.id] = event.size_bytes
        else:
            del live[event.id]
    return sum(live.values())
