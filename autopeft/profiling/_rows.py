"""One row of a data file: as it was read, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.errors import DataError
from autopeft.specs.data import OnBadRow

SHOWN_ROWS = 3
"""Rows that a message names of those concerned."""

Unit = Literal["line", "row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its file.

    Attributes:
        file: path as it was given.
        number: 1-based line of the file where it has lines, otherwise the row's position.
        values: column -> value.
        unit: what ``number`` counts.
    """

    file: str
    number: int
    values: dict[str, Any]
    unit: Unit = "line"

    @property
    def where(self) -> str:
        """The row's place for an error message: ``data.jsonl:7``, or ``data.parquet, row 7``."""
        return place(self.file, self.number, self.unit)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, or does not fit its data set's format.

    Attributes:
        file: path as it was given.
        number: as in ``Row``.
        problem: what follows the row's place in a sentence: " is not valid JSON: ...", ": the row has no field ...".
        unit: what ``number`` counts.
    """

    file: str
    number: int
    problem: str
    unit: Unit = "line"

    @property
    def sentence(self) -> str:
        """What is wrong, and where."""
        return place(self.file, self.number, self.unit) + self.problem


@dataclass(slots=True)
class BadRows:
    """The rows left out so far: how many, and the first of them.

    Attributes:
        count: rows left out.
        shown: the first of them.
    """

    count: int = 0
    shown: list[BadRow] = field(default_factory=list)

    def add(self, bad: BadRow) -> None:
        """Takes in one more."""
        self.count += 1
        if len(self.shown) < SHOWN_ROWS:
            self.shown.append(bad)

    def merge(self, later: BadRows) -> None:
        """Takes in those that stand behind its own."""
        self.count += later.count
        self.shown = (self.shown + later.shown)[:SHOWN_ROWS]

    def settle(self, good_rows: int, on_bad_row: OnBadRow, needed: str) -> None:
        """Checks what was read when all is read.

        Args:
            good_rows: rows that could be used.
            on_bad_row: what shall happen if others could not.
            needed: the format and what its rows need, for the message.

        Raises:
            DataError: if there are bad rows and they are not to be skipped, or nothing else is left.
        """
        if not self.count or (on_bad_row == "skip" and good_rows):
            return
        more = "" if self.count == 1 else f" (and so on: {'; '.join(bad.sentence for bad in self.shown[1:])})"
        advice = (
            "Mend or remove them, or leave them out: --on-bad-row skip"
            if good_rows
            else "Mend them; no row is left without them"
        )
        raise DataError(
            f"{self.shown[0].sentence}; {self.count} of {self.count + good_rows} rows cannot be read or do not fit "
            f"the format {needed}{more}. {advice}"
        )


def place(file: str, number: int, unit: Unit) -> str:
    """Returns a row's place for a message."""
    return f"{file}:{number}" if unit == "line" else f"{file}, row {number}"


def strictly(rows: Iterable[Row | BadRow]) -> Iterator[Row]:
    """Yields the rows.

    Raises:
        DataError: at the first that cannot be read.
    """
    for row in rows:
        if isinstance(row, BadRow):
            raise DataError(row.sentence)
        yield row
