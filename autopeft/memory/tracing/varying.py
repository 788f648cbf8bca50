"""Replays a training whose batches differ in length: what the caching allocator holds once lengths have mixed.

A batch longer than all before it finds no free block large enough, although much is free in smaller ones, so that
reserved memory outgrows the longest batch's own. Two traces, at the shortest and the longest length, say how every
request grows with the length; the events of any length between them follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopeft.memory._expansion import ExpansionError, LabelledEvent, memory_events
from autopeft.memory.allocator import MIN_BLOCK_BYTES, MemoryEvent

STEP_PHASES = ("forward", "backward")
WARM_UP_PHASE = "warm-up"
"""Segment of the update that makes the optimizer's states."""


@dataclass(frozen=True, slots=True)
class _Event:
    """One event of every length: ``constant + linear * length + square * length ** 2`` bytes."""

    segment: str
    action: str
    id: int
    constant: float = 0.0
    linear: float = 0.0
    square: float = 0.0

    def bytes_at(self, length: int) -> int:
        return round(self.constant + self.linear * length + self.square * length * length)


class VariedTraining:
    """A training at any batch length, from traces at two.

    The weights arrive; the first step's batches run before the optimizer's states exist; every step after it ends with
    an update. What a step leaves behind is let go of when the next one ends its first forward.

    Args:
        lengths: of the shorter and of the longer rows.
        short: events of the training with the shorter ones.
        long: events of the training with the longer ones.

    Raises:
        ExpansionError: if the two are not the same events with other sizes.
    """

    def __init__(self, lengths: tuple[int, int], short: Sequence[LabelledEvent], long: Sequence[LabelledEvent]) -> None:
        events = _joined(lengths, short, long)
        self._update = next(index for index, event in enumerate(events) if event.segment == WARM_UP_PHASE)
        self._step = next(index for index, event in enumerate(events) if event.segment in STEP_PHASES)
        self._batches, self._rest = _batches(events[self._step :])
        self._live = _live(events[: self._step])
        self._long = long

    def events(self, lengths: Sequence[int], forwards: int) -> Iterator[MemoryEvent]:
        """Yields the events of a training that meets batches of these lengths, ``forwards`` of them a step."""
        yield from memory_events(self._long[: self._update])
        player = _Player(self._live)
        for start in range(0, len(lengths), forwards):
            for index, length in enumerate(lengths[start : start + forwards]):
                batch = self._batches[min(index, len(self._batches) - 1)]
                yield from player.play(batch, length, new_step=index == 0)
            if start == 0:
                yield from memory_events(self._long[self._update : self._step])
                yield from player.let_go()
            else:
                yield from player.play(self._rest, lengths[start], new_step=False)


def _joined(lengths: tuple[int, int], short: Sequence[LabelledEvent], long: Sequence[LabelledEvent]) -> list[_Event]:
    if list(map(_place, short)) != list(map(_place, long)):
        raise ExpansionError(
            f"rows of {lengths[0]} and of {lengths[1]} tokens do not make the same events, so that no one stands for "
            "the lengths between them"
        )
    return [
        _Event(high.segment, high.action, high.id, *_growth(low, high, *lengths))
        for low, high in zip(short, long, strict=True)
    ]


def _place(event: LabelledEvent) -> tuple[str, str, int]:
    return event.segment, event.action, event.id


def _growth(low: LabelledEvent, high: LabelledEvent, short: int, long: int) -> tuple[float, float, float]:
    """Returns the size as constant, linear and quadratic part.

    What grows no faster than the length has a constant part, what grows faster (scores, masks) a quadratic one.
    """
    if low.action == "free" or low.size_bytes == high.size_bytes or long == short:
        return float(high.size_bytes), 0.0, 0.0
    slope = (high.size_bytes - low.size_bytes) / (long - short)
    if low.size_bytes + MIN_BLOCK_BYTES >= slope * short:
        return low.size_bytes - slope * short, slope, 0.0
    square = (high.size_bytes / long - low.size_bytes / short) / (long - short)
    return 0.0, low.size_bytes / short - square * short, square


def _batches(events: Sequence[_Event]) -> tuple[list[list[_Event]], list[_Event]]:
    """Returns the events of each forward and backward, and those of the update after them."""
    batches: list[list[_Event]] = []
    before = ""
    for index, event in enumerate(events):
        if event.segment not in STEP_PHASES:
            return batches, list(events[index:])
        if event.segment == "forward" and before != "forward":
            batches.append([])
        batches[-1].append(event)
        before = event.segment
    return batches, []


def _live(events: Sequence[_Event]) -> set[int]:
    alive: set[int] = set()
    for event in events:
        if event.action == "allocate":
            alive.add(event.id)
        else:
            alive.discard(event.id)
    return alive


class _Player:
    """Gives the storages of every repetition numbers of their own, negative ones.

    What lives before the first step keeps its number, and whoever frees it twice is not heard the second time.
    """

    def __init__(self, live: set[int]) -> None:
        self._before = set(live)
        self._own: dict[int, int] = {}
        self._left: list[int] = []
        self._next = 0

    def play(self, events: Sequence[_Event], length: int, *, new_step: bool) -> Iterator[MemoryEvent]:
        """Yields one forward and backward, or one update, at a length."""
        if new_step:
            self._left += self._own.values()
            self._own = {}
        for event in events:
            if self._left and event.segment != "forward":
                yield from self._freed_leavings()
            if event.action == "allocate":
                yield from self._allocated(event, length)
            elif event.id in self._own:
                yield MemoryEvent("free", self._own.pop(event.id))
            elif event.id in self._before:
                self._before.remove(event.id)
                yield MemoryEvent("free", event.id)

    def let_go(self) -> Iterator[MemoryEvent]:
        """Frees what the step has left behind."""
        self._left += self._own.values()
        self._own = {}
        yield from self._freed_leavings()

    def _allocated(self, event: _Event, length: int) -> Iterator[MemoryEvent]:
        """A name that is bound again lets go of what it held after the new value has been made."""
        before = self._own.get(event.id)
        self._next -= 1
        self._own[event.id] = self._next
        yield MemoryEvent("allocate", self._next, event.bytes_at(length))
        if before is not None:
            yield MemoryEvent("free", before)

    def _freed_leavings(self) -> Iterator[MemoryEvent]:
        for number in self._left:
            yield MemoryEvent("free", number)
        self._left = []
