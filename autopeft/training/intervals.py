"""95 % intervals of scores over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.specs import Score

LEVEL = 0.95
RESAMPLES = 2000
RESAMPLES_AT_ONCE = 100

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]


def share_of_rows(name: str, hits: Sequence[float]) -> Score:
    """Returns a share of rows, each of them 0 or 1, with Wilson's interval (scipy), which holds near 0 and 1 too."""
    from scipy.stats import binomtest

    found = binomtest(round(sum(hits)), len(hits))
    interval = found.proportion_ci(LEVEL, method="wilson")
    return Score(
        name=name,
        value=float(found.statistic),
        low=float(interval.low),
        high=float(interval.high),
        interval="wilson",
        per_example=tuple(hits),
    )


def mean_of_rows(name: str, values: Sequence[float], seed: int) -> Score:
    """Returns a mean over rows with its bootstrap interval."""
    each = np.asarray(values, dtype=float)
    return _resampled(name, len(each), lambda rows: each[rows].mean(axis=-1), seed, tuple(values))


def mean_of_tokens(name: str, sums: Sequence[float], tokens: Sequence[int], seed: int) -> Score:
    """Returns ``sum(sums) / sum(tokens)``, as a loss per token is one, with its bootstrap interval over rows."""
    above, below = np.asarray(sums, dtype=float), np.asarray(tokens, dtype=float)
    return _resampled(
        name, len(above), lambda rows: above[rows].sum(axis=-1) / below[rows].sum(axis=-1), seed, tuple(sums)
    )


def macro_f1_of_rows(predictions: Sequence[str], references: Sequence[str], seed: int) -> Score:
    """Returns ``metrics.macro_f1`` with its bootstrap interval over rows; a test holds the two together.

    A resample's mean is over the labels that occur in it.
    """
    labels = sorted({*predictions, *references})
    found = np.array([[each == label for label in labels] for each in predictions])
    wanted = np.array([[each == label for label in labels] for each in references])

    def macro_f1(rows: Indices) -> Floats:
        hits = (found & wanted)[rows].sum(axis=-2)
        occurrences = found[rows].sum(axis=-2) + wanted[rows].sum(axis=-2)
        f1 = 2 * hits / np.maximum(occurrences, 1)
        return np.asarray(f1.sum(axis=-1) / (occurrences > 0).sum(axis=-1))

    return _resampled("macro_f1", len(references), macro_f1, seed)


def _resampled(
    name: str, rows: int, statistic: Callable[[Indices], Floats], seed: int, per_example: tuple[float, ...] = ()
) -> Score:
    """Returns a statistic over rows with its percentile bootstrap interval (scipy).

    Leaves out what is not resampled: the seed of sample and examples. Known error: too narrow below some 20 rows.

    Args:
        name: of the score.
        rows: how many there are; at least two.
        statistic: of row indices ``(..., rows)``, of which each may occur several times: ``(...)``.
        seed: of the resampling.
        per_example: kept beside it.
    """
    from scipy.stats import bootstrap

    everything = np.arange(rows)

    def along_rows(chosen: Indices, axis: int) -> Floats:
        assert axis in (-1, chosen.ndim - 1), "scipy puts the rows last"
        return statistic(chosen)

    found: Any = bootstrap(
        (everything,),
        along_rows,
        n_resamples=RESAMPLES,
        batch=RESAMPLES_AT_ONCE,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(each) for each in found.confidence_interval)
    value = float(statistic(everything))
    return Score(name=name, value=value, low=low, high=high, interval="bootstrap", per_example=per_example)
