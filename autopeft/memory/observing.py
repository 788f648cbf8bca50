"""Sets what a training measured beside what was predicted for it, like with like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autopeft.memory.calibration_store import MeasuredKind, Observation, predicted_bytes, traits_of, versions_of
from autopeft.specs import Candidate, Device, MemoryEstimate, ModelSpec, TrainOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What was trained, and under which limit.

    Attributes:
        data: content hash of the data; None for full rows.
        sequence_length: tokens of the longest row, for which its memory was predicted.
        limit_bytes: what it could use; more ended it.
        versions: installed packages of the worker.
    """

    candidate: Candidate
    model: ModelSpec
    device: Device
    data: str | None
    sequence_length: int
    limit_bytes: int
    versions: Mapping[str, str]
    source: Literal["trial", "calibrate"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement; either what was measured or the limit that was too small."""

    kind: MeasuredKind
    measured_bytes: int | None
    oom_at_bytes: int | None = None


def observations_of(
    training: Training, estimate: MemoryEstimate, outcome: TrainOutcome, *, seconds: float | None
) -> tuple[Observation, ...]:
    """Returns an observation for each figure of a training; none where nothing was trained or measured.

    Args:
        training: what was trained.
        estimate: its prediction, without a correction by earlier observations.
        outcome: how it ended.
        seconds: of one optimizer step; None if that was not measured.
    """
    assert estimate.source != "calibrated", "a correction must not be measured by itself"
    versions = versions_of(training.versions)
    if "torch" not in versions:  # a simulated runner
        return ()
    return tuple(
        Observation(
            device=training.device.name,
            kind=figure.kind,
            model=training.model.id,
            model_type=training.model.model_type,
            versions=versions,
            traits=traits_of(training.candidate),
            batch_size=training.candidate.per_device_batch_size,
            sequence_length=training.sequence_length,
            data=training.data,
            predicted_by=estimate.source,
            predicted_bytes=predicted_bytes(estimate, figure.kind),
            measured_bytes=figure.measured_bytes,
            oom_at_bytes=figure.oom_at_bytes,
            predicted_seconds=estimate.seconds_per_step,
            measured_seconds=seconds,
            source=training.source,
        )
        for figure in _figures(training, estimate, outcome)
    )


def step_seconds(outcome: TrainOutcome) -> float | None:
    """Returns the mean of the steps after the first, which also compiles and allocates; None if there was none."""
    if outcome.first_step_seconds is None or outcome.steps < 2:
        return None
    return (outcome.train_seconds - outcome.first_step_seconds) / (outcome.steps - 1)


def _figures(training: Training, estimate: MemoryEstimate, outcome: TrainOutcome) -> list[Figure]:
    if outcome.status == "oom":
        return _too_small(training, estimate, outcome)
    if outcome.status not in ("complete", "pruned"):
        return []
    found = []
    if outcome.measured_peak_kind and outcome.measured_peak_bytes:
        found.append(Figure(outcome.measured_peak_kind, outcome.measured_peak_bytes))
    reserved = outcome.details.get("max_reserved_bytes")
    if isinstance(reserved, int):
        found.append(Figure("max_reserved", reserved))
    return found


def _too_small(training: Training, estimate: MemoryEstimate, outcome: TrainOutcome) -> list[Figure]:
    """Returns the limit, one-sided."""
    if training.device.kind != "cpu":
        # The limit is set on the allocator; the context lies beside it.
        return [Figure("max_reserved", None, max(1, training.limit_bytes - estimate.context))]
    # On a host the parent ends what exceeds the limit, and then says what it saw. Other ends have limits of their own.
    exceeded = outcome.measured_peak_bytes is not None
    return [Figure("resident", None, training.limit_bytes)] if exceeded else []
