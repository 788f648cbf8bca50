"""The first stages: load and split the data, measure a few steps, and divide the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autopeft.errors import AutoPeftError, RunFolderError
from autopeft.recommend.advice import SplitSizes, advised_epochs, steps_per_epoch
from autopeft.resources import cache_folder
from autopeft.search.durable import read_json, write_json
from autopeft.search.schedule import (
    MARGIN_SHARE,
    Calibration,
    Schedule,
    Task,
    latest_start_seconds,
    make_schedule,
    split_sizes,
)
from autopeft.search.session import Session
from autopeft.search.settings import plain_candidate, recommended_candidates
from autopeft.specs import (
    Candidate,
    Job,
    JobFacts,
    RankedCandidate,
    Recommendation,
    ScoreRequest,
    Scores,
    SplitName,
    TrainOutcome,
    TrainRequest,
    TrialResult,
    from_dict,
    to_dict,
)
from autopeft.units import format_duration

CALIBRATION_STEPS = 3
UNTOUCHED = "untouched-base"
_CALIBRATION = "calibration"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSchedule:
    """schedule.json: what was measured and decided once, and holds for every sitting of the run.

    Attributes:
        search_ends_seconds: on the run's clock; no optional trial starts that would end later. None without limit.
        last_start_seconds: on the run's clock; no first trial of a method starts later. None without limit.
    """

    task: Task
    calibration: Calibration
    schedule: Schedule
    search_ends_seconds: float | None
    last_start_seconds: float | None


def prepare(session: Session) -> None:
    """Has the runner load and split the data; refuses data that split differently than before."""
    session.enter("prepare", "loading and splitting the data")
    job = job_of(session)
    facts = session.runner.prepare(job)
    _check_splits(session, facts)
    session.facts = facts
    write_json(session.folder.splits, {"job": to_dict(job), "facts": to_dict(facts)})
    truncation = {
        "dropped_rows": facts.dropped_rows,
        "truncated_rows": facts.truncated_rows,
        "lost_supervised_tokens": facts.lost_supervised_tokens,
    }
    session.folder.update_manifest(
        versions=facts.versions,
        rows=facts.rows,
        split_hash=facts.split_hash,
        device_name=facts.device_name,
        truncation=truncation,
    )
    rows = "rows: " + ", ".join(f"{count} {split}" for split, count in facts.rows.items())
    message = "; ".join(part for part in (rows, truncation_sentence(facts)) if part)
    session.emit("prepared", message, rows=facts.rows, tokens=facts.tokens, device=facts.device_name, **truncation)


def truncation_sentence(facts: JobFacts) -> str:
    """Returns what truncation took from the data; empty if it took nothing."""
    cut, dropped = facts.truncated_rows, facts.dropped_rows
    lost = f"{100 * lost_share(facts):.1f} % of the supervised tokens"
    parts = [f"max_length cut {_rows(cut)} and with them {lost}"] if cut else []
    if dropped:
        parts.append(f"{_rows(dropped)} without a supervised token left {'was' if dropped == 1 else 'were'} dropped")
    return "; ".join(parts)


def lost_share(facts: JobFacts) -> float:
    """Returns the share of the supervised tokens that truncation took."""
    lost = facts.lost_supervised_tokens
    return lost / max(1, lost + sum(facts.supervised_tokens.values()))


def job_of(session: Session) -> Job:
    """Returns what stays the same for every trial of the run."""
    plan, sizes = session.plan, _split_sizes(session)
    best = recommended_candidates(plan, session.settings)
    return Job(
        model=plan.model.path or plan.model.id,
        revision=plan.model.revision if plan.model.format == "hub" else None,
        data_files=plan.data.files,
        data_hash=plan.data.content_hash,
        data_format=plan.data.format,
        columns=plan.data.columns,
        on_bad_row=plan.data.on_bad_row,
        split_by=plan.data.split_by,
        max_length=max(entry.candidate.max_length for entry in best),
        device=plan.hardware.device.kind,
        device_selector=plan.hardware.device.selector,
        memory_limit_bytes=max(entry.available_bytes for entry in best),
        cache_folder=str(cache_folder()),
        choose_rows=sizes.choose_rows,
        test_rows=sizes.test_rows,
        seed=session.seed("splits"),
    )


def plan_search(session: Session) -> SavedSchedule:
    """Returns the schedule of the run: from disk, or from a calibration."""
    if session.folder.schedule.exists():
        path = session.folder.schedule
        return from_dict(read_json(path), SavedSchedule, str(path))
    saved = _saved(session, _calibrate(session))
    write_json(session.folder.schedule, saved)
    session.emit("schedule", _describe(saved), **to_dict(saved.schedule))
    for sentence in saved.schedule.cut:
        session.emit("cut", sentence)
    return saved


def score_request(session: Session, name: str, split: SplitName, trained: TrialResult | None) -> ScoreRequest:
    """Returns the request that scores a training, or the untouched base (loaded as the plain recipe loads it)."""
    if trained is None:
        return ScoreRequest(name=name, split=split, candidate=_reference(session.plan), adapter_folder=None)
    assert trained.adapter_folder is not None
    folder = session.folder.path / trained.adapter_folder
    return ScoreRequest(name=name, split=split, candidate=trained.candidate, adapter_folder=str(folder))


def _rows(count: int) -> str:
    return f"{count} row" + ("" if count == 1 else "s")


def _split_sizes(session: Session) -> SplitSizes:
    return split_sizes(session.plan.data.example_count, session.settings.time_budget_seconds)


def _check_splits(session: Session, facts: JobFacts) -> None:
    path = session.folder.splits
    if not path.exists():
        return
    before = from_dict(read_json(path).get("facts"), JobFacts, f"{path}, facts")
    if before.split_hash != facts.split_hash:
        raise RunFolderError(
            f"the data now split differently than when {session.folder.path} was begun (split hash {facts.split_hash}, "
            f"then {before.split_hash}), so its trials cannot be continued; start a new run with another --output"
        )


def _calibrate(session: Session) -> Calibration:
    """Measures a few steps of plain LoRA, or of the first candidate that can be trained, and the untouched base."""
    session.enter(_CALIBRATION, f"measuring {CALIBRATION_STEPS} steps of plain LoRA")
    outcome = _measured_training(session)
    assert outcome.scores is not None
    begun = session.runner.clock()
    untouched = _score_untouched(session)
    load_seconds = max(0.0, session.runner.clock() - begun - untouched.seconds)
    rows = session.job_facts().rows
    # An adapter kept in float32 beside a 16-bit base can double the time of a forward.
    choose_seconds = max(untouched.seconds, outcome.scores.seconds)
    calibration = Calibration(
        seconds_per_step=max(_steady_step_seconds(outcome), 1e-6),
        fixed_seconds=max(0.0, outcome.seconds - outcome.train_seconds - outcome.scores.seconds),
        choose_seconds=choose_seconds,
        test_seconds=load_seconds + choose_seconds * rows["test"] / rows["choose"],
    )
    session.emit("calibrated", _measured(calibration), **to_dict(calibration))
    return calibration


def _steady_step_seconds(outcome: TrainOutcome) -> float:
    """Returns the mean of the steps after the first, which also compiles and allocates."""
    if outcome.first_step_seconds is None or outcome.steps < 2:
        return outcome.train_seconds / outcome.steps
    return (outcome.train_seconds - outcome.first_step_seconds) / (outcome.steps - 1)


def _score_untouched(session: Session) -> Scores:
    """Scores the untouched base on the choose split; always anew, for its time is wanted too."""
    scores = session.runner.score(score_request(session, UNTOUCHED, "choose", None))
    if not math.isfinite(scores.eval_loss):
        raise AutoPeftError(
            f"the untouched base model's held-out loss is {scores.eval_loss}, so nothing can be compared with it; "
            "try another dtype or check the model's files"
        )
    session.folder.write_scores(UNTOUCHED, "choose", scores)
    return scores


def _measured_training(session: Session) -> TrainOutcome:
    errors = []
    for candidate in _calibration_candidates(session):
        folder = session.folder.fresh_adapter_folder(_CALIBRATION)
        request = TrainRequest(
            name=_CALIBRATION,
            candidate=candidate,
            steps=CALIBRATION_STEPS,
            rungs=(),
            seed=session.seed("search"),
            output_folder=str(folder),
        )
        outcome = session.runner.train(request, lambda _: True)
        session.folder.discard(_CALIBRATION)
        if outcome.status == "complete" and outcome.scores is not None:
            return outcome
        errors.append(f"{candidate.method}: {outcome.status}, {outcome.error}")
    raise AutoPeftError(
        f"no candidate could be trained for even {CALIBRATION_STEPS} steps ({'; '.join(errors)}); "
        f"see {session.folder.worker_log}"
    )


def _calibration_candidates(session: Session) -> list[Candidate]:
    best = [entry.candidate for entry in recommended_candidates(session.plan, session.settings)]
    plain = plain_candidate(session.plan)
    fits = plain is not None and isinstance(session.source.price(plain), RankedCandidate)
    return [plain, *best] if plain is not None and fits else best


def _reference(plan: Recommendation) -> Candidate:
    return plain_candidate(plan) or plan.candidates[0].candidate


def _saved(session: Session, calibration: Calibration) -> SavedSchedule:
    task = _task(session)
    schedule = make_schedule(task, calibration)
    now = session.elapsed_seconds()
    limited = schedule.search_seconds is not None
    return SavedSchedule(
        task=task,
        calibration=calibration,
        schedule=schedule,
        search_ends_seconds=now + schedule.search_seconds if schedule.search_seconds is not None else None,
        last_start_seconds=now + latest_start_seconds(task, calibration, schedule) if limited else None,
    )


def _task(session: Session) -> Task:
    best = recommended_candidates(session.plan, session.settings)
    train_rows = session.job_facts().rows["train"]
    remaining, budget = session.remaining_seconds(), session.settings.time_budget_seconds
    margin = MARGIN_SHARE * budget if budget is not None else 0.0
    return Task(
        step_ratios={entry.candidate.method: _step_ratio(session, entry) for entry in best},
        steps_per_epoch=steps_per_epoch(train_rows, best[0].candidate.effective_batch_size),
        epochs=advised_epochs(session.plan.data.example_count),
        trials=session.settings.trials,
        remaining_seconds=None if remaining is None else remaining - margin,
    )


def _step_ratio(session: Session, entry: RankedCandidate) -> float:
    """Returns the dearer of what the method's space states and what the estimates say against plain LoRA."""
    stated = session.source.allowed(entry.candidate.method).step_time_ratio
    plain = session.source.price(_reference(session.plan))
    own_seconds = entry.estimate.seconds_per_step
    if not isinstance(plain, RankedCandidate) or not plain.estimate.seconds_per_step or own_seconds is None:
        return stated
    return max(stated, own_seconds / plain.estimate.seconds_per_step)


def _measured(calibration: Calibration) -> str:
    return (
        f"{calibration.seconds_per_step:.3g} s a step, {calibration.fixed_seconds:.1f} s around each training, "
        f"{calibration.choose_seconds:.1f} s to score the choose split, {calibration.test_seconds:.1f} s the test split"
    )


def _describe(saved: SavedSchedule) -> str:
    schedule, task = saved.schedule, saved.task
    left = "" if task.remaining_seconds is None else f" within {format_duration(max(0.0, task.remaining_seconds))}"
    return (
        f"{schedule.trials} search trials of {schedule.search_steps} steps over {len(schedule.methods)} methods, "
        f"then final trainings of {schedule.final_steps} steps and test scores{left}"
    )
