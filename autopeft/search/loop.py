"""The search itself: ask, train, tell, until the schedule or the budget ends it."""

from __future__ import annotations

from autopeft.errors import AutoPeftError
from autopeft.search.prepare import UNTOUCHED, SavedSchedule
from autopeft.search.session import Session
from autopeft.search.settings import plain_candidate, recommended_candidates
from autopeft.search.study import Proposal, SearchStudy
from autopeft.search.training import Training, carry_out
from autopeft.specs import Candidate, RankedCandidate, RejectedCandidate, RungReport, TrialResult
from autopeft.units import format_duration

PASSED_OVER_LIMIT = 20
"""So many proposals in a row that were tried before or do not fit mean that the space is exhausted."""

SHORTEST_LIMIT_SECONDS = 60.0


def search(session: Session, saved: SavedSchedule) -> tuple[TrialResult, ...]:
    """Runs the search trials that are still to be run; returns all of them, earlier sittings' included.

    Raises:
        AutoPeftError: if not one trial completed; the text names the log.
    """
    session.enter("search", f"searching: {saved.schedule.trials} trials of {saved.schedule.search_steps} steps")
    first = {
        entry.candidate.method: entry.candidate for entry in recommended_candidates(session.plan, session.settings)
    }
    mandatory = tuple(first[method] for method in saved.schedule.methods)
    study = SearchStudy(session.folder, session.source, mandatory, session.settings.seed, _priors(session, mandatory))
    while _goes_on(session, saved, study):
        _try_next(session, saved, study)
    trials = search_results(session)
    if not any(trial.status == "complete" for trial in trials):
        reasons = "; ".join(
            f"{trial.name} ({trial.candidate.method}): {trial.error or trial.status}" for trial in trials
        )
        raise AutoPeftError(
            f"no trial of the search completed ({reasons or 'none was started'}); see {session.folder.worker_log}"
        )
    return trials


def search_results(session: Session) -> tuple[TrialResult, ...]:
    """Returns the lines of the search stage, in the order in which they ended."""
    return tuple(result for result in session.folder.load_results() if result.stage == "search")


def _priors(session: Session, mandatory: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Returns the plain LoRA recipe, which must not lose only because nobody tried it; nothing if it is no choice."""
    plain = plain_candidate(session.plan)
    if plain is None or plain in mandatory or plain.method not in {entry.method for entry in mandatory}:
        return ()
    return (plain,) if isinstance(session.source.price(plain), RankedCandidate) else ()


def _goes_on(session: Session, saved: SavedSchedule, study: SearchStudy) -> bool:
    trials = search_results(session)
    if len(trials) >= saved.task.full_trials:
        return False
    if study.next_is_mandatory():
        return _first_trials_have_time(session, saved, len(saved.schedule.methods) - study.settled)
    if study.passed_over_lately() >= PASSED_OVER_LIMIT:
        session.emit(
            "skipped",
            f"{PASSED_OVER_LIMIT} proposals in a row were known already or do not fit: the space is exhausted",
        )
        return False
    if saved.search_ends_seconds is None:
        return True
    return session.elapsed_seconds() + _expected_seconds(trials) <= saved.search_ends_seconds


def _first_trials_have_time(session: Session, saved: SavedSchedule, missing: int) -> bool:
    if saved.last_start_seconds is None or session.elapsed_seconds() <= saved.last_start_seconds:
        return True
    # One completed trial is the least that a verdict can be made of.
    if not any(trial.status == "complete" for trial in search_results(session)):
        return True
    session.emit("cut", f"no time was left for the first trials of {missing} methods")
    return False


def _expected_seconds(trials: tuple[TrialResult, ...]) -> float:
    """Returns the mean time of the trials that ran to their end, which all have equally many steps."""
    seconds = [trial.seconds for trial in trials if trial.status == "complete"]
    return sum(seconds) / len(seconds) if seconds else 0.0


def _try_next(session: Session, saved: SavedSchedule, study: SearchStudy) -> None:
    proposal = study.propose()
    known = next((trial.name for trial in search_results(session) if trial.candidate == proposal.candidate), None)
    if known is not None:
        study.pass_over_duplicate(proposal, known)
        session.emit(
            "skipped", f"{proposal.name} is the same candidate as {known}", name=proposal.name, reason="duplicate"
        )
        return
    priced = session.source.price(proposal.candidate)
    if isinstance(priced, RejectedCandidate):
        study.pass_over_infeasible(proposal, priced.required_bytes, session.plan.candidates[0].available_bytes)
        session.emit("skipped", f"{proposal.name}: {priced.reason}", name=proposal.name, reason="infeasible")
        return
    _run_trial(session, saved, study, proposal, priced)


def _run_trial(
    session: Session, saved: SavedSchedule, study: SearchStudy, proposal: Proposal, priced: RankedCandidate
) -> None:
    remaining = session.remaining_seconds()
    training = Training(
        name=proposal.name,
        stage="search",
        trial=proposal.trial.number,
        priced=priced,
        steps=saved.schedule.search_steps,
        rungs=saved.schedule.rungs,
        seconds_limit=None if remaining is None else max(SHORTEST_LIMIT_SECONDS, remaining),
    )
    session.emit(
        "trial-start", f"{training.name}: {describe(priced)}", name=training.name, method=priced.candidate.method
    )

    def go_on(report: RungReport) -> bool:
        pruned = study.should_prune(proposal, report.step, report.eval_loss)
        session.emit(
            "rung",
            f"{training.name}: loss {report.eval_loss:.4f} at step {report.step}{', pruned' if pruned else ''}",
            name=training.name,
            step=report.step,
            loss=report.eval_loss,
            pruned=pruned,
        )
        return not pruned

    untouched = session.folder.load_scores(UNTOUCHED, "choose")
    result = carry_out(session, training, go_on, untouched.eval_loss if untouched else None)
    study.tell(result)
    announce(session, result)


def announce(session: Session, result: TrialResult) -> None:
    """Says how a training ended."""
    loss = "" if result.eval_loss is None else f", loss {result.eval_loss:.4f}"
    error = "" if result.error is None else f": {result.error}"
    steps_down = _steps_down(result)
    session.emit(
        "trial-end",
        f"{result.name} {result.status}{loss} after {format_duration(result.seconds)}{error}{steps_down}",
        name=result.name,
        method=result.candidate.method,
        status=result.status,
        loss=result.eval_loss,
        seconds=result.seconds,
    )


def _steps_down(result: TrialResult) -> str:
    """Returns what was changed because memory ran out, as the end of a sentence; empty if nothing was."""
    ladder = result.details.get("memory_ladder", [])
    taken = ", ".join(f"{rung['lever']} {rung['before']} to {rung['after']}" for rung in ladder)
    return f"; memory ran out, so it trained with {taken}" if taken else ""


def describe(priced: RankedCandidate) -> str:
    """Returns a candidate for people: method, rank, learning rate and what else is unusual of it."""
    candidate = priced.candidate
    rank = "" if candidate.r is None else f" r={candidate.r}"
    base = "" if candidate.quantization == "none" else f" on {candidate.quantization}"
    return f"{candidate.method}{rank}{base}, learning rate {candidate.learning_rate:.2g}"
