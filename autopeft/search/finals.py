"""From the finished search to the final figures: choose, train in full, and only then look at the test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopeft.errors import AutoPeftError
from autopeft.search.loop import announce, describe
from autopeft.search.prepare import UNTOUCHED, SavedSchedule
from autopeft.search.schedule import MARGIN_SHARE, final_steps
from autopeft.search.session import Session
from autopeft.search.settings import plain_candidate
from autopeft.search.statistics import paired_comparison
from autopeft.search.training import Training, carry_out, score
from autopeft.specs import Candidate, RankedCandidate, Scores, TrialResult

WINNER = "final-winner"
PLAIN = "final-plain-lora"

TIME_NOISE = 0.1
"""Relative difference of step times below which two trials count as equally fast; repeats on one machine differ so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the search decided; made from the choose split alone.

    Attributes:
        best: the best completed trial of each method, lowest loss first.
        winner: the one that is trained in full.
        reason: why, one sentence.
    """

    best: tuple[TrialResult, ...]
    winner: TrialResult
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """The final trainings.

    Attributes:
        plain: plain LoRA's; the winner's own where they are the same candidate; None if it could not be trained.
        steps: of each.
        notes: what went otherwise than planned, one sentence each.
    """

    winner: TrialResult
    plain: TrialResult | None
    steps: int
    notes: tuple[str, ...] = ()


def choose(session: Session, trials: Sequence[TrialResult]) -> Choice:
    """Returns the winner: the cheapest among the methods that the choose split cannot tell from the best."""
    best = best_of_methods(trials)
    scores = {trial.name: _choose_scores(session, trial) for trial in best}
    tied = [best[0]]
    for trial in best[1:]:
        names = (trial.name, best[0].name)
        found = paired_comparison(
            names,
            scores[names[0]],
            scores[names[1]],
            comparisons=len(best) - 1,
            seed=session.seed("bootstrap"),
        )
        if not found.significant:
            tied.append(trial)
    winner = cheapest(session, tied)
    return Choice(best=best, winner=winner, reason=_reason(best, tied, winner))


def best_of_methods(trials: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """Returns the completed trial with the lowest loss of each method, lowest first."""
    best: dict[str, TrialResult] = {}
    for trial in sorted(_completed(trials), key=lambda trial: (_loss(trial), trial.trial)):
        best.setdefault(trial.candidate.method, trial)
    return tuple(best.values())


def train_finals(session: Session, saved: SavedSchedule, choice: Choice) -> Finals:
    """Trains the winner and plain LoRA for equally many steps, each once over all sittings.

    Raises:
        AutoPeftError: if the winner's training fails; the text names the log.
    """
    plain, notes = _plain_to_train(session, choice.winner.candidate)
    steps = _steps(session, saved, choice, plain)
    session.enter("final", f"final training: {describe(_priced(session, choice.winner.candidate))}, {steps} steps")
    session.folder.update_manifest(final_steps=steps)
    # A worker that has trained many candidates holds more memory than a fresh one, and the winner must not die of it.
    session.runner.refresh()
    winner = _final(session, WINNER, choice.winner.candidate, steps)
    if winner.status != "complete":
        winner = _final(session, WINNER, choice.winner.candidate, steps)
    if winner.status != "complete":
        raise AutoPeftError(
            f"the final training of {choice.winner.name} ended as {winner.status} ({winner.error}); "
            f"see {session.folder.worker_log}; --resume tries it again"
        )
    assert winner.adapter_folder is not None, "a completed training saves its adapter"
    session.folder.export_adapter(session.folder.path / winner.adapter_folder)
    notes += _shortened(winner)
    if plain is None:
        same = plain_candidate(session.plan) == choice.winner.candidate
        return Finals(winner=winner, plain=winner if same else None, steps=steps, notes=notes)
    baseline = _final(session, PLAIN, plain, steps)
    if baseline.status == "complete":
        return Finals(winner=winner, plain=baseline, steps=steps, notes=notes + _shortened(baseline))
    failed = (
        f"plain LoRA's final training ended as {baseline.status} ({baseline.error}), so nothing is compared with it"
    )
    return Finals(winner=winner, plain=None, steps=steps, notes=(*notes, failed))


def _shortened(result: TrialResult) -> tuple[str, ...]:
    """Returns the sentence that says that a training saw shorter rows than the others; nothing if it did not."""
    rungs = [rung for rung in result.details.get("memory_ladder", []) if rung["lever"] == "max_length"]
    if not rungs:
        return ()
    return (
        f"memory ran out in {result.name}, so its training rows were cut at {rungs[-1]['after']} tokens instead of "
        f"{rungs[0]['before']}; it trained on fewer tokens than what it is compared with",
    )


def score_tests(
    session: Session, saved: SavedSchedule, choice: Choice, finals: Finals
) -> tuple[dict[str, Scores], tuple[str, ...]]:
    """Returns test scores by name, the final models' first, and what the time cut of the search trials' scores."""
    session.enter("test", "scoring the test split, which nothing was chosen by")
    scores = {UNTOUCHED: score(session, UNTOUCHED, "test", None), WINNER: score(session, WINNER, "test", finals.winner)}
    if finals.plain is not None and finals.plain is not finals.winner:
        scores[PLAIN] = score(session, PLAIN, "test", finals.plain)
    ranked = choice.best if len(choice.best) > 1 else ()
    for position, trial in enumerate(ranked):
        if not _has_time(session, saved, trial.name, scores):
            scored = f"{position} of {len(ranked)} methods scored on the test split"
            return scores, (f"{scored}; the others rank by the choose split alone",)
        scores[trial.name] = score(session, trial.name, "test", trial)
    return scores, ()


def _has_time(session: Session, saved: SavedSchedule, name: str, scored: Mapping[str, Scores]) -> bool:
    """Returns whether one more model can be scored, as slowly as the slowest so far."""
    remaining = session.remaining_seconds()
    if remaining is None or session.folder.load_scores(name, "test") is not None:
        return True
    return remaining >= max(saved.calibration.test_seconds, *(scores.seconds for scores in scored.values()))


def _completed(trials: Sequence[TrialResult]) -> list[TrialResult]:
    return [trial for trial in trials if trial.status == "complete" and trial.adapter_folder is not None]


def _loss(trial: TrialResult) -> float:
    assert trial.eval_loss is not None, "a completed trial has a loss"
    return trial.eval_loss


def _choose_scores(session: Session, trial: TrialResult) -> Scores:
    scores = session.folder.load_scores(trial.name, "choose")
    assert scores is not None, "the scores are written before the line"
    return scores


def cheapest(session: Session, tied: Sequence[TrialResult]) -> TrialResult:
    """Returns the cheapest of equally good trials: by time, then what servers load as it is, then memory, then loss.

    Times within TIME_NOISE of the shortest count as equal.
    """
    seconds = {trial.name: _step_seconds(session, trial) for trial in tied}
    limit = min(seconds.values()) * (1 + TIME_NOISE)
    quick = [trial for trial in tied if seconds[trial.name] <= limit]
    return min(
        quick,
        key=lambda trial: (
            not session.source.allowed(trial.candidate.method).served_as_trained,
            trial.predicted_required_bytes,
            _loss(trial),
        ),
    )


def _step_seconds(session: Session, trial: TrialResult) -> float:
    """Returns the seconds of one step: predicted, or measured where the device's speed is unknown."""
    predicted = _priced(session, trial.candidate).estimate.seconds_per_step
    return predicted if predicted is not None else trial.train_seconds / max(1, trial.steps)


def _priced(session: Session, candidate: Candidate) -> RankedCandidate:
    priced = session.source.price(candidate)
    assert isinstance(priced, RankedCandidate), "what was trained fits"
    return priced


def _reason(best: Sequence[TrialResult], tied: Sequence[TrialResult], winner: TrialResult) -> str:
    method, lowest = winner.candidate.method, best[0].candidate.method
    if len(best) == 1:
        return f"{method} is the only method with a completed trial"
    if len(tied) == 1:
        return (
            f"{method} has the lowest loss on the choose split, and the difference to every other method is significant"
        )
    others = ", ".join(trial.candidate.method for trial in tied)
    return (
        f"on the choose split {others} cannot be told apart (lowest: {lowest}); {method} is the cheapest of them, "
        "in time, then in what it takes to serve it, then in memory"
    )


def _plain_to_train(session: Session, winner: Candidate) -> tuple[Candidate | None, tuple[str, ...]]:
    plain = plain_candidate(session.plan)
    if plain is None:
        return None, ("the plan has no plain LoRA recipe to compare with",)
    if plain == winner:
        return None, ()
    priced = session.source.price(plain)
    if isinstance(priced, RankedCandidate):
        return plain, ()
    return None, (f"plain LoRA cannot be trained here, so nothing is compared with it: {priced.reason}",)


def _steps(session: Session, saved: SavedSchedule, choice: Choice, plain: Candidate | None) -> int:
    """Returns the steps of the final trainings: an earlier sitting's if it left any work, else what time allows."""
    earlier = [
        result.steps
        for result in session.folder.load_results()
        if result.stage == "final" and result.status == "complete"
    ]
    if earlier:
        return earlier[0]
    decided = session.folder.load_manifest().get("final_steps")
    if decided is not None and any(session.folder.checkpoint_folder(name).exists() for name in (WINNER, PLAIN)):
        return int(decided)
    measured = saved.calibration
    count = 1 if plain is None else 2
    own_seconds = choice.winner.train_seconds / max(1, choice.winner.steps)
    per_step = own_seconds + (0.0 if plain is None else measured.seconds_per_step)
    own_fixed = max(choice.winner.seconds - choice.winner.train_seconds, measured.fixed_seconds)
    tests = (1 + count + len(choice.best)) * measured.test_seconds
    remaining, budget = session.remaining_seconds(), session.settings.time_budget_seconds
    left = None if remaining is None or budget is None else remaining - MARGIN_SHARE * budget - tests
    return final_steps(left, count * own_fixed, max(per_step, 1e-6), saved.schedule.search_steps, saved.task.full_steps)


def _final(session: Session, name: str, candidate: Candidate, steps: int) -> TrialResult:
    for result in session.folder.load_results():
        if result.name == name and result.status == "complete":
            return result
    training = Training(
        name=name, stage="final", trial=None, priced=_priced(session, candidate), steps=steps, checkpointed=True
    )
    session.emit("trial-start", f"{name}: {describe(training.priced)}", name=name, method=candidate.method)
    result = carry_out(session, training, lambda _: True, None)
    announce(session, result)
    return result
