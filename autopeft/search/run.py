"""All stages of a run in their order; each goes on from what the folder already holds."""

from __future__ import annotations

from autopeft.recommend import CandidateFactory
from autopeft.search.durable import write_json
from autopeft.search.finals import Finals, choose, score_tests, train_finals
from autopeft.search.loop import search
from autopeft.search.prepare import SavedSchedule, plan_search, prepare
from autopeft.search.run_folder import RunFolder
from autopeft.search.schedule import cut_sentences
from autopeft.search.session import Session
from autopeft.search.settings import CandidateSource, RunSettings, Watcher
from autopeft.search.study import quiet_optuna
from autopeft.search.verdict import Evidence, make_verdict
from autopeft.specs import Recommendation, Runner, TrialResult, Verdict, to_dict


def run_search(
    plan: Recommendation,
    settings: RunSettings,
    folder: RunFolder,
    runner: Runner,
    *,
    on_event: Watcher,
    source: CandidateSource | None = None,
) -> Verdict:
    """Searches, trains the winner in full, compares it and returns the verdict, which is also on disk.

    Interrupted anywhere (an exception, a kill), it is continued by calling it again with the same folder; at most the
    training in flight is lost. The caller closes runner and folder.

    Args:
        plan: what to choose from.
        settings: budgets and seed.
        folder: new, or of a run that is to be continued.
        runner: trains and scores.
        on_event: told of every event, after it is on disk.
        source: makes and prices candidates; None means the recommender's own.

    Raises:
        AutoPeftError: if nothing can be trained; the text names the log.
        RunFolderError: if the data split differently than when the run was begun.
    """
    source = source if source is not None else CandidateFactory.from_plan(plan)
    session = Session(plan=plan, settings=settings, folder=folder, runner=runner, source=source, on_event=on_event)
    with quiet_optuna():
        return _all_stages(session)


def _all_stages(session: Session) -> Verdict:
    prepare(session)
    saved = plan_search(session)
    trials = search(session, saved)
    session.enter("choose", "choosing on the choose split")
    choice = choose(session, trials)
    finals = train_finals(session, saved, choice)
    tests, untested = score_tests(session, saved, choice, finals)
    session.enter("verdict", "comparing")
    verdict = make_verdict(
        Evidence(
            trials=trials,
            choice=choice,
            finals=finals,
            tests=tests,
            cut=_cut(saved, trials, finals) + untested,
            seconds=session.elapsed_seconds(),
            phases=session.phases(),
            seed=session.seed("bootstrap"),
            facts=session.job_facts(),
            dry_run=session.settings.dry_run,
        )
    )
    write_json(session.folder.verdict, verdict.to_dict())
    session.folder.update_manifest(winner=to_dict(choice.winner.candidate), winner_reason=choice.reason)
    session.emit("verdict", verdict.conclusion, winner_trial=verdict.winner_trial)
    return verdict


def _cut(saved: SavedSchedule, trials: tuple[TrialResult, ...], finals: Finals) -> tuple[str, ...]:
    """Returns what the run fell short of the full plan, as it came out; an exhausted space is not a cut."""
    tried = {trial.candidate.method for trial in trials}
    methods = tuple(method for method in saved.task.step_ratios if method in tried)
    limited = saved.task.remaining_seconds is not None
    count = len(trials) if limited else saved.task.full_trials
    return cut_sentences(saved.task, methods, count, saved.schedule.search_steps, finals.steps)
