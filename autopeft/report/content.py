"""What a report says, before it is Markdown or HTML: sections of sentences, tables, figures and code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is shown.
        number: what a numeric column is sorted by; None sorts by the text.
    """

    text: str
    number: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that the HTML report makes sortable.

    Attributes:
        folded: whether it is shown only on demand, for long lists that few need.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot.

    Attributes:
        description: what it shows, in one sentence: caption and text for screen readers.
        data: Plotly's JSON form (``data`` and ``layout``); the colours ``$text``, ``$muted`` and ``$grid`` are
            replaced by those of the reader's theme.
    """

    description: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Lines to copy: ``language`` is "sh" or "python"."""

    language: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of a report, shown in the order of its fields."""

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    code: tuple[Code, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """One large figure under the headline."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A whole report.

    Attributes:
        headline: the verdict, or the state of the run, in one sentence.
    """

    title: str
    subtitle: str
    headline: str
    stats: tuple[Stat, ...] = ()
    sections: tuple[Section, ...] = field(default=())


def text_rows(rows: Iterable[Iterable[str]]) -> tuple[tuple[Cell, ...], ...]:
    """Returns rows of texts as cells."""
    return tuple(tuple(Cell(text) for text in row) for row in rows)


def facts_table(caption: str, facts: Iterable[tuple[str, str]], *, folded: bool = False) -> Table:
    """Returns a table of names and values."""
    return Table(caption=caption, columns=("what", "value"), rows=text_rows(facts), folded=folded)


def figures(*found: Figure | None) -> tuple[Figure, ...]:
    """Returns the figures that there is data for."""
    return tuple(figure for figure in found if figure is not None)
