"""One sitting of a run: what all stages share, the clock over all sittings, and the word to the watcher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autopeft.search.run_folder import RunFolder, phase_times
from autopeft.search.settings import CandidateSource, Event, EventKind, RunSettings, Watcher, derive_seed
from autopeft.specs import JobFacts, PhaseTime, Recommendation, Runner


@dataclass(slots=True, kw_only=True)
class Session:
    """What the stages of a run work with.

    Attributes:
        source: turns knob values into priced candidates.
        facts: what the runner found; set by the stage "prepare".
    """

    plan: Recommendation
    settings: RunSettings
    folder: RunFolder
    runner: Runner
    source: CandidateSource
    on_event: Watcher
    facts: JobFacts | None = None
    _stage: str = "prepare"
    _begun_at: float = field(init=False)
    _earlier_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        past = self.folder.load_events()
        self._begun_at = self.runner.clock()
        self._earlier_seconds = past[-1]["elapsed_seconds"] if past else 0.0

    def elapsed_seconds(self) -> float:
        """Returns the seconds that the run has taken, over all sittings."""
        return self._earlier_seconds + self.runner.clock() - self._begun_at

    def remaining_seconds(self) -> float | None:
        """Returns what is left of the time budget; below zero when it is exceeded, None without one."""
        budget = self.settings.time_budget_seconds
        return None if budget is None else budget - self.elapsed_seconds()

    def enter(self, stage: str, message: str) -> None:
        """Begins a stage."""
        self._stage = stage
        self.emit("stage", message, stage=stage)

    def emit(self, kind: EventKind, message: str, **data: Any) -> None:
        """Writes an event to disk, then tells the watcher."""
        event = Event(kind=kind, message=message, data=data)
        self.folder.add_event(event, self._stage, self.elapsed_seconds())
        self.on_event(event)

    def seed(self, purpose: str) -> int:
        """Returns the seed for one purpose; all candidates have the same, so that they see the same rows in order."""
        return derive_seed(self.settings.seed, purpose)

    def job_facts(self) -> JobFacts:
        """Returns what the runner found."""
        assert self.facts is not None, "the stage 'prepare' comes first"
        return self.facts

    def phases(self) -> tuple[PhaseTime, ...]:
        """Returns the seconds of each stage so far, over all sittings."""
        return phase_times(self.folder.load_events())
