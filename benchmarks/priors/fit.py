"""Fits the priors to the evidence base and writes ``profiles/priors.yaml``.

Run: PYTHONPATH=benchmarks python -m priors.fit
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import yaml

from autopeft.resources import resource_folder
from priors import learning_rate, quality
from priors.evidence import Sweep, read_quality, read_sources, read_sweeps, read_trends
from priors.learning_rate import REFERENCE, Fit, Optimum, left_out, miss, optimum, trends_of
from priors.quality import Pair

MODEL_TYPES: dict[str, tuple[str, ...]] = {
    "deepseek": ("deepseek_v3", "kimi_k2", "kimi_k25"),
    "gemma3": ("gemma3", "gemma3_text"),
    "gpt-oss": ("gpt_oss",),
    "llama": ("llama",),
    "nemotron": ("nemotron_h",),
    "qwen3": ("qwen3", "qwen3_moe"),
    "qwen3.5": ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
}
"""Family -> ``model_type`` of its config.json."""

HEADER = """\
# What published results say, fitted by `make priors` (benchmarks/priors) to profiles/evidence; do not edit by hand.
# How, and with which errors: docs/advice.md. A test refits and compares.
"""
DIGITS = 4


def fit_learning_rates(optima: Sequence[Optimum]) -> Fit:
    """Returns the fit to some optima and to all stated trends."""
    return learning_rate.fit(optima, read_trends())


def all_pairs() -> list[Pair]:
    """Returns every comparison of the evidence base."""
    tuned = {name: bool(source["tuned"]) for name, source in read_sources().items()}
    return quality.pairs(read_quality(), tuned) + quality.tuned_pairs(read_sweeps())


def by_model(
    optima: Sequence[Optimum], key: Callable[[Sweep], str], fitted: Callable[[Sequence[Optimum]], Fit]
) -> dict[str, float]:
    """Returns each model's mean |log(advised / best)| over its LoRA sweeps, fitted without its ``key``."""
    misses: dict[str, list[float]] = defaultdict(list)
    for entry, fit in left_out(optima, key, fitted):
        if entry.sweep.method == "lora":
            misses[entry.sweep.model.name].append(miss(fit.log_rate(entry.sweep), entry.log_rate, entry.edge))
    return {name: float(np.mean(values)) for name, values in sorted(misses.items())}


def priors() -> dict[str, Any]:
    """Returns the content of ``profiles/priors.yaml``."""
    sweeps = read_sweeps()
    return {"learning_rate": _learning_rate(sweeps), "quality": _quality(sweeps)}


def _learning_rate(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    optima = [optimum(sweep) for sweep in sweeps]
    found = fit_learning_rates(optima)
    groups = {name: _round(math.exp(value)) for name, value in found.groups.items()}
    batches: dict[str, set[int]] = defaultdict(set)
    for sweep in sweeps:
        batches[sweep.model.name].add(sweep.batch_size)
    return {
        "reference": {name: float(value) for name, value in REFERENCE.items()},
        "at_reference": _round(math.exp(found.log_reference)),
        "exponents": {name: _round(value) for name, value in found.trends.items()},
        "mixture_of_experts_factor": groups["mixture:of experts"],
        "families": {
            name: {"model_types": list(types), "factor": groups[f"family:{name}"]}
            for name, types in MODEL_TYPES.items()
        },
        "models": _of_group(groups, "model"),
        "swept_batch_sizes": {name: sorted(sizes) for name, sizes in sorted(batches.items())},
        "covered": _covered(sweeps),
        "error_factor": _geometric(by_model(optima, lambda sweep: sweep.model.name, fit_learning_rates)),
        "new_family_error_factor": _geometric(by_model(optima, lambda sweep: sweep.model.family, fit_learning_rates)),
        "cost_of_half": _round(learning_rate.flatness(sweeps, -1.0)),
        "cost_of_double": _round(learning_rate.flatness(sweeps, 1.0)),
    }


def _quality(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    found = all_pairs()
    everything = quality.fit(found)
    tuned = quality.fit([pair for pair in found if pair.tuned])
    error, zero = quality.left_source_out(found)
    return {
        "effects": {
            name: {
                "points": _round(points),
                "tuned_points": _round(tuned.effects[name]) if tuned.cells.get(name) else None,
                "comparisons": everything.cells[name],
                "sources": everything.sources[name],
                "models": sorted({pair.model for pair in found if pair.difference.get(name)}),
            }
            for name, points in everything.effects.items()
        },
        "error_points": _round(error),
        "error_points_of_zero": _round(zero),
        "loss_share_per_doubled_rank": _round(quality.loss_share_of_doubled_rank(sweeps)),
    }


def _covered(sweeps: Sequence[Sweep]) -> dict[str, list[float]]:
    """Returns the lowest and the highest value of each condition in the sweeps and the stated trends."""
    values: dict[str, list[float]] = defaultdict(list)
    for sweep in sweeps:
        for name, log_ratio in trends_of(sweep).items():
            values[name].append(round(REFERENCE[name] * math.exp(log_ratio), 6))
    for trend in read_trends():
        for name in trend.conditions:
            values[name] += [trend.low, trend.high]
    return {name: [float(min(found)), float(max(found))] for name, found in values.items()}


def _of_group(groups: dict[str, float], kind: str) -> dict[str, float]:
    return {name.split(":", 1)[1]: value for name, value in groups.items() if name.startswith(f"{kind}:")}


def _geometric(misses: dict[str, float]) -> float:
    return _round(math.exp(float(np.mean(list(misses.values())))))


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def main() -> None:
    """Writes the file."""
    text = HEADER + yaml.safe_dump(priors(), sort_keys=False, width=120)
    (resource_folder("profiles") / "priors.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
