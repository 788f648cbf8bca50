"""What a training gives up, in which order, when the device runs out of memory; the effective batch always stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from autopeft.specs import Candidate, OptionValue, TrainOutcome, TrainRequest

SHORTEST_LENGTH = 64
"""Rows are not cut below this many tokens: what is left of them would be another task."""

_EIGHT_BIT = {
    "adamw_torch": "adamw_bnb_8bit",
    "adamw_torch_fused": "adamw_bnb_8bit",
    "paged_adamw_32bit": "paged_adamw_8bit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One step down.

    Attributes:
        lever: the setting of the candidate that changed.
        before: its value when memory ran out.
        after: its value from then on.
        error: what ran out.
    """

    lever: str
    before: OptionValue
    after: OptionValue
    error: str

    def __str__(self) -> str:
        """The step as a sentence's part."""
        return f"{self.lever} {self.before} to {self.after}"


def next_lower(candidate: Candidate, *, allow_shorter: bool) -> tuple[str, Candidate] | None:
    """Returns the lever to pull next and the candidate with it pulled; None at the bottom of the ladder.

    In this order: smaller micro-batches with as many more forwards a step; activation checkpointing; 8-bit optimizer
    states; half the length. The first three leave the training what it is but for rounding; the last changes the data.

    Args:
        candidate: what ran out of memory.
        allow_shorter: whether rows may be cut.
    """
    batch = candidate.per_device_batch_size
    if batch > 1:
        parts = _smallest_divisor(batch)
        accumulation = parts * candidate.gradient_accumulation_steps
        return "per_device_batch_size", replace(
            candidate, per_device_batch_size=batch // parts, gradient_accumulation_steps=accumulation
        )
    if not candidate.activation_checkpointing:
        return "activation_checkpointing", replace(candidate, activation_checkpointing=True)
    if candidate.optimizer in _EIGHT_BIT:
        return "optimizer", replace(candidate, optimizer=_EIGHT_BIT[candidate.optimizer])  # type: ignore[arg-type]
    shorter = candidate.max_length // 2
    if allow_shorter and shorter >= SHORTEST_LENGTH:
        return "max_length", replace(candidate, max_length=shorter)
    return None


def train_within_memory(request: TrainRequest, train: Callable[[TrainRequest], TrainOutcome]) -> TrainOutcome:
    """Trains, and again one rung lower each time that memory runs out; the outcome holds every rung and all seconds.

    Args:
        request: the training as it is wanted.
        train: one attempt; an attempt that runs out of memory has the status "oom".
    """
    rungs: list[Rung] = []
    lost_seconds = 0.0
    asked = request
    while (outcome := train(asked)).status == "oom":
        lower = next_lower(asked.candidate, allow_shorter=request.allow_shorter)
        if lower is None:
            break
        lever, candidate = lower
        before, after = getattr(asked.candidate, lever), getattr(candidate, lever)
        rungs.append(Rung(lever=lever, before=before, after=after, error=outcome.error or "out of memory"))
        lost_seconds += outcome.seconds
        asked = replace(request, candidate=candidate)
    return _recorded(outcome, rungs, asked.candidate, lost_seconds) if rungs else outcome


def _recorded(outcome: TrainOutcome, rungs: list[Rung], trained: Candidate, lost_seconds: float) -> TrainOutcome:
    ladder = [{"lever": r.lever, "before": r.before, "after": r.after, "error": r.error} for r in rungs]
    error = outcome.error
    if outcome.status == "oom":
        error = f"{error}; also after {', '.join(map(str, rungs))}"
    return replace(
        outcome,
        trained=trained,
        details=outcome.details | {"memory_ladder": ladder},
        seconds=outcome.seconds + lost_seconds,
        error=error,
    )


def _smallest_divisor(number: int) -> int:
    return next(divisor for divisor in range(2, number + 1) if number % divisor == 0)
