"""Batches of many lengths: sizes between two traced lengths, and what the allocator then holds."""

from __future__ import annotations

import pytest

from autopeft.memory._expansion import ExpansionError, LabelledEvent
from autopeft.memory.allocator import replay
from autopeft.memory.tracing.varying import VariedTraining

MIB = 2**20
SHORT, LONG = 100, 1000


def traced(length: int, *, square: bool = False, extra: bool = False) -> list[LabelledEvent]:
    """A weight of 64 MiB, a state, and a step that holds 1 MiB a token, in two requests that overlap."""
    size = length * length * 1024 if square else length * MIB
    events = [
        LabelledEvent("load", None, "allocate", 0, 64 * MIB),
        LabelledEvent("warm-up", None, "allocate", 1, 32 * MIB),
        LabelledEvent("forward", 0, "allocate", 2, size),
        LabelledEvent("forward", 0, "allocate", 3, 2 * size),
        LabelledEvent("backward", 0, "free", 2, size),
        LabelledEvent("backward", 0, "free", 3, 2 * size),
        LabelledEvent("optimizer", None, "allocate", 4, 32 * MIB),
        LabelledEvent("optimizer", None, "free", 4, 32 * MIB),
    ]
    return events + ([LabelledEvent("optimizer", None, "allocate", 5, MIB)] if extra else [])


def training(**kinds: bool) -> VariedTraining:
    return VariedTraining((SHORT, LONG), traced(SHORT, **kinds), traced(LONG, **kinds))


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("length", [SHORT, 400, LONG])
def test_the_sizes_of_any_length_follow_from_two(length, square):
    wanted = sorted(event.size_bytes for event in traced(length, square=square) if event.action == "allocate")
    found = {
        event.size_bytes for event in training(square=square).events([length] * 2, 1) if event.action == "allocate"
    }
    assert found == set(wanted)


def test_batches_of_one_length_hold_no_more_than_the_first():
    once, often = (replay(training().events([LONG] * count, 1)).peak_reserved_bytes for count in (2, 20))
    assert once == often


def test_lengths_that_rise_break_the_memory_up_and_lengths_that_fall_do_not():
    lengths = list(range(SHORT, LONG + 1, 100))
    rising, falling = (replay(training().events(order, 1)).peak_reserved_bytes for order in (lengths, lengths[::-1]))
    alone = replay(training().events([LONG, LONG], 1)).peak_reserved_bytes
    assert falling <= alone
    assert rising > 1.5 * alone


def test_nothing_is_allocated_at_the_end_but_weights_and_states():
    assert replay(training().events([LONG, SHORT, 400], 2)).allocated_bytes == 96 * MIB


def test_traces_that_differ_in_more_than_sizes_stand_for_no_length_between_them():
    with pytest.raises(ExpansionError, match="100 and of 1000 tokens do not make the same events"):
        VariedTraining((SHORT, LONG), traced(SHORT), traced(LONG, extra=True))
