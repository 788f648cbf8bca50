"""Shallow traces stand for deep ones: each part of a step grows by the same bytes with every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHALLOWEST = 3
"""First, last and one layer between them differ: the first may need no gradient of its input."""


@dataclass(frozen=True, slots=True)
class TracedPart:
    """The peak of one part of a step at one depth: bytes by component."""

    components: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """All components together."""
        return sum(self.components.values())


def pattern_period(layer_types: Sequence[str] | None, layers: int) -> int:
    """Returns after how many layers the pattern of layer types repeats; 1 without a pattern."""
    if not layer_types:
        return 1
    for period in range(1, layers):
        if all(layer_types[i] == layer_types[i - period] for i in range(period, layers)):
            return period
    return layers


def shallow_depths(layers: int, period: int) -> tuple[int, ...]:
    """Returns the depths to trace: two, one whole period of the pattern apart; the full depth if that is no deeper."""
    first = SHALLOWEST
    while first < period or (layers - first) % period:
        first += 1
    return (layers,) if first + period >= layers else (first, first + period)


def extrapolate(low: TracedPart, high: TracedPart, depths: tuple[int, int], layers: int) -> TracedPart:
    """Returns a part at full depth from two shallow traces of it."""
    periods = (layers - depths[0]) // (depths[1] - depths[0])
    names = low.components.keys() | high.components.keys()
    grown = {}
    for name in names:
        start, end = low.components.get(name, 0), high.components.get(name, 0)
        grown[name] = start + (end - start) * periods
    return TracedPart(grown)
