"""What a report is made from: the content of a run folder, read by the caller."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

from autopeft.specs import Recommendation, TrialResult, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The content of a run folder.

    Attributes:
        manifest: manifest.json as it is; empty where it is not written yet.
        trials: results.jsonl in the order of its lines, final trainings included.
        verdict: None for a run in progress and for one that ended without.
        folder: the run folder as the user typed it; it is written into commands.
    """

    plan: Recommendation
    manifest: dict[str, Any]
    trials: tuple[TrialResult, ...]
    verdict: Verdict | None
    folder: str


def available_bytes(record: RunRecord) -> int:
    """Returns what a trial may use: the user's budget, or what the device has free, whichever is less."""
    free = record.plan.hardware.device.free_memory_bytes
    budget = record.plan.inputs.budget_memory_bytes
    return free if budget is None else min(budget, free)


def comparable_prediction_bytes(trial: TrialResult) -> int:
    """Returns the predicted figure that means the same as the measured one.

    The resident memory of a worker holds libraries and context, as ``required_bytes`` does; an allocator's maximum
    does not, as ``peak_memory_bytes`` does not.
    """
    return trial.predicted_required_bytes if trial.measured_peak_kind == "resident" else trial.predicted_peak_bytes


def with_rank_pattern(record: RunRecord) -> TrialResult | None:
    """Returns the training whose final ranks are shown: a final one, else the best; None if no trial reports ranks."""
    return _preferred([trial for trial in record.trials if trial.rank_pattern])


def with_quantization_error(record: RunRecord) -> TrialResult | None:
    """Returns the training whose LoftQ errors are shown: a final one, else the best; None if no trial reports them."""
    return _preferred(
        [trial for trial in record.trials if trial.quantization_error_before and trial.quantization_error_after]
    )


def is_finite(value: float | None) -> TypeGuard[float]:
    """Returns whether there is a figure that can be drawn."""
    return value is not None and math.isfinite(value)


def _preferred(trials: list[TrialResult]) -> TrialResult | None:
    return min(trials, key=_preference, default=None)


def _preference(trial: TrialResult) -> tuple[bool, bool, float]:
    loss = trial.eval_loss if is_finite(trial.eval_loss) else math.inf
    return (trial.status != "complete", trial.stage != "final", loss)
