"""Storages that come and go, written down as events whose sizes are monomials of a step's free numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

UNITS = ("one", "tokens", "scores", "rank", "token_ranks", "length", "square", "chunk", "rows")
"""What a size is a multiple of; T tokens of a forward, S of a row, r the rank: 1, T, T S, r, T r, S, S S,
min(T, 4096) (trl's tile), rows."""

ONE, TOKENS, SCORES, RANK, TOKEN_RANKS, LENGTH, SQUARE, CHUNK, ROWS = range(len(UNITS))

PARTS = ("gradients", "activations", "logits", "temporaries")
GRADIENTS, ACTIVATIONS, LOGITS, TEMPORARIES = range(len(PARTS))


class Storage:
    """Memory of one tensor and its views; it ends with its last reference."""

    __slots__ = ("_index", "_tape")

    def __init__(self, tape: Tape, index: int) -> None:
        self._tape = tape
        self._index = index

    def __del__(self) -> None:
        self._tape.events.append(~self._index)

    def rename(self, part: int) -> None:
        """Says what the storage turned out to be."""
        self._tape.parts[self._index] = part


@dataclass(frozen=True, slots=True)
class Repeat:
    """What happened between two events happens so many times more at ``position``."""

    position: int
    start: int
    end: int
    times: int


@dataclass(slots=True)
class Tape:
    """Every storage of a step.

    Attributes:
        units, widths, parts: of each storage: its bytes are ``widths[i]`` times the value of ``units[i]``.
        events: index of a storage that comes, or its complement where it goes, in order.
        part: what new storages are.
        repeats: blocks that stand for more of their kind.
    """

    units: list[int] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    part: int = ACTIVATIONS
    repeats: list[Repeat] = field(default_factory=list)

    def take(self, unit: int, width: float, part: int | None = None) -> Storage:
        """Returns a new storage of ``width`` bytes a unit."""
        index = len(self.units)
        self.units.append(unit)
        self.widths.append(width)
        self.parts.append(self.part if part is None else part)
        self.events.append(index)
        return Storage(self, index)
