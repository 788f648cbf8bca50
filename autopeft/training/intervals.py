"""95 % intervals of scores over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.specs import Score

LEVEL = 0.95
RESAMPLES = 2000
RESAMPLES_AT_ONCE = 100
FEWEST_ROWS = 8
"""Rows from which on their spread says anything of the rows not seen. A judgement; shares of rows need none, for their
spread follows from the share itself."""

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
    """Returns a statistic over rows with its expanded percentile bootstrap interval (scipy).

    None below FEWEST_ROWS rows, and none where every resample comes to the same: rows that score alike show no spread,
    which is not certainty. Leaves out what is not resampled: the seed of sample and examples. Known error: of rows with
    a long tail too narrow below some 30 rows.

    Args:
        name: of the score.
        rows: how many there are; at least one.
        statistic: of row indices ``(..., rows)``, of which each may occur several times: ``(...)``.
        seed: of the resampling.
        per_example: kept beside it.
    """
    value = float(statistic(np.arange(rows)))
    if rows < FEWEST_ROWS:
        return _without_interval(name, value, "too few rows for an interval", per_example)
    low, high = _ends(rows, statistic, seed)
    if math.isclose(low, high):
        return _without_interval(name, value, "no interval: the rows score alike", per_example)
    return Score(name=name, value=value, low=low, high=high, interval="bootstrap", per_example=per_example)


def _without_interval(name: str, value: float, why: Any, per_example: tuple[float, ...]) -> Score:
    return Score(name=name, value=value, low=None, high=None, interval=why, per_example=per_example)


def _ends(rows: int, statistic: Callable[[Indices], Floats], seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    def along_rows(chosen: Indices, axis: int) -> Floats:
        assert axis in (-1, chosen.ndim - 1), "scipy puts the rows last"
        return statistic(chosen)

    found: Any = bootstrap(
        (np.arange(rows),),
        along_rows,
        n_resamples=RESAMPLES,
        batch=RESAMPLES_AT_ONCE,
        vectorized=True,
        confidence_level=_expanded_level(rows),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _expanded_level(rows: int) -> float:
    """Returns the level at which a percentile interval of few rows is as wide as Student's.

    ``1 - 2 * Phi(-sqrt(n / (n - 1)) * t(0.975, n - 1))``: a resample's variance is too small by (n - 1) / n, and its
    quantiles are the normal ones (Hesterberg, "What teachers should know about the bootstrap", recalled, unverified;
    the same rule as in ``search.statistics``). Leaves out skewness.
    """
    from scipy.stats import norm, t

    quantile = math.sqrt(rows / (rows - 1)) * t.ppf((1 + LEVEL) / 2, rows - 1)
    return float(1 - 2 * norm.cdf(-quantile))
