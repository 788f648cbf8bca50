"""The moments of a recorded step that can be its peak, as coefficients of the step's free numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.memory.ledger.record import Recorded
from autopeft.memory.ledger.tape import PARTS, UNITS, Tape

Floats = NDArray[np.float64]


NEGLIGIBLE = 0.001
"""Share by which a moment that is left out may exceed the one that stands for it."""

BLOCK = 64
"""Moments that are compared at once."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Moments of one phase that no other moment exceeds in every unit.

    Attributes:
        coefficients: bytes a unit, ``(moments, units)``.
        parts: the same by component, ``(moments, parts, units)``.
    """

    coefficients: Floats
    parts: Floats


def phase_rows(recorded: Recorded) -> tuple[Rows, Rows]:
    """Returns the moments of forward and backward; those of a repeated block at its last turn as well."""
    live = _live(recorded.tape)
    start = recorded.backward_start
    forward, backward = [live[:start]], [live[start:]]
    for repeat in recorded.tape.repeats:
        before = live[repeat.start - 1] if repeat.start else 0.0
        grown = repeat.times * (live[repeat.end - 1] - before)
        (forward if repeat.end <= start else backward).append(live[repeat.start : repeat.end] + grown)
    return _peaks(forward), _peaks(backward)


def _live(tape: Tape) -> Floats:
    """Returns what is there after each event, ``(events, parts, units)``."""
    events = np.asarray(tape.events)
    comes = events >= 0
    storages = np.where(comes, events, ~events)
    # One row more: a block may be repeated where the tape ends.
    deltas = np.zeros((len(events) + 1, len(PARTS) * len(UNITS)))
    columns = np.asarray(tape.parts)[storages] * len(UNITS) + np.asarray(tape.units)[storages]
    widths = np.asarray(tape.widths)[storages]
    deltas[np.arange(len(events)), columns] = np.where(comes, widths, -widths)
    for repeat in tape.repeats:
        deltas[repeat.position] += repeat.times * deltas[repeat.start : repeat.end].sum(axis=0)
    return np.cumsum(deltas, axis=0).reshape(len(deltas), len(PARTS), len(UNITS))


def _peaks(stretches: list[Floats]) -> Rows:
    """Returns the local maxima that no other exceeds in every unit, but for ``NEGLIGIBLE`` of it."""
    live = np.concatenate([_local_maxima(each) for each in stretches])
    totals = live.sum(axis=1)
    places = np.argsort(-totals.sum(axis=1), kind="stable")
    moments = totals[places]
    kept = np.empty(0, dtype=np.intp)
    for start in range(0, len(places), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(places)))
        rivals = np.concatenate([kept, block])
        exceeded = (moments[rivals][:, None] >= (1 - NEGLIGIBLE) * moments[block][None]).all(axis=2)
        # Of two that exceed each other, the earlier one stays.
        exceeded &= rivals[:, None] < block[None]
        kept = np.concatenate([kept, block[~exceeded.any(axis=0)]])
    chosen = places[kept]
    return Rows(totals[chosen], live[chosen])


def _local_maxima(live: Floats) -> Floats:
    """Returns the moments after which something goes."""
    grows = np.diff(live.sum(axis=(1, 2)), prepend=0) > 0
    found: Floats = live[grows & np.append(~grows[1:], True)]
    return found
