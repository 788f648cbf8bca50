"""Predicts what CUDA's caching allocator holds, by replaying a traced training on its rules."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from autopeft.memory._expansion import LabelledEvent, expand, memory_events
from autopeft.memory.allocator import AllocatorSettings, MemoryEvent, replay
from autopeft.memory.tracing.recorder import Allocation, Moment
from autopeft.memory.tracing.request import TraceRequest
from autopeft.memory.tracing.step import WARM_UP, ShallowTrace, is_paged
from autopeft.memory.tracing.varying import STEP_PHASES, VariedTraining

_PRESSED = AllocatorSettings(device_bytes=0)
"""An allocator that always gives back what it holds for nothing before it asks for more."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """What the caching allocator holds.

    Attributes:
        peak_bytes: at most, on a device with memory to spare.
        least_bytes: at most, where it gives free segments back before it asks for more; a device with so much does.
    """

    peak_bytes: int
    least_bytes: int


def reserved_bytes(
    request: TraceRequest, traces: Sequence[ShallowTrace], depths: tuple[int, ...], layers: int
) -> Reserved | None:
    """Returns what the allocator holds in a training's first two steps; None on a host processor, which has none.

    The weights arrive, one forward and backward runs before the optimizer's states exist, they are made in what it
    left in the cache, and the step is run again.

    Raises:
        ExpansionError: if the shallow traces do not say what a deep one does; trace the full depth.
    """
    if request.kind == "cpu":
        return None
    shallow = [_labelled(trace.events, request) for trace in traces]
    if len(shallow) == 1:
        return _replayed(shallow[0], request)
    return _replayed(expand(shallow[0], shallow[1], (depths[0], depths[1]), layers), request)


def varied_bytes(request: TraceRequest, brief: ShallowTrace, longest: ShallowTrace) -> int:
    """Returns by how much a training with batches of many lengths outgrows one whose batches are all the longest.

    The median over ``request.batch_orders``: unlucky orders take twice as much. Both traces may be of a shallow model:
    what breaks up is the memory of the logits, which a deep model has no more of (Qwen-1.8B's 24 layers with
    checkpointing give the same to 0.01 GiB).

    Args:
        request: its ``sequence_length`` is the longest.
        brief: trace with rows of the shortest length.
        longest: trace of the same model with rows of the longest length.

    Raises:
        ExpansionError: if the two traces are not the same events with other sizes.
    """
    lengths = (min(map(min, request.batch_orders)), request.sequence_length)
    varied = VariedTraining(lengths, _labelled(brief.events, request), _labelled(longest.events, request))
    forwards = request.candidate.gradient_accumulation_steps
    uniform = (request.sequence_length,) * (2 * forwards)
    alone = replay(varied.events(uniform, forwards)).peak_reserved_bytes
    mixed = [replay(varied.events(order, forwards)).peak_reserved_bytes for order in request.batch_orders]
    return max(0, round(statistics.median(mixed)) - alone)


def _labelled(events: Iterable[tuple[bool, Allocation, Moment]], request: TraceRequest) -> list[LabelledEvent]:
    numbers: dict[int, int] = {}
    found = []
    for allocated, allocation, moment in events:
        if is_paged(allocation, request):
            continue
        number = numbers.setdefault(id(allocation), len(numbers))
        action: Literal["allocate", "free"] = "allocate" if allocated else "free"
        found.append(LabelledEvent(moment.phase, moment.block, action, number, allocation.size))
    return [event for group in _together(found) for event in group]


def _together(events: Sequence[LabelledEvent]) -> Iterator[Sequence[LabelledEvent]]:
    """Returns a forward's releases that follow each other in the order of their allocations.

    They come to the same for the allocator in any order, and autocast lets go of its copies in that of a hash table.
    """
    for (action, segment, _), group in itertools.groupby(events, key=lambda event: (event.action, *event[:2])):
        members = list(group)
        unordered = action == "free" and segment == "forward"
        yield sorted(members, key=lambda event: event.id) if unordered else members


def _replayed(events: Sequence[LabelledEvent], request: TraceRequest) -> Reserved:
    update, step = _first(events, WARM_UP.phase), _first(events, STEP_PHASES[0])
    load, first_update, whole_step = (
        memory_events(part) for part in (events[:update], events[update:step], events[step:])
    )
    cleared = [MemoryEvent("empty_cache")] if request.style.cache_emptied else []
    rehearsal = [] if cleared else _rehearsal(events[step:])
    free = replay([*load, *rehearsal, *first_update, *cleared, *whole_step]).peak_reserved_bytes
    # What an earlier step left in the cache is given back before more is asked for.
    pressed = replay([*load, *first_update, *cleared, *whole_step], _PRESSED).peak_reserved_bytes
    return Reserved(free, min(free, pressed))


def _first(events: Sequence[LabelledEvent], segment: str) -> int:
    return next((i for i, event in enumerate(events) if event.segment == segment), 0)


def _rehearsal(events: Sequence[LabelledEvent]) -> list[MemoryEvent]:
    """Returns the forward and backward that come before the first update, which the trace spares itself.

    Their ids are their own; what lives on after them is let go of.
    """
    rehearsed: list[MemoryEvent] = []
    live: dict[int, None] = {}
    for segment, _, action, number, size_bytes in events:
        if segment not in STEP_PHASES:
            continue
        own = -1 - number
        if action == "allocate":
            live[own] = None
            rehearsed.append(MemoryEvent("allocate", own, size_bytes))
        elif own in live:
            del live[own]
            rehearsed.append(MemoryEvent("free", own))
    return rehearsed + [MemoryEvent("free", own) for own in live]
