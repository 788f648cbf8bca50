"""Finds equal rows by their 64-bit hashes: 8 bytes a row in memory, and no second look at the data."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PART_ROWS = 2**22
"""Rows that are sorted together, so that sorting needs a bounded multiple of this beside the hashes."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Rows that repeat an earlier one.

    Attributes:
        count: how many.
        first: the first of them, as (order of the copy, order of what it repeats).
    """

    count: int
    first: tuple[tuple[int, int], ...]


def find_copies(hashes: array[int], shown: int) -> Copies:
    """Returns the rows whose hash an earlier one has; the first ``shown`` of them with what they repeat."""
    count = 0
    pairs: list[tuple[int, int]] = []
    for orders, values in _parts(_as_numpy(hashes)):
        order = values.argsort(kind="stable")
        ordered = values[order]
        repeats = (ordered[1:] == ordered[:-1]).nonzero()[0] + 1
        count += len(repeats)
        copies = order[repeats]
        for place in _smallest(copies, shown):
            original = order[ordered.searchsorted(values[place])]
            pairs.append((int(orders[place]), int(orders[original])))
    return Copies(count, tuple(heapq.nsmallest(shown, pairs)))


def find_shared(hashes: array[int], others: array[int], shown: int) -> Copies:
    """Returns the rows whose hash is among the others'; the first with the first other that equals them.

    Memory: a sorted copy of the others, whichever is larger being read as it is.
    """
    import numpy as np

    own, there = _as_numpy(hashes), _as_numpy(others)
    found = np.isin(own, np.unique(there)).nonzero()[0]
    pairs = tuple((int(place), int((there == own[place]).argmax())) for place in found[:shown])
    return Copies(len(found), pairs)


def _as_numpy(hashes: array[int]) -> NDArray[np.uint64]:
    import numpy as np

    return np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0, np.uint64)


def _parts(values: NDArray[np.uint64]) -> Iterator[tuple[Any, NDArray[np.uint64]]]:
    """Yields parts that hold all rows of their hashes, with the rows' orders."""
    parts = 1
    while len(values) > parts * _PART_ROWS:
        parts *= 2
    if parts == 1:
        yield range(len(values)), values
        return
    bits = parts.bit_length() - 1
    for part in range(parts):
        orders = (values >> (64 - bits) == part).nonzero()[0]
        yield orders, values[orders]


def _smallest(copies: NDArray[Any], shown: int) -> list[int]:
    return [int(place) for place in sorted(heapq.nsmallest(shown, copies.tolist()))] if len(copies) else []
