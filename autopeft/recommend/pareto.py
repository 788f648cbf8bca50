"""Which candidates no other one beats in everything: predicted quality, memory, time and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autopeft.specs import RankedCandidate

BLOCK = 256


def mark_front(entries: Sequence[RankedCandidate]) -> tuple[RankedCandidate, ...]:
    """Returns the candidates in their order, each with whether it lies on the front."""
    if not entries:
        return ()
    costs = np.array([_costs(entry) for entry in entries])
    return tuple(replace(entry, on_front=bool(kept)) for entry, kept in zip(entries, on_front(costs), strict=True))


def on_front(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns which rows of ``(points, criteria)`` no other row dominates; less is better in every column.

    A row dominates another if it is nowhere worse and somewhere better, so of equal rows all stay. Rows are taken in
    the order of their first column, cheapest first: only rows of the front so far can dominate the next ones.
    """
    order = np.lexsort(costs.T[::-1])
    kept = np.ones(len(costs), dtype=bool)
    front = np.empty((0, costs.shape[1]))
    for start in range(0, len(order), BLOCK):
        places = order[start : start + BLOCK]
        block = costs[places]
        alive = ~_dominated(block, front)
        alive[alive] = ~_dominated(block[alive], block[alive])
        kept[places] = alive
        front = np.concatenate([front, block[alive]])
    return kept


def _dominated(rows: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.bool_]:
    if not len(rows) or not len(by):
        return np.zeros(len(rows), dtype=bool)
    nowhere_worse = np.all(by[None, :, :] <= rows[:, None, :], axis=2)
    somewhere_better = np.any(by[None, :, :] < rows[:, None, :], axis=2)
    found: NDArray[np.bool_] = np.any(nowhere_worse & somewhere_better, axis=1)
    return found


def _costs(entry: RankedCandidate) -> tuple[float, float, float, float]:
    """Returns what a candidate asks; an unknown time or price is 0, since it is then unknown of all of them."""
    required = float(entry.estimate.required_bytes)
    return -entry.quality_points, required, entry.predicted_seconds or 0.0, entry.predicted_cost or 0.0
