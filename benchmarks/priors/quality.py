"""What methods, ranks, targets and a quantized base do to published scores: a hierarchical ridge over paired rows."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge

from priors.evidence import Quality, Sweep

METHODS = ("adalora", "dora", "full", "loftq", "miss", "pissa")
"""Compared with plain LoRA on the same base. rsLoRA is LoRA at another scaling: a difference would be one of rates."""

FAILED_POINTS = 5.0
"""A pair further apart is left out: one of the two did not train (LoRA at r 32 of dora_repo scores 40 points less than
at r 16), which says that its learning rate was wrong, not what the method can do."""

NOISE_POINTS = 1.0
"""Standard deviation of the difference of two published scores about what is modelled here."""

EFFECT_POINTS = 1.0
"""Standard deviation of an effect before the rows are seen: tuned methods lie within about one point."""

TUNED_POINTS, UNTUNED_POINTS = 0.3, 1.5
"""Standard deviation of how far a source's own effect lies from the one for all: small where each method had its own
learning rate swept, large where all shared one or whoever proposed a method chose them. A rate that is off by a factor
of three costs a point and more, as much as methods differ by. A judgement."""


@dataclass(frozen=True, slots=True)
class Effects:
    """Fitted effects in points.

    Attributes:
        effects: method, "nf4", "attention" (in place of all linear layers), "rank" (for each doubling).
        cells: for each of them, how many comparisons speak of it.
        sources: for each of them, from how many sources.
    """

    effects: Mapping[str, float]
    cells: Mapping[str, int]
    sources: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two scores of one source, model, task and budget: the second minus the first.

    Attributes:
        difference: of their features, by name.
        points: of their scores.
    """

    source: str
    model: str
    tuned: bool
    difference: Mapping[str, float]
    points: float


def features(row: Quality) -> dict[str, float]:
    """Returns what a row has beside plain LoRA on all linear layers of a 16-bit base at rank 16."""
    found: dict[str, float] = {}
    if row.method in METHODS:
        found[row.method] = 1.0
    if row.quantization == "nf4":
        found["nf4"] = 1.0
    if row.targets == "attention":
        found["attention"] = 1.0
    if row.rank is not None:
        found["rank"] = math.log2(row.rank / 16)
    return found


def pairs(rows: Sequence[Quality], tuned: Mapping[str, bool]) -> list[Pair]:
    """Returns each row of a method against the nearest plain LoRA row of its cell, and the LoRA rows with each other.

    A cell is one source, model, task and budget. Rows of rsLoRA, of methods outside ``METHODS`` and of other storages
    are left out, and so are pairs of which one failed.
    """
    cells: dict[tuple[str, ...], list[Quality]] = defaultdict(list)
    for row in rows:
        if row.method in ("lora", *METHODS) and row.quantization in ("none", "nf4"):
            cells[row.source, row.model, row.task, row.budget].append(row)
    found = []
    for cell in cells.values():
        plain = [row for row in cell if row.method == "lora"]
        others = [row for row in cell if row.method != "lora" and plain]
        found += [_pair(row, _nearest(row, plain), tuned[row.source]) for row in others]
        found += [_pair(right, left, tuned[left.source]) for left, right in itertools.combinations(plain, 2)]
    return [pair for pair in found if any(pair.difference.values()) and abs(pair.points) <= FAILED_POINTS]


def _nearest(row: Quality, plain: Sequence[Quality]) -> Quality:
    return min(plain, key=lambda other: _distance(row, other))


def _distance(row: Quality, other: Quality) -> tuple[bool, bool, float]:
    ranks = abs(math.log2(row.rank / other.rank)) if row.rank and other.rank else 0.0
    return row.quantization != other.quantization, row.targets != other.targets, ranks


def _pair(row: Quality, other: Quality, tuned: bool) -> Pair:
    left, right = features(other), features(row)
    if row.rank is None or other.rank is None:
        left.pop("rank", None)
        right.pop("rank", None)
    names = left.keys() | right.keys()
    difference = {name: right.get(name, 0.0) - left.get(name, 0.0) for name in sorted(names)}
    return Pair(row.source, row.model, tuned, difference, row.points - other.points)


def tuned_pairs(sweeps: Sequence[Sweep]) -> list[Pair]:
    """Returns each method's best score against LoRA's best, where both were swept (accuracies in percent)."""
    best: dict[tuple[str, str, int], dict[str, float]] = defaultdict(dict)
    for sweep in sweeps:
        if not sweep.is_loss and len(sweep.points) > 1:
            best[sweep.source, sweep.model.name, sweep.batch_size][sweep.method] = -min(
                loss for _, loss in sweep.points
            )
    return [
        Pair(source, model, True, {method: 1.0}, points - scores["lora"])
        for (source, model, _), scores in best.items()
        for method, points in scores.items()
        if method in METHODS
    ]


def fit(found: Sequence[Pair]) -> Effects:
    """Returns the ridge estimate: an effect for all sources, and each source's own deviation from it.

    Both are penalized by their prior (see ``learning_rate.fit``); a source's own deviation soaks up what is only its
    own, so that a hundred rows of one paper do not outvote five papers.
    """
    names = sorted({name for pair in found for name in pair.difference})
    own = sorted({(pair.source, name) for pair in found for name in pair.difference})
    matrix = np.array(
        [
            [pair.difference.get(name, 0.0) * EFFECT_POINTS for name in names]
            + [_own(pair, source) * pair.difference.get(name, 0.0) for source, name in own]
            for pair in found
        ]
    )
    points = np.array([pair.points for pair in found])
    ridge = Ridge(alpha=NOISE_POINTS**2, fit_intercept=False, solver="cholesky")
    ridge.fit(matrix, points)
    effects = (ridge.coef_[: len(names)] * EFFECT_POINTS).tolist()
    return Effects(
        dict(zip(names, effects, strict=True)),
        {name: sum(1 for pair in found if pair.difference.get(name)) for name in names},
        {name: len({pair.source for pair in found if pair.difference.get(name)}) for name in names},
    )


def _own(pair: Pair, source: str) -> float:
    spread = TUNED_POINTS if pair.tuned else UNTUNED_POINTS
    return spread if pair.source == source else 0.0


def left_source_out(found: Sequence[Pair]) -> tuple[float, float]:
    """Returns the mean over sources of the error of a left-out source's mean difference, fitted and against zero.

    In points; what a source says on average of one effect is compared with what all others predict.
    """
    fitted, zero = [], []
    for source in sorted({pair.source for pair in found}):
        rest = fit([pair for pair in found if pair.source != source]).effects
        means: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for pair in found:
            if pair.source == source:
                label = "+".join(name for name, value in pair.difference.items() if value and name != "rank") or "rank"
                predicted = sum(rest.get(name, 0.0) * value for name, value in pair.difference.items())
                means[label].append((pair.points, predicted))
        for values in means.values():
            points, predictions = np.mean(np.array(values), axis=0)
            fitted.append(abs(float(points - predictions)))
            zero.append(abs(float(points)))
    return float(np.mean(fitted)), float(np.mean(zero))


def loss_share_of_doubled_rank(sweeps: Sequence[Sweep]) -> float:
    """Returns the median share by which the best loss over learning rates falls when the rank doubles.

    Over neighbouring ranks of one model, from 4 upwards.
    """
    best: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for sweep in sweeps:
        if sweep.is_loss and sweep.rank >= 4:
            best[sweep.source, sweep.model.name][sweep.rank] = min(loss for _, loss in sweep.points)
    shares = []
    for by_rank in best.values():
        ranks = sorted(by_rank)
        for low, high in itertools.pairwise(ranks):
            shares.append((1 - by_rank[high] / by_rank[low]) / math.log2(high / low))
    return float(np.median(shares))
