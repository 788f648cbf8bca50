"""The replay of CUDA's caching allocator against hand-worked cases, a published snapshot and a naive second model."""

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import InvalidInputError
from autopeft.memory.allocator import AllocatorSettings, MemoryEvent, replay, rounded_bytes, segment_bytes
from autopeft.units import GIB, MIB

EXPANDABLE = AllocatorSettings(expandable_segments=True)
EMPTY_CACHE = MemoryEvent("empty_cache")


def allocate(block: int, size_bytes: int) -> MemoryEvent:
    return MemoryEvent("allocate", block, size_bytes)


def free(block: int) -> MemoryEvent:
    return MemoryEvent("free", block)


def mark(name: str) -> MemoryEvent:
    return MemoryEvent("mark", name=name)


def test_a_published_snapshot_is_reproduced():
    # https://discuss.pytorch.org/t/178671: X @ W + b of 1000 and 1000 x 10 floats. One segment of 2,097,152 bytes with
    # blocks 40448, 512, 4096, 512 (free), 512 in use: 45,568 allocated; and cuBLAS' workspace of 8,519,680 bytes in a
    # segment of 20,971,520.
    events = [allocate(1, 40_000), allocate(2, 40), allocate(3, 4_000), allocate(9, 8_519_680)]
    events += [allocate(4, 40), allocate(5, 40), free(4)]
    found = replay(events)
    assert found.allocated_bytes == 45_568 + 8_519_680
    assert found.reserved_bytes == 2_097_152 + 20_971_520


@pytest.mark.parametrize(
    ("requested", "block", "segment"),
    [
        (0, 512, 2 * MIB),
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (1 * MIB, 1 * MIB, 2 * MIB),
        (1 * MIB + 1, 1 * MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 11 * MIB, 12 * MIB),
        (21 * MIB + 1, 21 * MIB + 512, 22 * MIB),
    ],
)
def test_requests_are_rounded_and_get_segments_as_documented(requested, block, segment):
    assert rounded_bytes(requested) == block
    assert segment_bytes(block) == segment
    assert replay([allocate(1, requested)]).reserved_bytes == segment


def test_a_rest_of_up_to_one_mib_stays_with_a_large_block_and_counts_as_allocated():
    assert replay([allocate(1, 11 * MIB)]).allocated_bytes == 12 * MIB
    assert replay([allocate(1, 11 * MIB - 512)]).allocated_bytes == 11 * MIB - 512
    assert replay([allocate(1, 11 * MIB)], EXPANDABLE).allocated_bytes == 11 * MIB


def test_the_smallest_free_block_that_fits_is_taken():
    events = [allocate(1, 40 * MIB), allocate(2, 30 * MIB), free(1), free(2), allocate(3, 25 * MIB)]
    # 25 MiB come from the block of 30, so that 40 are still there for the next request.
    found = replay([*events, allocate(4, 40 * MIB)])
    assert found.reserved_bytes == 70 * MIB


def test_the_rest_of_a_split_block_serves_the_next_request():
    found = replay([allocate(1, 3 * MIB), allocate(2, 8 * MIB), allocate(3, 9 * MIB)])
    assert found.reserved_bytes == 20 * MIB
    assert replay([allocate(1, 3 * MIB), allocate(2, 8 * MIB), allocate(3, 9 * MIB + 512)]).reserved_bytes == 40 * MIB


def test_freed_neighbours_merge_on_both_sides():
    blocks = [allocate(number, 5 * MIB) for number in range(4)]
    found = replay([*blocks, free(1), free(3), free(2), allocate(9, 15 * MIB)])
    assert found.reserved_bytes == 20 * MIB
    apart = replay([*blocks, free(1), free(3), allocate(9, 10 * MIB)])
    assert apart.reserved_bytes == 30 * MIB


def test_small_and_large_requests_never_share_a_segment():
    events = [allocate(1, 20 * MIB), free(1), allocate(2, 1 * MIB)]
    assert replay(events).reserved_bytes == 22 * MIB


def test_empty_cache_gives_back_wholly_free_segments_only():
    events = [allocate(1, 30 * MIB), allocate(2, 5 * MIB), allocate(3, 5 * MIB), free(1), free(3), EMPTY_CACHE]
    found = replay(events)
    assert found.peak_reserved_bytes == 50 * MIB
    assert found.reserved_bytes == 20 * MIB


def test_a_full_device_gives_free_segments_back_before_it_asks_for_more():
    """30 MiB are freed, and the next 40 MiB do not fit into them: 70 MiB on a large device, 40 on one of 60."""
    events = [
        MemoryEvent("allocate", 1, 30 * MIB),
        MemoryEvent("free", 1),
        MemoryEvent("allocate", 2, 40 * MIB),
    ]
    assert replay(events).peak_reserved_bytes == 70 * MIB
    assert replay(events, AllocatorSettings(device_bytes=70 * MIB)).peak_reserved_bytes == 70 * MIB
    assert replay(events, AllocatorSettings(device_bytes=60 * MIB)).peak_reserved_bytes == 40 * MIB


def test_a_block_above_the_split_limit_is_kept_whole():
    limited = AllocatorSettings(max_split_size_bytes=50 * MIB)
    events = [allocate(1, 100 * MIB), free(1)]
    assert replay([*events, allocate(2, 30 * MIB)], limited).reserved_bytes == 130 * MIB
    assert replay([*events, allocate(2, 90 * MIB)], limited).allocated_bytes == 100 * MIB
    # An oversized block serves requests that are less than 20 MiB smaller.
    assert replay([*events, allocate(2, 80 * MIB)], limited).reserved_bytes == 180 * MIB


def test_an_expandable_segment_grows_by_pages_and_leaves_no_slivers():
    found = replay([allocate(1, 30 * MIB), allocate(2, 5 * MIB), allocate(3, 5 * MIB)], EXPANDABLE)
    assert found.reserved_bytes == found.allocated_bytes == 40 * MIB
    assert replay([allocate(1, 1)], EXPANDABLE).reserved_bytes == 2 * MIB


def test_an_expandable_segment_serves_growing_requests_from_one_range():
    growing = list(itertools.chain.from_iterable((allocate(n, n * 20 * MIB), free(n)) for n in range(1, 6)))
    assert replay(growing, EXPANDABLE).peak_reserved_bytes == 100 * MIB
    assert replay(growing).peak_reserved_bytes == (20 + 40 + 60 + 80 + 100) * MIB


def test_empty_cache_unmaps_the_free_pages_of_an_expandable_segment():
    # Blocks at 0-30, 30-95 and 95-100 MiB; the pages 40-60 and 60-80 lie wholly in the free one.
    events = [allocate(1, 30 * MIB), allocate(2, 65 * MIB), allocate(3, 5 * MIB), free(2), EMPTY_CACHE]
    assert replay(events, EXPANDABLE).reserved_bytes == 60 * MIB
    # 30-40 and 80-95 are free; a request of 65 MiB fills the gap again, pages and all.
    assert replay([*events, allocate(4, 65 * MIB)], EXPANDABLE).reserved_bytes == 100 * MIB
    assert replay([*events, allocate(4, 66 * MIB)], EXPANDABLE).reserved_bytes == 140 * MIB


def test_phases_have_their_own_peaks():
    events = [allocate(1, 30 * MIB), mark("forward"), allocate(2, 40 * MIB), free(2), mark("backward"), free(1)]
    found = replay([*events, mark("forward"), allocate(3, 50 * MIB)])
    assert {name: peak.allocated_bytes // MIB for name, peak in found.phases.items()} == {
        "": 30,
        "forward": 70,
        "backward": 30,
    }
    assert found.phases["forward"].reserved_bytes == found.peak_reserved_bytes == (30 + 40 + 50) * MIB


def test_freeing_what_is_not_allocated_is_an_error_that_names_the_event():
    with pytest.raises(InvalidInputError, match="event 1 frees block 7"):
        replay([allocate(1, 1), free(7)])
    with pytest.raises(InvalidInputError, match="event 1 allocates block 1"):
        replay([allocate(1, 1), allocate(1, 1)])


sizes = st.one_of(
    st.integers(0, 4096),
    st.integers(MIB // 2, 3 * MIB),
    st.integers(8 * MIB, 12 * MIB),
    st.integers(18 * MIB, 90 * MIB),
)


@st.composite
def programs(draw):
    """Allocations, frees in any order, and now and then an emptied cache."""
    events, live = [], []
    for number in range(draw(st.integers(1, 60))):
        action = draw(st.sampled_from(["allocate", "allocate", "free", "free", "empty"]))
        if action == "allocate" or not live:
            events.append(allocate(number, draw(sizes)))
            live.append(number)
        elif action == "free":
            events.append(free(live.pop(draw(st.integers(0, len(live) - 1)))))
        else:
            events.append(EMPTY_CACHE)
    return events, live


@given(programs(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_reserved_covers_allocated_and_all_of_it_can_be_given_back(program, expandable):
    events, live = program
    how = AllocatorSettings(expandable_segments=expandable)
    for end in range(len(events) + 1):
        found = replay(events[:end], how)
        assert found.reserved_bytes >= found.allocated_bytes
        assert found.peak_reserved_bytes >= max(found.reserved_bytes, found.peak_allocated_bytes)
        assert found.reserved_bytes % (2 * MIB) == 0
    found = replay([*events, *(free(block) for block in live), EMPTY_CACHE], how)
    assert found.allocated_bytes == found.reserved_bytes == 0


@given(programs())
@settings(max_examples=150, deadline=None)
def test_expandable_segments_allocate_exactly_the_rounded_requests(program):
    events, live = program
    requested = {event.block: event.size_bytes for event in events if event.action == "allocate"}
    assert replay(events, EXPANDABLE).allocated_bytes == sum(rounded_bytes(requested[block]) for block in live)


@given(programs())
@settings(max_examples=200, deadline=None)
def test_the_replay_equals_a_naive_model_that_looks_at_every_byte_range(program):
    events, _ = program
    found = replay(events)
    assert (found.peak_allocated_bytes, found.peak_reserved_bytes, found.reserved_bytes) == naive_replay(events)


def naive_replay(events):
    """The documented rules once more, on plain lists: a segment is a list of [size, owner or None]."""
    segments, peak_allocated, peak_reserved = [], 0, 0
    for event in events:
        if event.action == "allocate":
            naive_allocate(segments, event.block, rounded_bytes(event.size_bytes))
        elif event.action == "free":
            for segment in segments:
                naive_free(segment, event.block)
        else:
            segments = [segment for segment in segments if any(owner is not None for _, owner in segment)]
        pieces = [piece for segment in segments for piece in segment]
        reserved = sum(size for size, _ in pieces)
        peak_reserved = max(peak_reserved, reserved)
        peak_allocated = max(peak_allocated, sum(size for size, owner in pieces if owner is not None))
    return peak_allocated, peak_reserved, reserved


def naive_allocate(segments, block, size):
    small = size <= MIB
    fits = [
        (piece[0], at, index)
        for at, segment in enumerate(segments)
        for index, piece in enumerate(segment)
        if piece[1] is None and piece[0] >= size and (sum(part[0] for part in segment) == 2 * MIB) == small
    ]
    if not fits:
        own = -(-size // (2 * MIB)) * 2 * MIB
        segments.append([[2 * MIB if small else 20 * MIB if size < 10 * MIB else own, None]])
        fits = [(0, len(segments) - 1, 0)]
    _, at, index = min(fits)
    piece = segments[at][index]
    rest = piece[0] - size
    piece[1] = block
    if rest >= 512 if small else rest > MIB:
        piece[0] = size
        segments[at].insert(index + 1, [rest, None])


def naive_free(segment, block):
    for piece in segment:
        if piece[1] == block:
            piece[1] = None
    merged = [segment[0]]
    for piece in segment[1:]:
        if piece[1] is None and merged[-1][1] is None:
            merged[-1][0] += piece[0]
        else:
            merged.append(piece)
    segment[:] = merged


def test_a_hundred_thousand_events_are_replayed_in_about_a_fifth_of_a_second():
    chance = random.Random(0)
    events, live = [], []
    for number in range(100_000):
        if live and chance.random() < 0.5:
            events.append(free(live.pop(chance.randrange(len(live)))))
        else:
            events.append(allocate(number, chance.choice([100, 300_000, 2 * MIB, 33 * MIB, GIB // 9])))
            live.append(number)
    start = time.process_time()
    replay(events)
    # 0.12 s on two shared cores; the limit leaves room for a busy machine and fails on anything quadratic.
    assert time.process_time() - start < 2.0
