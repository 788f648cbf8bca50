"""The best learning rate by model, batch, steps and rank: a hierarchical ridge over published sweeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from sklearn.linear_model import Ridge

from priors.evidence import Point, Sweep, Trend

REFERENCE = {"rank": 32, "lora_alpha": 32, "batch_size": 128, "steps": 780, "hidden_size": 4096}
"""Where the rule's first figure holds: what most sweeps have."""

NOISE = 0.25
"""Standard deviation of one sweep's optimum, in natural logs: the grids are factors of 1.8 to 3.3 apart."""

TREND_PRIORS: dict[str, tuple[float, float]] = {
    "rank": (0.2, 0.3),
    "lora_alpha": (-0.75, 0.25),
    "batch_size": (0.25, 0.25),
    "steps": (-0.25, 0.25),
    "hidden_size": (-0.3, 0.3),
}
"""Mean and standard deviation of each exponent before the sweeps are seen.

rank: less than a factor of two from 4 to 512 at one lora_alpha (LoRA Without Regret). lora_alpha: -1 while A hardly
moves, since then the update goes with rate x alpha; -0.5 where A moves as far as B and it goes with their product.
batch: between nothing and the square root. steps: longer trainings want less. hidden_size: a third of muP's -1. All of
them leave room on both sides.
"""

GROUP_PRIORS = {"mixture": 0.3, "family": 0.4, "model": 0.3, "method": 0.5}
"""Standard deviation of what a group of sweeps has of its own, before they are seen, in natural logs."""

INTERCEPT_PRIOR = (math.log(3e-4), 0.3)
"""Of the log of the rate at the reference for a dense model of an unknown family: the 2e-4 to 4e-4 of most recipes.
A wide prior lets one outlying family (gemma) raise every rate: a left-out family then costs 0.26 %, not 0.16 %."""

ITERATIONS = 50


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best learning rate of a sweep.

    Attributes:
        log_rate: natural log of the rate, at the lora_alpha of the sweep.
        edge: "low" or "high" where the best point ends the grid, so that only a bound is known.
    """

    sweep: Sweep
    log_rate: float
    edge: str | None


@dataclass(frozen=True, slots=True)
class Fit:
    """The fitted rule: exponents of the trends, and natural logs of what each group adds."""

    log_reference: float
    trends: Mapping[str, float]
    groups: Mapping[str, float]

    def log_rate(self, sweep: Sweep) -> float:
        """Returns the natural log of the advised rate; unknown groups add nothing."""
        trend = sum(self.trends[name] * value for name, value in trends_of(sweep).items())
        groups = sum(self.groups.get(name, 0.0) for name in groups_of(sweep))
        return self.log_reference + trend + groups


def trends_of(sweep: Sweep) -> dict[str, float]:
    """Returns the natural logs of a sweep's conditions relative to the reference."""
    conditions = {
        "rank": sweep.rank,
        "lora_alpha": sweep.lora_alpha,
        "batch_size": sweep.batch_size,
        "steps": sweep.steps,
        "hidden_size": sweep.model.hidden_size,
    }
    return {name: math.log(value / REFERENCE[name]) for name, value in conditions.items()}


def groups_of(sweep: Sweep) -> tuple[str, ...]:
    """Returns the names of the groups that a sweep belongs to."""
    mixture = ("mixture:of experts",) if sweep.model.mixture_of_experts else ()
    method = () if sweep.method == "lora" else (f"method:{sweep.method}",)
    return (*mixture, f"family:{sweep.model.family}", f"model:{sweep.model.name}", *method)


def optimum(sweep: Sweep) -> Optimum:
    """Returns the vertex of the parabola through a sweep's best point and its neighbours (log learning rate)."""
    rates, losses = _columns(sweep.points)
    best = int(np.argmin(losses))
    if len(rates) == 1:
        return Optimum(sweep, float(rates[0]), None)
    if best in (0, len(rates) - 1):
        return Optimum(sweep, float(rates[best]), "low" if best == 0 else "high")
    near = slice(best - 1, best + 2)
    square, linear, _ = np.polyfit(rates[near], losses[near], 2)
    return Optimum(sweep, float(-linear / (2 * square)), None)


def fit(optima: Sequence[Optimum], trends: Sequence[Trend] = ()) -> Fit:
    """Returns the ridge estimate of reference, trends and groups.

    Each coefficient is penalized by its prior: features are multiplied by their prior standard deviation and the prior
    means are subtracted, so that scikit-learn's Ridge with the noise's variance as penalty is the posterior mean. An
    optimum at the edge of its grid is a bound: its target is moved towards the prediction, at most by a factor of e,
    until nothing changes.

    Args:
        optima: of the sweeps to fit to.
        trends: stated changes of the best rate; they speak of no group and no absolute rate.
    """
    names = sorted({name for entry in optima for name in groups_of(entry.sweep)})
    means = np.array([INTERCEPT_PRIOR[0], *(mean for mean, _ in TREND_PRIORS.values()), *(0.0 for _ in names)])
    spread = np.array(
        [
            INTERCEPT_PRIOR[1],
            *(sd for _, sd in TREND_PRIORS.values()),
            *(GROUP_PRIORS[name.split(":")[0]] for name in names),
        ]
    )
    features = np.array(
        [_features(entry.sweep, names) for entry in optima] + [_contrast(trend, len(names)) for trend in trends]
    )
    known = np.array([entry.log_rate for entry in optima] + [trend.log_ratio for trend in trends]) - features @ means
    low, high = _bounds(optima, len(trends))
    target = known
    for _ in range(ITERATIONS):
        ridge = Ridge(alpha=NOISE**2, fit_intercept=False, solver="cholesky").fit(features * spread, target)
        target = known + np.clip(ridge.predict(features * spread) - known, low, high)
    found = (means + ridge.coef_ * spread).tolist()
    split = 1 + len(TREND_PRIORS)
    return Fit(
        found[0],
        dict(zip(TREND_PRIORS, found[1:split], strict=True)),
        dict(zip(names, found[split:], strict=True)),
    )


def _features(sweep: Sweep, names: Sequence[str]) -> list[float]:
    groups = groups_of(sweep)
    return [1.0, *trends_of(sweep).values(), *(float(name in groups) for name in names)]


def _contrast(trend: Trend, groups: int) -> list[float]:
    changes = [math.log(trend.high / trend.low) if name in trend.conditions else 0.0 for name in TREND_PRIORS]
    return [0.0, *changes, *([0.0] * groups)]


def _bounds(optima: Sequence[Optimum], trends: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how far below and above its grid's best point each optimum may lie."""
    low = [-1.0 if entry.edge == "low" else 0.0 for entry in optima] + [0.0] * trends
    high = [1.0 if entry.edge == "high" else 0.0 for entry in optima] + [0.0] * trends
    return np.array(low), np.array(high)


def left_out(
    optima: Sequence[Optimum], key: Callable[[Sweep], str], fitted: Callable[[Sequence[Optimum]], Fit] = fit
) -> list[tuple[Optimum, Fit]]:
    """Returns every optimum with a fit to those of other keys (another model, family or source)."""
    fits = {
        name: fitted([entry for entry in optima if key(entry.sweep) != name])
        for name in {key(entry.sweep) for entry in optima}
    }
    return [(entry, fits[key(entry.sweep)]) for entry in optima]


def miss(log_rate: float, best_log_rate: float, edge: str | None) -> float:
    """Returns |log(advised / best)|; a bound that the advice respects counts as no miss.

    Args:
        log_rate: natural log of what is advised.
        best_log_rate: natural log of the best.
        edge: see ``Optimum``.
    """
    difference = log_rate - best_log_rate
    if (edge == "high" and difference > 0) or (edge == "low" and difference < 0):
        return 0.0
    return abs(difference)


def cost(sweep: Sweep, log_rate: float) -> float:
    """Returns the share of the loss that a rate costs against the sweep's best point.

    The curve between the points is a monotone cubic (PCHIP) over the log of the rate; beyond the grid its end counts.
    """
    rates, losses = _columns(sweep.points)
    at = float(np.clip(log_rate, rates[0], rates[-1]))
    return float(PchipInterpolator(rates, losses)(at) / losses.min() - 1)


def flatness(sweeps: Sequence[Sweep], doublings: float) -> float:
    """Returns the median share of the loss that a rate costs which is so many doublings above the optimum.

    Over the loss sweeps whose optimum lies inside the grid, by the parabola through the best point and its neighbours.
    """
    costs = []
    for sweep in sweeps:
        rates, losses = _columns(sweep.points)
        best = int(np.argmin(losses))
        if sweep.is_loss and 0 < best < len(rates) - 1:
            curve = PchipInterpolator(rates, losses)
            grid = np.linspace(rates[0], rates[-1], 2_001)
            lowest = int(np.argmin(curve(grid)))
            at = np.clip(grid[lowest] + doublings * math.log(2), rates[0], rates[-1])
            costs.append(float(curve(at) / curve(grid[lowest]) - 1))
    return float(np.median(costs))


def _columns(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray]:
    rates, losses = zip(*points, strict=True)
    return np.array(rates), np.array(losses)
