"""A runner that trains nothing: a made-up loss surface and a clock that runs as fast as its trials say.

It serves ``--dry-run`` and makes a whole search a test of milliseconds. Its figures say nothing about any model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from autopeft.errors import DataError, WorkerError
from autopeft.methods import get_method
from autopeft.spaces import all_spaces
from autopeft.specs import (
    Candidate,
    Job,
    JobFacts,
    Recommendation,
    RungReport,
    ScoreRequest,
    Scores,
    SplitName,
    TrainOutcome,
    TrainRequest,
    from_json,
    to_json,
)

DEVICE_NAME = "simulated device"
_UNTOUCHED_LOSS = 1.6
_FLOOR_LOSS = 0.8
_STATE_FILE = "simulated-adapter.json"

FakeFailure = Literal["failed", "oom", "timeout", "diverged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeWorld:
    """What a FakeRunner pretends.

    Attributes:
        rows: of the data set.
        tokens_per_row: of each row, of which half are supervised.
        seconds_per_step: one optimizer step of plain LoRA.
        fixed_seconds: load, inject and save of one training.
        seconds_per_scored_row: one row of a split.
        best_learning_rate: of plain LoRA at scaling 1.
        method_effect: method -> loss that its best training ends above the floor; methods not named have none.
        row_noise: standard deviation over rows of what one trained model does better or worse than another.
        failures: training name or method -> how it fails.
    """

    rows: int = 400
    tokens_per_row: int = 60
    seconds_per_step: float = 1.0
    fixed_seconds: float = 4.0
    seconds_per_scored_row: float = 0.06
    best_learning_rate: float = 4e-4
    method_effect: Mapping[str, float] = field(default_factory=dict)
    row_noise: float = 0.05
    failures: Mapping[str, FakeFailure] = field(default_factory=dict)

    @classmethod
    def of_plan(cls, plan: Recommendation) -> FakeWorld:
        """Returns a world with the plan's rows, lengths and predicted speed, where its first advice is nearly right."""
        best = plan.candidates[0].candidate
        predicted = [entry.estimate.seconds_per_step for entry in plan.candidates]
        known = [seconds for seconds in predicted if seconds is not None]
        return cls(
            rows=plan.data.example_count,
            tokens_per_row=max(2, round(plan.data.mean_tokens)),
            seconds_per_step=known[0] if known else 1.0,
            best_learning_rate=1.3 * best.learning_rate / all_spaces()[best.method].learning_rate_factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What stands in for a saved adapter."""

    candidate: Candidate
    steps: int
    seed: int


class FakeRunner:
    """A Runner whose trainings are arithmetic; the same requests give the same results in any process."""

    def __init__(self, world: FakeWorld | None = None) -> None:
        """Makes a runner for one world; the clock starts at zero."""
        self.world = world or FakeWorld()
        self._now_seconds = 0.0
        self._job: Job | None = None

    def prepare(self, job: Job) -> JobFacts:
        """Returns the sizes of the splits; reads no data."""
        held_out = job.choose_rows + job.test_rows
        if held_out >= self.world.rows:
            raise DataError(f"{self.world.rows} rows are too few to hold out {held_out} of them; bring more data")
        self._job = job
        self._now_seconds += self.world.fixed_seconds
        rows = {"train": self.world.rows - held_out, "choose": job.choose_rows, "test": job.test_rows}
        tokens = {split: count * self.world.tokens_per_row for split, count in rows.items()}
        return JobFacts(
            rows=rows,
            tokens=tokens,
            supervised_tokens={split: count // 2 for split, count in tokens.items()},
            dropped_rows=0,
            versions={"runner": "simulated"},
            device_name=DEVICE_NAME,
            split_hash=hashlib.sha256(repr((job.data_hash, job.seed, rows)).encode()).hexdigest()[:16],
        )

    def train(self, request: TrainRequest, go_on: Callable[[RungReport], bool]) -> TrainOutcome:
        """Walks through the rungs; fails where the world says so."""
        self._prepared()
        failure = self.world.failures.get(request.name) or self.world.failures.get(request.candidate.method)
        begun = self._now_seconds
        self._now_seconds += self.world.fixed_seconds
        if failure is not None and failure != "diverged":
            return self._failed(failure, begun)
        curve: list[RungReport] = []
        for step in (*request.rungs, request.steps):
            curve.append(self._reach(request, step, curve, diverged=failure == "diverged"))
            if step < request.steps and not go_on(curve[-1]):
                return self._outcome(request, "pruned", curve, begun)
        return self._outcome(request, "complete", curve, begun)

    def score(self, request: ScoreRequest) -> Scores:
        """Returns the scores of what a training left in the folder, or of the untouched base."""
        self._now_seconds += self.world.fixed_seconds
        if request.adapter_folder is None:
            return self._scores(None, request.split)
        path = Path(request.adapter_folder) / _STATE_FILE
        if not path.is_file():
            raise WorkerError(
                f"{request.adapter_folder} holds no simulated adapter; a dry run can score only what it made"
            )
        return self._scores(from_json(path.read_text(), _Trained, str(path)), request.split)

    def clock(self) -> float:
        """Returns the simulated seconds since the runner was made."""
        return self._now_seconds

    def refresh(self) -> None:
        """Does nothing: there is no worker."""

    def close(self) -> None:
        """Does nothing: there is no worker."""

    def _prepared(self) -> Job:
        assert self._job is not None, "prepare comes first"
        return self._job

    def _reach(self, request: TrainRequest, step: int, curve: list[RungReport], *, diverged: bool) -> RungReport:
        before = curve[-1].step if curve else 0
        self._now_seconds += (step - before) * self._seconds_per_step(request.candidate)
        scores = self._scores(_Trained(candidate=request.candidate, steps=step, seed=request.seed), "choose")
        return RungReport(
            step=step,
            tokens=self._tokens(request.candidate, step),
            eval_loss=math.nan if diverged else scores.eval_loss,
            train_loss=scores.eval_loss,
            seconds=self._now_seconds,
        )

    def _outcome(
        self, request: TrainRequest, status: Literal["complete", "pruned"], curve: list[RungReport], begun: float
    ) -> TrainOutcome:
        steps = curve[-1].step
        trained = _Trained(candidate=request.candidate, steps=steps, seed=request.seed)
        (Path(request.output_folder) / _STATE_FILE).write_text(to_json(trained))
        broken = math.isnan(curve[-1].eval_loss)
        return TrainOutcome(
            status=status,
            steps=steps,
            tokens=curve[-1].tokens,
            seconds=self._now_seconds - begun,
            train_seconds=steps * self._seconds_per_step(request.candidate),
            scores=None if broken else self._row_scores(trained, "choose"),
            curve=tuple(curve),
            measured_peak_bytes=None,
            adapter_folder=request.output_folder,
        )

    def _failed(self, status: Literal["failed", "oom", "timeout"], begun: float) -> TrainOutcome:
        return TrainOutcome(
            status=status,
            steps=0,
            tokens=0,
            seconds=self._now_seconds - begun,
            train_seconds=0.0,
            scores=None,
            curve=(),
            measured_peak_bytes=None,
            error=f"simulated: {status}",
        )

    def _seconds_per_step(self, candidate: Candidate) -> float:
        return self.world.seconds_per_step * all_spaces()[candidate.method].step_time_ratio

    def _tokens(self, candidate: Candidate, steps: int) -> int:
        return steps * candidate.effective_batch_size * self.world.tokens_per_row

    def _scores(self, trained: _Trained | None, split: SplitName) -> Scores:
        scores = self._row_scores(trained, split)
        self._now_seconds += scores.seconds
        return scores

    def _row_scores(self, trained: _Trained | None, split: SplitName) -> Scores:
        """Returns the surface's mean loss over rows: some are hard for all models, and each model has its own noise."""
        job = self._prepared()
        rows = {"choose": job.choose_rows, "test": job.test_rows, "train": self.world.rows}[split]
        supervised = max(1, self.world.tokens_per_row // 2)
        hardness = _generator("rows", job.seed, split).normal(0, 0.3, rows)
        own = (
            _generator("model", repr(trained), split).normal(0, self.world.row_noise, rows)
            if trained
            else np.zeros(rows)
        )
        mean = _UNTOUCHED_LOSS if trained is None else self._mean_loss(trained)
        losses = tuple(float(loss) for loss in supervised * np.maximum(0.0, mean + hardness + own))
        return Scores(
            eval_loss=sum(losses) / (rows * supervised),
            losses=losses,
            supervised_tokens=(supervised,) * rows,
            seconds=rows * self.world.seconds_per_scored_row,
        )

    def _best_rate(self, method: str) -> float:
        return self.world.best_learning_rate * all_spaces()[method].learning_rate_factor

    def _mean_loss(self, trained: _Trained) -> float:
        """Falls with tokens; a parabola in the log of learning rate x scaling; a little lower with more rank."""
        candidate = trained.candidate
        tokens = self._tokens(candidate, trained.steps)
        learnt = 1 - math.exp(-((tokens / 20_000) ** 0.5))
        off = math.log10(candidate.learning_rate * _relative_scaling(candidate) / self._best_rate(candidate.method))
        efficiency = math.exp(-(off**2))
        rank = 0.01 / math.sqrt(candidate.r) if candidate.r else 0.0
        overshoot = 0.5 * max(0.0, off - 0.5) ** 2
        floor = _FLOOR_LOSS + rank + self.world.method_effect.get(candidate.method, 0.0)
        return _UNTOUCHED_LOSS - (_UNTOUCHED_LOSS - floor) * learnt * efficiency + overshoot


def _relative_scaling(candidate: Candidate) -> float:
    """Returns the candidate's effective scaling as a multiple of the one at which the best rate is stated."""
    if candidate.r is None or candidate.lora_alpha is None:
        return 1.0
    unit = get_method(candidate.method).lora_alpha(candidate.r, 1.0)
    return candidate.lora_alpha / unit if unit else 1.0


def _generator(*labels: object) -> np.random.Generator:
    digest = hashlib.sha256(":".join(map(str, labels)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
