"""Shallow traces as runs of events, aligned with each other, for ``_expansion.py`` to repeat what a period adds."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from autopeft.errors import AutoPeftError

Zone = tuple[str, int]
"""Where a block lies: ("head", index), ("middle", phase in the period), ("tail", index), or ("none", 0)."""
Kind = tuple[str, Zone, int, int]
"""What objects have in common: segment, zone, occurrence; and position in the run, or size where runs grow."""
Signature = tuple[str, int, str, Zone]
"""Action and size of an event; for a free, segment and zone of the allocation."""
_NOWHERE: Zone = ("none", 0)


class ExpansionError(AutoPeftError):
    """Two shallow traces do not differ by a repeated period; trace the full depth instead."""


class LabelledEvent(NamedTuple):
    """One memory event and the part of the step that it belongs to.

    Attributes:
        segment: part of the step: "load", "forward", "backward", "optimizer", ...
        block: index of the transformer block at work; None outside all blocks.
        action: what happens to the storage ``id``.
        id: of a storage; it may be used again once the storage is free.
        size_bytes: as requested; ignored for a "free".
    """

    segment: str
    block: int | None
    action: Literal["allocate", "free"]
    id: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Blocks below ``head`` come once, then ``period`` blocks ``copies`` times, then the last block."""

    head: int
    period: int
    copies: int

    def zone(self, block: int | None, middle: bool) -> Zone:
        """Returns where a block of a trace lies; ``middle`` says whether the trace has the middle blocks."""
        if block is None:
            return _NOWHERE
        if block < self.head:
            return ("head", block)
        inside = block - self.head
        if not middle:
            return ("tail", inside)
        return ("middle", inside) if inside < self.period else ("tail", inside - self.period)


@dataclass(slots=True)
class RunEvent:
    """One event of a traced run.

    Attributes:
        size_bytes: of the storage, for a free as well.
        origin: for a free, run and position of the allocation.
        growth_bytes: by which the request grows with a period.
        repeated: number of the inserted group that it belongs to; None for an event that comes once.
        age: for a free, how many storages of its kind are older, and how many younger.
    """

    action: Literal["allocate", "free"]
    size_bytes: int
    origin: tuple[Run, int] | None = None
    growth_bytes: int = 0
    repeated: int | None = None
    age: tuple[int, int] = (0, 0)


@dataclass(slots=True, eq=False)
class Run:
    """Consecutive events of one segment and block; the ``occurrence``-th run of that segment and block.

    ``depth`` is the trace's number of blocks.
    """

    segment: str
    block: int | None
    zone: Zone
    occurrence: int
    depth: int
    events: list[RunEvent] = field(default_factory=list)
    grows: bool = False

    @property
    def key(self) -> tuple[str, Zone, int]:
        """What this run has in common with its counterpart in another trace."""
        return self.segment, self.zone, self.occurrence

    def kind(self, position: int) -> Kind:
        """Returns the kind of the storage that the event at ``position`` allocates."""
        # Negative, so that a size is never taken for a position.
        return (*self.key, -1 - self.events[position].size_bytes if self.grows else position)

    def signatures(self, period: int, *, from_end: bool = False) -> list[Signature]:
        """Returns what must be equal in two traces for events to be each other's counterparts.

        ``from_end``: what follows the last block names the blocks before it by their distance from the end, whatever
        zone they are in; it may let go of something of the last but one.
        """
        return [(event.action, event.size_bytes, *self._source(event, period, from_end)) for event in self.events]

    def _source(self, event: RunEvent, period: int, from_end: bool) -> tuple[str, Zone]:
        if event.origin is None:
            return "", _NOWHERE
        source = event.origin[0]
        distance = block_distance(self, source)
        if distance is not None and abs(distance) <= period:
            return source.segment, ("near", distance)
        inside = from_end and self.block is None and self.segment == source.segment
        if inside and source.block is not None and self.depth - source.block <= period + 1:
            return source.segment, ("end", self.depth - source.block)
        return source.segment, source.zone


def block_distance(run: Run, source: Run) -> int | None:
    """Returns by how many blocks a run's source lies behind it; None if one of them belongs to no block."""
    return None if run.block is None or source.block is None else source.block - run.block


def read_runs(events: Sequence[LabelledEvent], shape: Shape, middle: bool) -> list[Run]:
    """Returns a trace as runs, each free with its allocation."""
    runs: list[Run] = []
    seen: Counter[tuple[str, int | None]] = Counter()
    live: dict[int, tuple[Run, int]] = {}
    depth = 1 + max((event.block for event in events if event.block is not None), default=-1)
    for segment, block, group in _grouped(events):
        run = Run(segment, block, shape.zone(block, middle), seen[segment, block], depth)
        seen[segment, block] += 1
        runs.append(run)
        for event in group:
            if event.action == "allocate":
                live[event.id] = (run, len(run.events))
                run.events.append(RunEvent("allocate", event.size_bytes))
            elif event.id not in live:
                raise ExpansionError(f"segment {segment!r} frees storage {event.id}, which the trace never allocated")
            else:
                origin, position = live.pop(event.id)
                run.events.append(RunEvent("free", origin.events[position].size_bytes, (origin, position)))
    return runs


def _grouped(events: Sequence[LabelledEvent]) -> list[tuple[str, int | None, list[LabelledEvent]]]:
    """Returns the events by segment and block; what happens between two neighbouring blocks belongs to one of them."""
    groups = [
        (segment, block, list(group))
        for (segment, block), group in itertools.groupby(events, key=lambda event: (event.segment, event.block))
    ]
    joined: list[tuple[str, int | None, list[LabelledEvent]]] = []
    for index, (segment, block, group) in enumerate(groups):
        following = groups[index + 1] if index + 1 < len(groups) else None
        if block is None and joined and following:
            block = _between(joined[-1], segment, following)
        if joined and joined[-1][:2] == (segment, block):
            joined[-1][2].extend(group)
        else:
            joined.append((segment, block, group))
    return joined


def _between(before: tuple[str, int | None, object], segment: str, after: tuple[str, int | None, object]) -> int | None:
    """Returns the block of the same segment before or after a run; None unless it lies between neighbouring blocks."""
    if before[1] is None or after[1] is None or abs(before[1] - after[1]) > 1:
        return None
    if before[0] == segment:
        return before[1]
    return after[1] if after[0] == segment else None


def align(low_runs: list[Run], high_runs: list[Run], period: int) -> None:
    """Marks in the deeper trace what a period adds to the runs outside the middle.

    Raises:
        ExpansionError: if the shallower trace has events that the deeper one lacks.
    """
    outside = [run for run in high_runs if run.zone[0] != "middle"]
    if [run.key for run in low_runs] != [run.key for run in outside]:
        raise ExpansionError("the parts of the two traces come in a different order; trace the full depth")
    for low, high in zip(low_runs, outside, strict=True):
        known, wanted = low.signatures(period), high.signatures(period)
        if known == wanted:
            continue
        if len(known) == len(wanted) and low.signatures(period, from_end=True) == high.signatures(
            period, from_end=True
        ):
            continue
        high.grows = True
        _mark_growth(known, wanted, high)


def _mark_growth(known: list[Signature], wanted: list[Signature], high: Run) -> None:
    """Marks what the shallower run lacks as repeated, and what it has with a smaller size as growing.

    The deeper run is read as loops, and each loop's turns are counted in the shallower one.
    """
    at, group, absent_before = 0, 0, False
    for start, length, turns in _loops(wanted):
        unit = wanted[start : start + length]
        found = _turns(known, at, unit, most=turns)
        if turns == 1 and not found and _is_grown(known, at, unit[0]):
            high.events[start].growth_bytes = unit[0][1] - known[at][1]
            found = 1
            at += 1
        else:
            at += found * length
        # Neighbours that are absent altogether belong to one turn of a loop that the trace goes through once.
        group += not (absent_before and not found)
        absent_before = not found
        for event in high.events[start + found * length : start + turns * length]:
            event.repeated = group
    if at != len(known):
        raise ExpansionError(
            f"segment {high.segment!r}, block {high.block}: event {at} of the shallower trace has no counterpart in "
            "the deeper one; trace the full depth"
        )


def _loops(signatures: list[Signature]) -> Iterator[tuple[int, int, int]]:
    """Returns a sequence as loops: start, length of a turn, turns; what does not repeat is a loop of one turn."""
    start = 0
    while start < len(signatures):
        length, turns = 1, 1
        for candidate in range(1, (len(signatures) - start) // 2 + 1):
            if signatures[start] != signatures[start + candidate]:
                continue
            count = _turns(signatures, start, signatures[start : start + candidate])
            if count > 1 and candidate * count > length * turns:
                length, turns = candidate, count
        yield start, length, turns
        start += length * turns


def _turns(signatures: list[Signature], at: int, unit: list[Signature], most: int | None = None) -> int:
    """Returns how often a unit follows itself from a position on."""
    turns = 0
    while turns != most and signatures[at : at + len(unit)] == unit:
        turns += 1
        at += len(unit)
    return turns


def _is_grown(known: list[Signature], at: int, wanted: Signature) -> bool:
    """Returns whether the shallower run has the same event with a smaller size at a position."""
    return at < len(known) and known[at][0] == wanted[0] and known[at][1] < wanted[1] and known[at][2:] == wanted[2:]


def note_ages(runs: list[Run]) -> None:
    """Notes for every free how old its storage is among the live ones of its kind."""
    live: defaultdict[Kind, list[tuple[Run, int]]] = defaultdict(list)
    for run in runs:
        for position, event in enumerate(run.events):
            if event.origin is None:
                live[run.kind(position)].append((run, position))
                continue
            peers = live[event.origin[0].kind(event.origin[1])]
            older = peers.index(event.origin)
            event.age = (older, len(peers) - 1 - older)
            del peers[older]
