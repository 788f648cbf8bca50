"""Computes what padding costs: the share of the positions of batches that hold no token."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from autopeft.specs.data import PaddingPoint

BATCH_SIZES = (2, 4, 8, 16, 32)
MEGABATCH_BATCHES = 50
"""Batches that transformers' LengthGroupedSampler sorts together (trainer_pt_utils.py, ``mega_batch_mult``)."""
_SIMULATED_ROWS = 4096


def padding_points(rows_by_tokens: Mapping[int, int]) -> tuple[PaddingPoint, ...]:
    """Returns the padding for some batch sizes, of rows drawn at random and of rows grouped by length.

    At random the mean of the longest of b rows is exact for draws with replacement: sum over lengths L of
    L (F(L)^b - F(L-)^b). Grouping is simulated once, from a fixed seed, on up to 4,096 rows in the proportions of the
    data. Rows are not truncated. Known error of the latter: below 0.01 on the demo data.
    """
    lengths = {length: rows for length, rows in rows_by_tokens.items() if length}
    if not lengths:
        return ()
    shuffled = _shuffled(lengths)
    return tuple(
        PaddingPoint(
            per_device_batch_size=size,
            random_padding_share=_random_share(lengths, size),
            grouped_padding_share=_grouped_share(shuffled, size),
        )
        for size in BATCH_SIZES
    )


def _random_share(lengths: Mapping[int, int], size: int) -> float:
    total = sum(lengths.values())
    mean = sum(length * rows for length, rows in lengths.items()) / total
    longest = below = 0.0
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        upto = (seen / total) ** size
        longest += length * (upto - below)
        below = upto
    return max(0.0, 1 - mean / longest)


def _shuffled(lengths: Mapping[int, int]) -> list[int]:
    total = sum(lengths.values())
    count = min(total, _SIMULATED_ROWS)
    rows: list[int] = []
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        rows += [length] * (round(seen * count / total) - len(rows))
    random.Random(0).shuffle(rows)
    return rows


def _grouped_share(rows: Sequence[int], size: int) -> float:
    batches = max(1, min(len(rows) // (4 * size), MEGABATCH_BATCHES))
    positions = 0
    for begin in range(0, len(rows), batches * size):
        ordered = sorted(rows[begin : begin + batches * size], reverse=True)
        positions += sum(ordered[place] * len(ordered[place : place + size]) for place in range(0, len(ordered), size))
    return 1 - sum(rows) / positions
