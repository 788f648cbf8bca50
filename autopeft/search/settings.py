"""What a run is asked to do, what it tells while it works, and where its candidates come from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from autopeft.errors import InvalidInputError
from autopeft.spaces import all_spaces
from autopeft.specs import Candidate, MethodSpace, OptionValue, RankedCandidate, Recommendation, RejectedCandidate

EventKind = Literal[
    "stage",
    "prepared",
    "calibrated",
    "schedule",
    "cut",
    "trial-start",
    "rung",
    "trial-end",
    "skipped",
    "score",
    "verdict",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What the user asked of one run; stored in manifest.json, so that a resume needs nothing else.

    Attributes:
        trials: search trials at most; None means as many as the schedule gives.
        time_budget_seconds: for everything, final trainings and test scores included; None means no limit.
        seed: of the splits, the sampler, the trainings and the resampling.
        methods: searched methods; empty means those the plan was asked for, else all that are searched by default.
        dry_run: the runner is simulated; the verdict says so.
        allow_shorter: where memory runs out and nothing else helps, training rows may be cut further.
    """

    trials: int | None = None
    time_budget_seconds: float | None = None
    seed: int = 0
    methods: tuple[str, ...] = ()
    dry_run: bool = False
    allow_shorter: bool = False

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise InvalidInputError(f"a search needs at least one trial, not {self.trials}; give --trials 1 or more")
        budget = self.time_budget_seconds
        if budget is not None and not (math.isfinite(budget) and budget > 0):
            raise InvalidInputError(f"a time budget must be a positive number of seconds, not {budget}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened in a run, for whoever watches; also a line of events.jsonl.

    Attributes:
        message: one sentence for people.
        data: the same as values.
    """

    kind: EventKind
    message: str
    data: dict[str, Any] = field(default_factory=dict)


Watcher = Callable[[Event], None]


class CandidateSource(Protocol):
    """Turns knob values into priced candidates; `autopeft.recommend.CandidateFactory` is the real one."""

    def candidate(self, method: str, values: Mapping[str, OptionValue]) -> Candidate:
        """Returns the complete candidate for values by knob name."""
        ...

    def price(self, candidate: Candidate) -> RankedCandidate | RejectedCandidate:
        """Returns the candidate with its estimate, or why it cannot be started."""
        ...

    def values_of(self, candidate: Candidate) -> dict[str, OptionValue]:
        """Returns the knob values that ``candidate`` would turn into this candidate."""
        ...

    def allowed(self, method: str) -> MethodSpace:
        """Returns the method's space without the choices that cannot work here."""
        ...


def derive_seed(seed: int, *labels: object) -> int:
    """Returns a 31-bit seed for one purpose: the same on every machine and Python version."""
    text = ":".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def recommended_candidates(plan: Recommendation, settings: RunSettings) -> tuple[RankedCandidate, ...]:
    """Returns the best candidate of every searched method, in the order of the plan.

    Raises:
        InvalidInputError: if a method was asked for that has no candidate in the plan, or nothing is left.
    """
    best: dict[str, RankedCandidate] = {}
    for entry in plan.candidates:
        best.setdefault(entry.candidate.method, entry)
    asked = settings.methods or plan.inputs.methods
    missing = [method for method in settings.methods if method not in best]
    found = tuple(entry for method, entry in best.items() if _is_searched(method, asked))
    if missing or not found:
        reasons = "; ".join(f"{entry.method}: {entry.reason}" for entry in plan.rejected)
        what = f"no candidate of {', '.join(missing)}" if missing else "no candidate that is searched by default"
        raise InvalidInputError(
            f"the plan holds {what} (it holds: {', '.join(best) or 'none'}; rejected: {reasons or 'none'}); "
            "choose other methods or make a new plan: autopeft suggest ... -o plan.json"
        )
    return found


def _is_searched(method: str, asked: tuple[str, ...]) -> bool:
    return method in asked if asked else all_spaces()[method].searched_by_default


def plain_candidate(plan: Recommendation) -> Candidate | None:
    """Returns the plain LoRA recipe that the winner must beat; None where the plan has none."""
    return next((entry.candidate for entry in plan.baselines if entry.name == "plain-lora"), None)
