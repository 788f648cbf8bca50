"""What is known of some rows, in a form that can be merged: facts of blocks add up to the facts of a data set."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Collection
from dataclasses import dataclass, field

from autopeft.profiling._example import Example
from autopeft.profiling._rows import SHOWN_ROWS, BadRows
from autopeft.profiling._tokens import CountedRow
from autopeft.profiling.scan.similar import SimilarRow
from autopeft.profiling.scan.texts import TextFacts

SHORTEST_MAX_LENGTH = 128
"""Shortest row of the truncation table."""
_LONGEST_MAX_LENGTH = 2**24
LONGEST_KEPT = 8
"""Rows outside a sample whose tokens are counted too, the longest by their characters."""


@dataclass(slots=True)
class Noted:
    """Rows of which something is to be said: how many, and the first of them as text."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, shown: str) -> None:
        """Takes in one row."""
        self.count += 1
        if len(self.shown) < SHOWN_ROWS:
            self.shown.append(shown)

    def merge(self, later: Noted) -> None:
        """Takes in rows that stand behind its own."""
        self.count += later.count
        self.shown = (self.shown + later.shown)[:SHOWN_ROWS]


@dataclass(slots=True)
class Lengths:
    """Lengths of rows in tokens, and what limits would cut.

    Attributes:
        limits: values of max_length, ascending.
        by_tokens: tokens of a row -> rows.
        supervised: supervised tokens of all rows.
        lost: supervised tokens that each limit cuts off.
        emptied: rows that have supervised tokens and keep none within each limit.
    """

    limits: tuple[int, ...]
    by_tokens: Tally[int] = field(default_factory=Tally)
    supervised: int = 0
    lost: list[int] = field(default_factory=list)
    emptied: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lost = self.lost or [0] * len(self.limits)
        self.emptied = self.emptied or [0] * len(self.limits)

    @property
    def rows(self) -> int:
        """Counted rows."""
        return self.by_tokens.total()

    @property
    def tokens(self) -> int:
        """Tokens of all counted rows."""
        return sum(tokens * rows for tokens, rows in self.by_tokens.items())

    def add(self, row: CountedRow) -> None:
        """Takes in one row."""
        self.by_tokens[row.tokens] += 1
        supervised = sum([end - begin for begin, end in row.supervised])
        self.supervised += supervised
        for place, limit in enumerate(self.limits):
            if limit >= row.tokens:
                break
            kept = row.supervised_within(limit)
            self.lost[place] += supervised - kept
            self.emptied[place] += not kept and supervised > 0

    def merge(self, other: Lengths) -> None:
        """Takes in the lengths of other rows."""
        self.by_tokens.update(other.by_tokens)
        self.supervised += other.supervised
        self.lost = [own + more for own, more in zip(self.lost, other.lost, strict=True)]
        self.emptied = [own + more for own, more in zip(self.emptied, other.emptied, strict=True)]


def truncation_limits(context_length: int | None) -> tuple[int, ...]:
    """Returns the values of max_length that are looked at: powers of two up to the context, and the context."""
    longest = context_length or _LONGEST_MAX_LENGTH
    exponents = range(SHORTEST_MAX_LENGTH.bit_length() - 1, longest.bit_length())
    return tuple(sorted({2**exponent for exponent in exponents} | ({context_length} if context_length else set())))


@dataclass(slots=True)
class RowNumbers:
    """The places of the rows whose content was hashed, by their order; blocks of consecutive lines cost nothing.

    Attributes:
        starts: order of the first row of each block, ascending.
        blocks: file, number of the first row, and the rows' numbers where they do not follow one another.
    """

    starts: list[int] = field(default_factory=list)
    blocks: list[tuple[str, int, array[int] | None]] = field(default_factory=list)

    def rows_in(self, files: Collection[str], rows: int) -> int:
        """Returns how many of so many rows stand in the files."""
        ends = [*self.starts[1:], rows]
        blocks = zip(self.blocks, self.starts, ends, strict=True)
        return sum(end - start for (file, _, _), start, end in blocks if file in files)

    def place(self, order: int) -> tuple[str, int]:
        """Returns the file and the number of a row."""
        index = bisect_right(self.starts, order) - 1
        file, first, numbers = self.blocks[index]
        inside = order - self.starts[index]
        return file, first + inside if numbers is None else numbers[inside]


@dataclass(slots=True)
class Facts:
    """What one block, or all blocks so far, say.

    Attributes:
        lengths: of the rows whose tokens were counted.
        rows: rows that can be used.
        characters: of all their texts.
        left_out: rows that cannot.
        hashes: 64 bits of each row's content, in order.
        numbers: where those rows stand.
        noted: code -> rows to be told of.
        labels: label -> rows.
        dialogues: rows in which a user speaks more than once.
        kept: the rows of lowest rank, as (-rank, row): a heap.
        longest: the longest rows by characters, as (characters, -order, row): a heap.
        texts: what the texts of the looked-at rows are like.
        similar: what is compared with other rows.
    """

    lengths: Lengths
    rows: int = 0
    characters: int = 0
    left_out: BadRows = field(default_factory=BadRows)
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    numbers: RowNumbers = field(default_factory=RowNumbers)
    noted: dict[str, Noted] = field(default_factory=dict)
    labels: Tally[str] = field(default_factory=Tally)
    dialogues: int = 0
    kept: list[tuple[int, Example]] = field(default_factory=list)
    longest: list[tuple[int, int, Example]] = field(default_factory=list)
    texts: TextFacts = field(default_factory=TextFacts)
    similar: list[SimilarRow] = field(default_factory=list)

    def note(self, code: str, shown: str) -> None:
        """Notes one row under a code."""
        self.noted.setdefault(code, Noted()).add(shown)

    def merge(self, later: Facts, keep_rows: int = 0) -> None:
        """Takes in the facts of rows that stand behind its own; at most ``keep_rows`` rows of lowest rank are kept."""
        self.numbers.starts += [start + len(self.hashes) for start in later.numbers.starts]
        self.numbers.blocks += later.numbers.blocks
        self.hashes.extend(later.hashes)
        for code, noted in later.noted.items():
            self.noted.setdefault(code, Noted()).merge(noted)
        for negative_rank, example in later.kept:
            push = heapq.heappush if len(self.kept) < keep_rows else heapq.heappushpop
            push(self.kept, (negative_rank, example))
        for characters, negative_order, example in later.longest:
            push_long = heapq.heappush if len(self.longest) < LONGEST_KEPT else heapq.heappushpop
            push_long(self.longest, (characters, negative_order - self.rows, example))
        self.rows += later.rows
        self.characters += later.characters
        self.left_out.merge(later.left_out)
        self.lengths.merge(later.lengths)
        self.labels.update(later.labels)
        self.dialogues += later.dialogues
        self.texts.merge(later.texts)
        self.similar += later.similar
