"""Fits the learning-rate rule of autopeft.recommend.learning_rate to published sweeps and prints its error.

Run: python benchmarks/learning_rate_prior.py
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "learning_rate_sweeps.csv"
REFERENCE_HIDDEN_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best learning rate of one model.

    Attributes:
        edge: "low" or "high" where the best point is the first or last of a grid, so that only a bound is known.
    """

    model: str
    hidden_size: int
    learning_rate: float
    edge: str | None


@dataclass(frozen=True, slots=True)
class Rule:
    """learning_rate = at_reference * (hidden_size / 4096) ** exponent."""

    at_reference: float
    exponent: float

    def predict(self, hidden_size: int) -> float:
        """Returns the learning rate at a width."""
        return float(self.at_reference * (hidden_size / REFERENCE_HIDDEN_SIZE) ** self.exponent)


def read_optima(path: Path = DATA) -> list[Optimum]:
    """Returns one optimum a model: the geometric mean over its grids (one for each rank and batch size)."""
    grids: dict[tuple[str, int], dict[tuple[str, str], list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            sign = -1.0 if row["metric"] == "accuracy" else 1.0
            point = (math.log(float(row["learning_rate"])), sign * float(row["value"]))
            grids[row["model"], int(row["hidden_size"])][row["rank"], row["batch_size"]].append(point)
    optima = []
    for (model, hidden_size), by_grid in sorted(grids.items()):
        bests = [_vertex(points) for points in by_grid.values()]
        edges = [edge for _, edge in bests if edge]
        edge = edges[0] if len(edges) == len(bests) else None
        optima.append(Optimum(model, hidden_size, math.exp(float(np.mean([log for log, _ in bests]))), edge))
    return optima


def _vertex(points: list[tuple[float, float]]) -> tuple[float, str | None]:
    """Returns the lowest point of the parabola through the best grid point and its neighbours (log learning rate).

    A single point is an optimum that was stated without its grid.
    """
    losses: dict[float, list[float]] = defaultdict(list)
    for log_rate, loss in points:
        losses[log_rate].append(loss)
    grid = sorted(losses)
    means = [float(np.mean(losses[log_rate])) for log_rate in grid]
    best = int(np.argmin(means))
    if len(grid) == 1:
        return grid[0], None
    if best in (0, len(grid) - 1):
        return grid[best], "low" if best == 0 else "high"
    near = slice(best - 1, best + 2)
    square, linear, _ = np.polyfit(grid[near], means[near], 2)
    return float(-linear / (2 * square)), None


def fit(optima: list[Optimum]) -> Rule:
    """Returns the least-squares line through log learning rate against log width."""
    widths = [math.log(optimum.hidden_size / REFERENCE_HIDDEN_SIZE) for optimum in optima]
    rates = [math.log(optimum.learning_rate) for optimum in optima]
    slope, intercept = np.polyfit(widths, rates, 1)
    return Rule(math.exp(float(intercept)), float(slope))


def miss(rule: Rule, optimum: Optimum) -> float:
    """Returns |log(predicted / best)|; a bound that the prediction respects counts as no miss."""
    difference = math.log(rule.predict(optimum.hidden_size) / optimum.learning_rate)
    if (optimum.edge == "high" and difference > 0) or (optimum.edge == "low" and difference < 0):
        return 0.0
    return abs(difference)


def leave_one_out(optima: list[Optimum]) -> dict[str, float]:
    """Returns each model's miss under a rule fitted to all the others."""
    return {left.model: miss(fit([other for other in optima if other is not left]), left) for left in optima}


def _mean_rate(optima: list[Optimum], left: Optimum) -> float:
    return math.exp(float(np.mean([math.log(other.learning_rate) for other in optima if other is not left])))


def main() -> None:
    """Prints the optima, the rule and its errors."""
    optima = read_optima()
    rule = fit(optima)
    errors = leave_one_out(optima)
    for optimum in optima:
        bound = f" ({optimum.edge} edge of the grid)" if optimum.edge else ""
        print(
            f"{optimum.model:48} width {optimum.hidden_size:5} best {optimum.learning_rate:.2e}{bound}, "
            f"left out: off by a factor of {math.exp(errors[optimum.model]):.2f}"
        )
    within = sum(error <= math.log(2) for error in errors.values())
    print(f"rule: {rule.at_reference:.4g} * (width / {REFERENCE_HIDDEN_SIZE}) ** {rule.exponent:.3f}")
    print(f"left-one-model-out error: factor {math.exp(float(np.mean(list(errors.values())))):.2f} (geometric mean)")
    print(f"within a factor of two: {within} of {len(errors)} models")
    constant = [miss(Rule(_mean_rate(optima, left), 0.0), left) for left in optima]
    print(f"a constant in place of the rule: factor {math.exp(float(np.mean(constant))):.2f}")


if __name__ == "__main__":
    main()
