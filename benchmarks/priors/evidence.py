"""Reads the evidence base, ``profiles/evidence``."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.resources import read_yaml, resource_folder

Point = tuple[float, float]
"""Log of the learning rate, and a loss: the lower the better, whatever the metric was."""


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model that somebody swept.

    Attributes:
        family: models that share an architecture and its training, so perhaps a learning rate.
    """

    name: str
    family: str
    hidden_size: int
    mixture_of_experts: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """Learning rates that were tried with everything else held fixed.

    Attributes:
        points: rising learning rates; a stated optimum without its grid is a single point.
        is_loss: whether the losses are negative log-likelihoods, of which shares mean something.
    """

    source: str
    model: Model
    method: str
    rank: int
    lora_alpha: float
    batch_size: int
    steps: int
    points: tuple[Point, ...]
    is_loss: bool


@dataclass(frozen=True, slots=True)
class Trend:
    """How the best learning rate moved when conditions did, as a source states it.

    Attributes:
        conditions: names of TREND_PRIORS that changed together.
        low: each of them before.
        high: each of them after.
        log_ratio: natural log of the best rate after by the best rate before.
    """

    source: str
    conditions: tuple[str, ...]
    low: float
    high: float
    log_ratio: float


@dataclass(frozen=True, slots=True)
class Quality:
    """One published score.

    Attributes:
        rank: None where the source states none.
        targets: "attention", "mlp", "all"; empty where all rows of the source share theirs.
        budget: trained parameters, where the source equalizes them instead of ranks.
        points: the higher the better, percent or a score out of 100.
    """

    source: str
    model: str
    method: str
    rank: int | None
    targets: str
    budget: str
    quantization: str
    task: str
    points: float


def evidence_folder() -> Path:
    """Returns the folder of the evidence base."""
    return resource_folder("profiles") / "evidence"


def read_sources() -> dict[str, dict[str, Any]]:
    """Returns every source by its key: where, tuned, conditions, confounds, checked."""
    sources: dict[str, dict[str, Any]] = read_yaml(evidence_folder() / "sources.yaml")["sources"]
    return sources


def read_models() -> dict[str, Model]:
    """Returns the swept models by their hub id."""
    return {
        row["model"]: Model(row["model"], row["family"], int(row["hidden_size"]), row["mixture_of_experts"] == "true")
        for row in _rows("models.csv")
    }


def read_sweeps() -> list[Sweep]:
    """Returns the learning-rate sweeps; repeated points of one are averaged."""
    models = read_models()
    tried: dict[tuple[str, ...], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in _rows("learning_rates.csv"):
        key = tuple(row[name] for name in ("source", "model", "method", "rank", "lora_alpha", "batch_size", "steps"))
        sign = 1.0 if row["metric"] == "nll" else -1.0
        log_rate = math.log(float(row["learning_rate"]))
        tried[*key, row["metric"]][log_rate].append(sign * float(row["value"] or 0.0))
    return [_sweep(key, grid, models) for key, grid in tried.items()]


def _sweep(key: tuple[str, ...], grid: dict[float, list[float]], models: dict[str, Model]) -> Sweep:
    source, model, method, rank, alpha, batch, steps, metric = key
    points = tuple((rate, sum(losses) / len(losses)) for rate, losses in sorted(grid.items()))
    return Sweep(
        source, models[model], method, int(rank), float(alpha), int(batch), int(steps), points, is_loss=metric == "nll"
    )


def read_trends() -> list[Trend]:
    """Returns what sources state of the best learning rate without giving the sweeps."""
    return [
        Trend(
            row["source"],
            tuple(row["condition"].split("|")),
            float(row["from"]),
            float(row["to"]),
            math.log(float(row["learning_rate_ratio"])),
        )
        for row in _rows("trends.csv")
    ]


def read_quality() -> list[Quality]:
    """Returns the published scores."""
    return [
        Quality(
            row["source"],
            row["model"],
            row["method"],
            int(row["rank"]) if row["rank"] else None,
            row["targets"],
            row["budget"],
            row["quantization"],
            row["task"],
            float(row["points"]),
        )
        for row in _rows("quality.csv")
    ]


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (evidence_folder() / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
