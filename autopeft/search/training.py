"""Trains one candidate through the runner and puts down what came of it: scores first, then the line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from autopeft.search.observing import observe
from autopeft.search.prepare import score_request
from autopeft.search.session import Session
from autopeft.specs import (
    RankedCandidate,
    RungReport,
    Scores,
    SplitName,
    TrainOutcome,
    TrainRequest,
    TrialResult,
    TrialStatus,
)

DIVERGED_FACTOR = 1.5
"""A held-out loss so many times the untouched base's will not come back within the run."""

_OWN_COLUMNS = ("rank_pattern", "quantization_error_before", "quantization_error_after")
GoOn = Callable[[RungReport], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training to be done.

    Attributes:
        trial: Optuna trial number; None for a final training.
        priced: the candidate with its estimate.
        rungs: steps after which ``go_on`` is asked.
        seconds_limit: of the training; None means no limit.
        checkpointed: whether it goes on where it was killed.
    """

    name: str
    stage: Literal["search", "final"]
    trial: int | None
    priced: RankedCandidate
    steps: int
    rungs: tuple[int, ...] = ()
    seconds_limit: float | None = None
    checkpointed: bool = False


def carry_out(session: Session, training: Training, go_on: GoOn, untouched_loss: float | None) -> TrialResult:
    """Trains, writes scores and line, and returns the line.

    Args:
        session: the run.
        training: what to train.
        go_on: asked at every rung whose loss is a sane number.
        untouched_loss: of the untouched base on the choose split, for telling divergence; None if unknown.
    """
    watch = _DivergenceWatch(go_on, untouched_loss)
    folder = session.folder.fresh_adapter_folder(training.name)
    request = TrainRequest(
        name=training.name,
        candidate=training.priced.candidate,
        steps=training.steps,
        rungs=training.rungs,
        seed=session.seed(training.stage),
        output_folder=str(folder),
        seconds_limit=training.seconds_limit,
        allow_shorter=session.settings.allow_shorter,
        checkpoint_folder=str(session.folder.checkpoint_folder(training.name)) if training.checkpointed else None,
    )
    outcome = session.runner.train(request, watch)
    training = _as_trained(session, training, outcome)
    status, error = _judge(outcome, watch)
    scores = outcome.scores if outcome.scores is not None and math.isfinite(outcome.scores.eval_loss) else None
    scores_file = session.folder.write_scores(training.name, "choose", scores) if scores else None
    kept = session.folder.relative(folder) if outcome.adapter_folder is not None else None
    result = _result(
        session, training, outcome, status=status, error=error, scores_file=scores_file, adapter_folder=kept
    )
    session.folder.add_result(result)
    if result.status == "complete":
        session.folder.drop_checkpoints(training.name)
    observe(session, training.priced, outcome)
    return result


def score(session: Session, name: str, split: SplitName, trained: TrialResult | None) -> Scores:
    """Returns scores on a split, from disk where they are there already.

    Args:
        session: the run.
        name: of the training, or "untouched-base".
        split: which rows.
        trained: what is scored; None scores the untouched base.
    """
    known = session.folder.load_scores(name, split)
    if known is not None:
        return known
    scores = session.runner.score(score_request(session, name, split, trained))
    session.folder.write_scores(name, split, scores)
    session.emit(
        "score",
        f"{name}: loss {scores.eval_loss:.4f} on the {split} split",
        name=name,
        split=split,
        loss=scores.eval_loss,
    )
    return scores


def _as_trained(session: Session, training: Training, outcome: TrainOutcome) -> Training:
    """Returns the training with the candidate that was trained in the end, and its price, where memory ran out."""
    if outcome.trained is None:
        return training
    priced = session.source.price(outcome.trained)
    if not isinstance(priced, RankedCandidate):
        priced = replace(training.priced, candidate=outcome.trained)
    return replace(training, priced=priced)


class _DivergenceWatch:
    """Stops a training whose loss is beyond hope before the search's own opinion is asked."""

    def __init__(self, go_on: GoOn, untouched_loss: float | None) -> None:
        self._go_on = go_on
        self._untouched_loss = untouched_loss
        self.reason: str | None = None

    def __call__(self, report: RungReport) -> bool:
        self.reason = self.complaint(report.step, report.eval_loss)
        return self.reason is None and self._go_on(report)

    def complaint(self, step: int, loss: float) -> str | None:
        if not math.isfinite(loss):
            return f"diverged: the held-out loss at step {step} is not a number; a lower learning rate would help"
        if self._untouched_loss is not None and loss > DIVERGED_FACTOR * self._untouched_loss:
            return (
                f"diverged: the held-out loss at step {step} is {loss:.3f}, against {self._untouched_loss:.3f} of the "
                "untouched base; a lower learning rate would help"
            )
        return None


def _judge(outcome: TrainOutcome, watch: _DivergenceWatch) -> tuple[TrialStatus, str | None]:
    if outcome.status == "complete" and outcome.scores is None:
        return "failed", "the training ended without scores on the choose split"
    if outcome.status == "complete" and outcome.scores is not None and not math.isfinite(outcome.scores.eval_loss):
        return "failed", watch.complaint(outcome.steps, outcome.scores.eval_loss)
    return outcome.status, outcome.error or watch.reason


def _result(session: Session, training: Training, outcome: TrainOutcome, **judged: Any) -> TrialResult:
    details = dict(outcome.details)
    own: dict[str, Any] = {name: details.pop(name, None) for name in _OWN_COLUMNS}
    return TrialResult(
        trial=training.trial,
        name=training.name,
        stage=training.stage,
        candidate=training.priced.candidate,
        eval_loss=_last_loss(outcome),
        steps=outcome.steps,
        tokens=outcome.tokens,
        seconds=outcome.seconds,
        train_seconds=outcome.train_seconds,
        seed=session.seed(training.stage),
        predicted_required_bytes=training.priced.estimate.required_bytes,
        predicted_peak_bytes=training.priced.estimate.peak_memory_bytes,
        measured_peak_bytes=outcome.measured_peak_bytes,
        measured_peak_kind=outcome.measured_peak_kind,
        trainable_parameters=outcome.trainable_parameters,
        curve=tuple(
            (rung.step, rung.tokens, rung.eval_loss) for rung in outcome.curve if math.isfinite(rung.eval_loss)
        ),
        details=details,
        versions=session.job_facts().versions,
        **own,
        **judged,
    )


def _last_loss(outcome: TrainOutcome) -> float | None:
    losses = [outcome.scores.eval_loss] if outcome.scores else [rung.eval_loss for rung in outcome.curve[-1:]]
    return losses[0] if losses and math.isfinite(losses[0]) else None
