"""Published tables, and the row of one that comes nearest to a configuration: fixed before any score was looked at."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from priors.evidence import Quality

FACTOR = 2.0
"""Ranks and learning rates that differ by more are other configurations."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What somebody trains: a recommendation, the recipe, or a row of a table.

    Attributes:
        rank: None for a method without one, and where a table states none.
        targets: "attention", "mlp", "all"; empty where a table states none.
        quantization: of the frozen base.
    """

    method: str
    rank: int | None
    targets: str
    quantization: str


@dataclass(frozen=True, slots=True)
class Table:
    """What one source published of one model at one budget of trained parameters.

    Attributes:
        budget: empty where the source equalizes ranks or nothing.
        trainings: configuration -> task -> points, repeated scores averaged.
    """

    source: str
    model: str
    budget: str
    trainings: Mapping[Configuration, Mapping[str, float]]

    @property
    def name(self) -> str:
        """Returns the table's name, for people."""
        return " ".join(part for part in (self.source, self.model.rsplit("/", 1)[-1], self.budget) if part)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a table says of a recommendation against the recipe.

    Attributes:
        verdict: "compared", every stated setting being within ``FACTOR`` of what is meant; "nearest", where one is
            not; "same row", where both have the same nearest one; "missing", where one of them has none.
        points: recommendation minus recipe, mean over the tasks that both were scored on; None where not compared.
        tasks: how many those are.
        remarks: what differs or is missing.
        method: the one recommended; empty where nothing is.
    """

    table: Table
    verdict: str
    method: str = ""
    points: float | None = None
    tasks: int = 0
    remarks: tuple[str, ...] = ()


def tables(rows: Iterable[Quality]) -> list[Table]:
    """Returns the published scores by source, model and budget, in the order of their names."""
    scores: dict[tuple[str, str, str], dict[Configuration, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in rows:
        made = Configuration(row.method, row.rank, row.targets, row.quantization)
        scores[row.source, row.model, row.budget][made][row.task].append(row.points)
    return [
        Table(
            *key,
            {
                made: {task: sum(points) / len(points) for task, points in by_task.items()}
                for made, by_task in trainings.items()
            },
        )
        for key, trainings in sorted(scores.items())
    ]


def nearest(table: Table, wanted: Configuration) -> Configuration | None:
    """Returns the row of the same method and storage with the fewest other targets, then the nearest rank.

    None where no row has the method on that storage. Of equally near ranks the lower one.
    """
    rows = [row for row in table.trainings if row.method == wanted.method and row.quantization == wanted.quantization]
    return min(rows, key=lambda row: _distance(row, wanted), default=None)


def _distance(row: Configuration, wanted: Configuration) -> tuple[bool, float, int]:
    return row.targets not in ("", wanted.targets), _doublings(row.rank, wanted.rank), row.rank or 0


def _doublings(rank: int | None, wanted: int | None) -> float:
    """Returns how often one rank is doubled to reach the other; infinite where it is not stated."""
    if wanted is None:
        return 0.0
    return math.inf if rank is None else abs(math.log2(rank / wanted))


def differences(
    table: Table, row: Configuration, wanted: Configuration, rate: float | None, wanted_rate: float
) -> tuple[str, ...]:
    """Returns what of a row is not what is meant, one clause each.

    Trained parameters that a table equalizes stand for the rank, and a rate that it does not state counts as tuned.

    Args:
        table: that holds the row.
        row: the nearest one.
        wanted: what it stands for.
        rate: the row's learning rate; None where it is not stated.
        wanted_rate: the one meant, at the row's rank and lora_alpha.
    """
    found = []
    if row.targets not in ("", wanted.targets):
        found.append(f"{row.method} on {row.targets} in place of {wanted.targets}")
    doublings = _doublings(row.rank, wanted.rank)
    if not table.budget and doublings > math.log2(FACTOR):
        stated = "of unstated rank" if row.rank is None else f"r {row.rank}"
        found.append(f"{row.method} {stated} in place of r {wanted.rank}")
    if rate is not None and not 1 / FACTOR <= rate / wanted_rate <= FACTOR:
        found.append(f"{row.method} at {rate:.1e} in place of {wanted_rate:.1e}")
    return tuple(found)


def gain(table: Table, ours: Configuration, theirs: Configuration) -> tuple[float, int] | None:
    """Returns the mean difference of two rows over the tasks that both were scored on, and their number."""
    left, right = table.trainings[ours], table.trainings[theirs]
    shared = [task for task in left if task in right]
    if not shared:
        return None
    return sum(left[task] - right[task] for task in shared) / len(shared), len(shared)
