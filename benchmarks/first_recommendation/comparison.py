"""Compares the first recommendation with the recipe on every published table, and tells what could not be compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from priors.evidence import read_quality, read_sweeps
from priors.fit import fit_learning_rates
from priors.learning_rate import Fit, Optimum, cost, left_out, optimum

from autopeft.profiling.model import load_model
from autopeft.recommend.priors import priors
from autopeft.spaces import all_spaces
from autopeft.specs import ModelSpec, Recommendation
from first_recommendation.situations import (
    CONDITIONS,
    FULL,
    SITUATIONS,
    Situation,
    configuration,
    first_without,
    plan_for,
    recipe,
)
from first_recommendation.tables import Configuration, Outcome, Table, differences, gain, nearest, tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "advice.md"
RECIPE_RATE = 2e-4
RANK = 16
"""Of the recipe, and as ``advised_text`` shows of the advice on data as large as the sweeps'."""

AUTHORS = {
    "adalora": ("adalora_paper",),
    "dora": ("dora_paper", "dora_repo"),
    "loftq": ("loftq_paper", "loftq_repo"),
}
"""Sources by those who proposed the method."""


def outcomes(situation: Situation) -> list[Outcome]:
    """Returns what every published table says of the first recommendation in a situation."""
    return [outcome(table, situation) for table in tables(read_quality())]


def outcome(table: Table, situation: Situation) -> Outcome:
    """Returns what a table says of the first recommendation, made without its source, against the recipe."""
    shape = CONDITIONS["shapes"][table.model]
    if shape is None:
        return Outcome(table, "missing", remarks=("autopeft does not train this model",))
    found = plan_for(table.source, shape, situation)
    if found is None:
        return Outcome(table, "missing", remarks=("nothing fits",))
    model = load_model(shape)
    ours = configuration(first_without(table.source, found), model)
    return judged(table, ours, recipe(found), Rates(table, model, found))


class Rates:
    """Learning rates that a table states, and those that are meant at its ranks."""

    def __init__(self, table: Table, model: ModelSpec, found: Recommendation) -> None:
        self._table = table
        self._model = model
        self._stated = CONDITIONS["sources"][table.source]
        self._batch = found.candidates[0].candidate.effective_batch_size
        self._steps = found.candidates[0].steps

    def stated(self, row: Configuration) -> float | None:
        """Returns the learning rate that the source states for a row; None for none."""
        for entry in self._stated.get("learning_rates", ()):
            known = {"method": row.method, "rank": row.rank, "model": self._table.model}
            if all(entry.get(name, value) == value for name, value in known.items()):
                return float(entry["rate"])
        return None

    def advised(self, row: Configuration) -> float:
        """Returns the advised learning rate at a row's rank and lora_alpha.

        No source with stated rates has sweeps that the rule was fitted to, so it never saw the table.
        """
        reference = priors().learning_rate.reference
        rank = reference["rank"] if row.rank is None else float(row.rank)
        conditions = {
            "rank": rank,
            "lora_alpha": rank * self._stated.get("alpha_per_rank", 1),
            "batch_size": float(self._batch),
            "steps": float(self._steps),
        }
        return priors().learning_rate.rate(self._model, conditions) * all_spaces()[row.method].learning_rate_factor


def judged(table: Table, ours: Configuration, theirs: Configuration, rates: Rates) -> Outcome:
    """Returns the outcome of the rows that come nearest to two configurations."""
    found, other = nearest(table, ours), nearest(table, theirs)
    absent = [
        f"no {wanted.method} row on {'an unquantized' if wanted.quantization == 'none' else wanted.quantization} base"
        for wanted, row in ((ours, found), (theirs, other))
        if row is None
    ]
    if found is None or other is None:
        return Outcome(table, "missing", ours.method, remarks=tuple(dict.fromkeys(absent)))
    if found == other:
        return Outcome(table, "same row", ours.method)
    difference = gain(table, found, other)
    if difference is None:
        return Outcome(table, "missing", ours.method, remarks=("no task that both were scored on",))
    remarks = (
        *differences(table, found, ours, rates.stated(found), rates.advised(found)),
        *differences(table, other, theirs, rates.stated(other), RECIPE_RATE),
    )
    return Outcome(table, "nearest" if remarks else "compared", ours.method, *difference, remarks)


def summary_table(found: Sequence[tuple[Situation, Sequence[Outcome]]]) -> str:
    """Returns one Markdown row a situation."""
    lines = [
        "| asked for | tables | both rows there | and every stated setting within 2 | the same row | a row missing "
        "| mean points won | by others than its authors | won, lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for situation, entries in found:
        kinds = Counter(entry.verdict for entry in entries)
        points = [entry.points for entry in entries if entry.points is not None]
        others = [entry.points for entry in entries if entry.points is not None and not _is_by_its_authors(entry)]
        both = kinds["compared"] + kinds["nearest"]
        figures = "| - | - | - |"
        if points:
            won = f"{sum(value > 0 for value in points)}, {sum(value < 0 for value in points)}"
            figures = f"| {sum(points) / len(points):+.2f} | {_mean_of(others)} | {won} |"
        lines.append(
            f"| {situation.name} | {len(entries)} | {both} | {kinds['compared']} | {kinds['same row']} "
            f"| {kinds['missing']} {figures}"
        )
    return "\n".join(lines)


def _is_by_its_authors(entry: Outcome) -> bool:
    return entry.table.source in AUTHORS.get(entry.method, ())


def _mean_of(points: Sequence[float]) -> str:
    return f"{sum(points) / len(points):+.2f} of {len(points)}" if points else "-"


def compared_table(found: Sequence[tuple[Situation, Sequence[Outcome]]]) -> str:
    """Returns one Markdown row a table that holds both, for every situation."""
    lines = ["| asked for | table | tasks | points won | what the rows are not |", "|---|---|---|---|---|"]
    for situation, entries in found:
        for entry in entries:
            if entry.points is not None:
                remarks = "; ".join(entry.remarks) or "-"
                lines.append(
                    f"| {situation.name} | {entry.table.name} | {entry.tasks} | {entry.points:+.2f} | {remarks} |"
                )
    return "\n".join(lines)


def missing_text(found: Sequence[tuple[Situation, Sequence[Outcome]]]) -> str:
    """Returns why tables could not be compared, and how often, one Markdown line a situation."""
    lines = []
    for situation, entries in found:
        reasons = Counter(remark for entry in entries if entry.verdict == "missing" for remark in entry.remarks)
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        lines.append(f"- {situation.name}: {told}")
    return "\n".join(lines)


def advised_text() -> str:
    """Returns which ranks are advised on the data of the tables, and whether other lengths would change one."""
    shapes = {(table.source, CONDITIONS["shapes"][table.model]) for table in tables(read_quality())}
    pairs = sorted((source, shape) for source, shape in shapes if shape is not None)
    ranks: Counter[str] = Counter()
    changed = []
    for source, shape in pairs:
        found = [_first(source, shape, scale) for scale in (1.0, 0.25, 4.0)]
        ranks[found[0]] += 1
        changed += [f"{shape} in {source}"] if len(set(found)) > 1 else []
    told = ", ".join(f"{name} ({count})" for name, count in ranks.most_common())
    other = "changes none of them" if not changed else f"changes {len(changed)}: {', '.join(changed)}"
    return (
        f"With ample memory the first recommendations for these {len(pairs)} pairs of source and shape are {told}; "
        f"a quarter of the assumed tokens a row, or four times as many, {other}."
    )


def _first(source: str, shape: str, scale: float) -> str:
    found = plan_for(source, shape, SITUATIONS[0], scale)
    if found is None:
        return "none"
    first = found.candidates[0].candidate
    rank = "" if first.r is None else f" r {first.r}"
    return f"{first.method}{rank}{'' if first.quantization == 'none' else f' on {first.quantization}'}"


def rates_text() -> str:
    """Returns what the advised rate wins over the recipe's where both train LoRA of the recipe's rank."""
    optima = [optimum(sweep) for sweep in read_sweeps()]
    keys = {"the model": lambda sweep: sweep.model.name, "the source": lambda sweep: sweep.source}
    told = [f"fitted without {name}, {_costs(left_out(optima, key, fit_learning_rates))}" for name, key in keys.items()]
    return f"Where the two differ by the rate alone, at the rank next to {RANK} of each sweep: {'; '.join(told)}."


def _costs(found: Sequence[tuple[Optimum, Fit]]) -> str:
    ranks: dict[str, int] = {}
    for entry, _ in found:
        known = ranks.setdefault(entry.sweep.model.name, entry.sweep.rank)
        if abs(math.log2(entry.sweep.rank / RANK)) < abs(math.log2(known / RANK)):
            ranks[entry.sweep.model.name] = entry.sweep.rank
    chosen = [
        (cost(entry.sweep, fit.log_rate(entry.sweep)), cost(entry.sweep, math.log(RECIPE_RATE)))
        for entry, fit in found
        if entry.sweep.method == "lora" and entry.sweep.is_loss and entry.sweep.rank == ranks[entry.sweep.model.name]
    ]
    ours, theirs = (sum(column) / len(chosen) for column in zip(*chosen, strict=True))
    better = sum(left <= right for left, right in chosen)
    return f"it costs {ours:.2%} of the loss and 2e-4 {theirs:.2%} (at least as good for {better} of {len(chosen)})"


def report() -> str:
    """Returns the section as Markdown."""
    found = [(situation, outcomes(situation)) for situation in SITUATIONS]
    return "\n".join(
        (
            advised_text() + "\n",
            rates_text() + "\n",
            summary_table([*found, (FULL, outcomes(FULL))]) + "\n",
            compared_table(found) + "\n",
            "Not compared, with the number of tables:\n",
            missing_text(found) + "\n",
        )
    )


if __name__ == "__main__":
    print(report())
