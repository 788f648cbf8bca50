"""Finds rows that nearly repeat others, or share a template with them, in a sample of at most 50,000."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autopeft.profiling.scan.similar import PERMUTATIONS, SimilarRow
from autopeft.profiling.scan.templates import shared_keys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST_SAMPLE = 50_000
"""Rows compared for resemblance."""
NEAR_SIMILARITY = 0.8
"""Jaccard similarity of five-character runs from which on two rows count as near duplicates."""
_Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Resemblance:
    """Rows of a sample that resemble others.

    Attributes:
        count: rows that do.
        rows: rows of the sample.
        first: the first of them, each with one that it resembles.
    """

    count: int
    rows: int
    first: tuple[tuple[SimilarRow, SimilarRow], ...]

    def interval(self) -> tuple[float, float]:
        """Returns Wilson's score interval of the share, for 95 %."""
        if not self.rows:
            return 0.0, 1.0
        share, spread = self.count / self.rows, _Z_95**2 / self.rows
        middle = share + spread / 2
        half = _Z_95 * math.sqrt(share * (1 - share) / self.rows + spread / (4 * self.rows))
        return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def lowest(rows: Sequence[SimilarRow], wanted: int) -> list[SimilarRow]:
    """Returns the rows of lowest rank, in the order in which they stand."""
    if len(rows) <= wanted:
        return list(rows)
    limit = sorted(row.rank for row in rows)[wanted - 1]
    return [row for row in rows if row.rank <= limit]


def near_duplicates(rows: Sequence[SimilarRow], shown: int) -> Resemblance:
    """Returns the rows that nearly repeat an earlier one of the sample: those that a deduplication would remove.

    A row is compared with the earlier rows that were kept, so that a cluster costs as many comparisons as it has rows.
    Exact copies are not counted here.
    """
    index = _Index()
    return _resembling(rows, index.near_or_insert, shown)


def near_among(rows: Sequence[SimilarRow], others: Sequence[SimilarRow], shown: int) -> Resemblance:
    """Returns the rows that nearly repeat one of the others without being its copy."""
    index = _Index()
    for other in others:
        index.near_or_insert(other)
    return _resembling(rows, index.near, shown)


def _resembling(rows: Sequence[SimilarRow], find: Callable[[SimilarRow], SimilarRow | None], shown: int) -> Resemblance:
    pairs = [(row, found) for row in rows if (found := find(row)) is not None]
    return Resemblance(len(pairs), len(rows), tuple(pairs[:shown]))


class _Index:
    """Rows of which no two are near, found again by locality-sensitive hashing."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._lsh: Any = MinHashLSH(threshold=NEAR_SIMILARITY, num_perm=PERMUTATIONS)
        self._rows: list[SimilarRow] = []
        self._contents: set[int] = set()

    def near(self, row: SimilarRow) -> SimilarRow | None:
        """Returns the first row that is near; None if there is none, or an equal one."""
        if row.content in self._contents:
            return None
        own = _values(row)
        candidates: list[int] = self._lsh.query(_sketch(own))
        found = (self._rows[order] for order in sorted(candidates))
        return next((other for other in found if (own == _values(other)).mean() >= NEAR_SIMILARITY), None)

    def near_or_insert(self, row: SimilarRow) -> SimilarRow | None:
        """Returns as ``near``; a row without neighbour is taken in."""
        found = self.near(row)
        if found is None and row.content not in self._contents:
            self._contents.add(row.content)
            self._lsh.insert(len(self._rows), _sketch(_values(row)))
            self._rows.append(row)
        return found


def _values(row: SimilarRow) -> NDArray[np.uint32]:
    import numpy as np

    return np.frombuffer(row.signature, dtype="<u4").astype(np.uint32)


def _sketch(values: NDArray[np.uint32]) -> Any:
    from datasketch import LeanMinHash

    return LeanMinHash(seed=1, hashvalues=values, scheme="affine32")


def template_rows(rows: Sequence[SimilarRow], shown: int) -> Resemblance:
    """Returns the rows whose prompt differs from another row's in numbers and names alone."""
    shared = shared_keys((row.template, row.prompt) for row in rows if row.template is not None)
    first_of: dict[int | None, SimilarRow] = {}
    pairs = []
    count = 0
    for row in rows:
        if row.template is None or row.template not in shared:
            continue
        count += 1
        earlier = first_of.setdefault(row.template, row)
        if earlier.prompt != row.prompt:
            pairs.append((row, earlier))
    return Resemblance(count, len(rows), tuple(pairs[:shown]))


def templates_among(rows: Sequence[SimilarRow], others: Sequence[SimilarRow], shown: int) -> Resemblance:
    """Returns the rows whose prompt differs from one of the others' in numbers and names alone."""
    known: dict[int, SimilarRow] = {}
    for other in others:
        if other.template is not None:
            known.setdefault(other.template, other)
    pairs = [
        (row, known[row.template]) for row in rows if row.template in known and known[row.template].prompt != row.prompt
    ]
    return Resemblance(len(pairs), len(rows), tuple(pairs[:shown]))


def largest_group_share(rows: Sequence[SimilarRow]) -> float:
    """Returns the share of the rows that the largest group of one template has."""
    sizes: dict[int, int] = {}
    for row in rows:
        if row.template is not None:
            sizes[row.template] = sizes.get(row.template, 0) + 1
    return max(sizes.values(), default=0) / len(rows) if rows else 0.0
