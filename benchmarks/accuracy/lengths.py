"""Draws the order of batch lengths of a run from the token statistics that its source publishes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import islice

from accuracy.records import LengthStatistics

ORDERS = 5
"""Orders that are drawn: which one a run had decides how far its memory broke up, and no source says which."""
BATCHES = 96
"""Batches of an order. More change little: 48, 160 and 480 gave Qwen-1.8B at 1,024 tokens 6.3, 6.8 and 6.8 GiB in one
order, 7.7, 8.9 and 8.9 in another."""


def batch_orders(statistics: LengthStatistics, longest: int, rows: int) -> tuple[tuple[int, ...], ...]:
    """Returns orders of batch lengths, the same ones in every call.

    Rows are log-normal with the published mean and deviation, no shorter than the published minimum; rows longer than
    ``longest`` are left out, as the source does. A batch is as long as its longest row.

    Args:
        statistics: what the source says of its rows.
        longest: tokens of the longest row that is trained on.
        rows: of a batch.
    """
    return tuple(_order(statistics, longest, rows, seed) for seed in range(ORDERS))


def _order(statistics: LengthStatistics, longest: int, rows: int, seed: int) -> tuple[int, ...]:
    drawn = _rows(statistics, longest, random.Random(seed))
    return tuple(max(islice(drawn, rows)) for _ in range(BATCHES))


def _rows(statistics: LengthStatistics, longest: int, generator: random.Random) -> Iterator[int]:
    """Yields row lengths: their logarithm has variance v = ln(1 + (deviation / mean)^2) and mean ln(mean) - v / 2."""
    variance = math.log(1 + (statistics.deviation / statistics.mean) ** 2)
    center = math.log(statistics.mean) - variance / 2
    while True:
        length = int(generator.lognormvariate(center, math.sqrt(variance)))
        if statistics.least <= length <= longest:
            yield length
