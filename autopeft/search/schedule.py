"""Divides a budget: how many trials, how many steps each, what is kept for the final trainings and the test scores.

Pure: figures in, figures out. Times are seconds, lengths are optimizer steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autopeft.recommend.advice import SplitSizes, advised_split_sizes
from autopeft.units import format_duration

FLOOR_STEPS = 10
"""A method is dropped before its trial is cut below: AdaLoRA needs as many to move ranks, and a shorter trial says
nothing of its learning rate."""

WANTED_STEPS = 32
"""Trials are lengthened to this before there are more of them than one for each method."""

TRIALS_PER_METHOD = 4
SEARCH_SHARE = 0.6
RUNG_SHARE = 0.25
"""Scoring at rungs may cost this share of a trial's steps: about what pruning saves."""

MARGIN_SHARE = 0.08
TIGHT_SECONDS = 1800.0
TIGHT_CHOOSE_ROWS = 32
TIGHT_TEST_ROWS = 64
"""Rows held out at most below TIGHT_SECONDS, since scoring takes time too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a few steps of plain LoRA took on this machine.

    Attributes:
        seconds_per_step: one optimizer step.
        fixed_seconds: load, inject and save of one training.
        choose_seconds: scoring the choose split once.
        test_seconds: scoring the test split once, the load included.
    """

    seconds_per_step: float
    fixed_seconds: float
    choose_seconds: float
    test_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be scheduled.

    Attributes:
        step_ratios: seconds of one step as a multiple of plain LoRA's, by method, in the order of the first trials.
        steps_per_epoch: optimizer steps over the training rows.
        epochs: of an uncut final training.
        trials: limit that the user gave; None means TRIALS_PER_METHOD for each method.
        remaining_seconds: of the time budget; None means no limit.
    """

    step_ratios: dict[str, float]
    steps_per_epoch: int
    epochs: int
    trials: int | None
    remaining_seconds: float | None

    @property
    def full_steps(self) -> int:
        """Steps of an uncut final training."""
        return self.steps_per_epoch * self.epochs

    @property
    def full_search_steps(self) -> int:
        """Steps of an uncut search trial: a third of the final training."""
        return min(self.full_steps, max(FLOOR_STEPS, math.ceil(self.full_steps / 3)))

    @property
    def full_trials(self) -> int:
        """Search trials without a time budget."""
        return self.trials or TRIALS_PER_METHOD * len(self.step_ratios)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The plan of a search.

    Attributes:
        methods: those that get a first trial, in order; it always runs to its end.
        search_steps: of every search trial, so that all have seen the same tokens.
        rungs: steps after which a trial may be pruned.
        trials: search trials that are expected; where they end sooner, more may follow, up to ``Task.full_trials``.
        final_steps: of the final trainings; decided anew when the search is done.
        search_seconds: no optional trial starts that would end later than this after the schedule; None without limit.
        cut: what the budget cut against the full plan, one sentence each.
    """

    methods: tuple[str, ...]
    search_steps: int
    rungs: tuple[int, ...]
    trials: int
    final_steps: int
    search_seconds: float | None
    cut: tuple[str, ...]


def split_sizes(rows: int, time_budget_seconds: float | None) -> SplitSizes:
    """Returns how many of so many rows are held out; at least 70 % are trained on."""
    sizes = advised_split_sizes(rows)
    if time_budget_seconds is None or time_budget_seconds >= TIGHT_SECONDS:
        return sizes
    return SplitSizes(
        choose_rows=min(sizes.choose_rows, TIGHT_CHOOSE_ROWS), test_rows=min(sizes.test_rows, TIGHT_TEST_ROWS)
    )


def make_schedule(task: Task, calibration: Calibration) -> Schedule:
    """Returns the schedule of a search within the remaining time and the limit of trials."""
    if task.remaining_seconds is None:
        return _unhurried(task)
    usable = task.remaining_seconds - _tests_seconds(len(task.step_ratios), calibration)
    methods = _affordable_methods(task, calibration, usable)
    if len(methods) < len(_mandatory(task)):
        usable = task.remaining_seconds - _tests_seconds(0, calibration)
        methods = _affordable_methods(task, calibration, usable)
    trials = _trials(task, calibration, usable, methods)
    steps, rungs = _steps_and_rungs(task, calibration, usable, methods, trials)
    shortest = _search_seconds(task, calibration, methods, len(methods), steps, len(rungs))
    search_seconds = max(SEARCH_SHARE * usable, shortest)
    last_steps = _final_steps_for(usable - search_seconds, task, calibration, methods, steps)
    return Schedule(
        methods=methods,
        search_steps=steps,
        rungs=rungs,
        trials=trials,
        final_steps=last_steps,
        search_seconds=search_seconds,
        cut=cut_sentences(task, methods, trials, steps, last_steps) + _overrun(task, calibration, methods),
    )


def final_steps(
    remaining_seconds: float | None, fixed_seconds: float, seconds_per_step: float, shortest: int, longest: int
) -> int:
    """Returns the steps that each final training gets, decided with measured figures.

    Args:
        remaining_seconds: left for the final trainings; None without limit.
        fixed_seconds: everything but the steps, of all final trainings together.
        seconds_per_step: one step of each of them, together.
        shortest: steps of a search trial; a final training is never shorter.
        longest: steps of an uncut final training.
    """
    if remaining_seconds is None:
        return longest
    affordable = math.floor((remaining_seconds - fixed_seconds) / seconds_per_step)
    return min(longest, max(shortest, affordable))


def latest_start_seconds(task: Task, calibration: Calibration, schedule: Schedule) -> float:
    """Returns how long after the schedule a first trial may still start, so that the shortest end of the run fits."""
    if task.remaining_seconds is None:
        return math.inf
    finals = _finals_seconds(task, calibration, schedule.methods, schedule.search_steps)
    return task.remaining_seconds - finals - _tests_seconds(0, calibration)


def cut_sentences(task: Task, methods: tuple[str, ...], trials: int, steps: int, last_steps: int) -> tuple[str, ...]:
    """Returns what falls short of the full plan, one sentence each.

    Args:
        task: the full plan.
        methods: that get a first trial.
        trials: search trials.
        steps: of a search trial.
        last_steps: of a final training.
    """
    cut = []
    dropped = [method for method in task.step_ratios if method not in methods]
    if dropped:
        cut.append(f"{len(methods)} of {len(task.step_ratios)} methods tried; not tried: {', '.join(dropped)}")
    if trials < task.full_trials:
        cut.append(f"{trials} of {task.full_trials} search trials")
    for what, given, full in (
        ("each search trial", steps, task.full_search_steps),
        ("final training", last_steps, task.full_steps),
    ):
        if given < full:
            cut.append(f"{what} {_epochs(task, given)} instead of {_epochs(task, full)} ({given} of {full} steps)")
    return tuple(cut)


def _unhurried(task: Task) -> Schedule:
    methods = _mandatory(task)
    return Schedule(
        methods=methods,
        search_steps=task.full_search_steps,
        rungs=_thirds(task.full_search_steps),
        trials=task.full_trials,
        final_steps=task.full_steps,
        search_seconds=None,
        cut=cut_sentences(task, methods, task.full_trials, task.full_search_steps, task.full_steps),
    )


def _mandatory(task: Task) -> tuple[str, ...]:
    return tuple(task.step_ratios)[: task.full_trials]


def _affordable_methods(task: Task, calibration: Calibration, usable: float) -> tuple[str, ...]:
    """Returns the methods whose first trials fit, at the floor if need be, beside the shortest final trainings."""
    methods = _mandatory(task)
    floor = min(FLOOR_STEPS, task.full_search_steps)
    while len(methods) > 1:
        shortest = _search_seconds(task, calibration, methods, len(methods), floor)
        if shortest + _finals_seconds(task, calibration, methods, floor) <= usable:
            break
        methods = methods[:-1]
    return methods


def _trials(task: Task, calibration: Calibration, usable: float, methods: tuple[str, ...]) -> int:
    """Returns the most trials that leave each of them the wanted steps; at least one for each method."""
    wanted = min(WANTED_STEPS, task.full_search_steps)
    one = _search_seconds(task, calibration, methods, 1, wanted)
    room = min(SEARCH_SHARE * usable, usable - _finals_seconds(task, calibration, methods, wanted))
    return max(len(methods), min(task.full_trials, math.floor(room / one)))


def _steps_and_rungs(
    task: Task, calibration: Calibration, usable: float, methods: tuple[str, ...], trials: int
) -> tuple[int, tuple[int, ...]]:
    """Returns the steps of a trial and its rungs at thirds; one, or none, where scoring costs too much.

    A final training is never shorter than a trial, so a trial is no longer than what leaves room for two of those.
    """
    per_step = _mean_ratio(task, methods) * calibration.seconds_per_step
    finals_per_step = _finals_seconds(task, calibration, methods, 1) - _finals_seconds(task, calibration, methods, 0)
    floor = min(FLOOR_STEPS, task.full_search_steps)
    for rungs in (2, 1, 0):
        fixed = _trial_fixed_seconds(calibration, rungs)
        shared = (SEARCH_SHARE * usable / trials - fixed) / per_step
        room = usable - trials * fixed - _finals_seconds(task, calibration, methods, 0)
        affordable = math.floor(min(shared, room / (trials * per_step + finals_per_step)))
        steps = max(floor, min(task.full_search_steps, affordable))
        fits = trials * (fixed + steps * per_step) + _finals_seconds(task, calibration, methods, steps) <= usable
        if fits and rungs * calibration.choose_seconds <= RUNG_SHARE * steps * per_step:
            break
    return steps, _thirds(steps)[:rungs]


def _final_steps_for(
    seconds: float, task: Task, calibration: Calibration, methods: tuple[str, ...], shortest: int
) -> int:
    fixed = 2 * (calibration.fixed_seconds + calibration.choose_seconds)
    per_step = (1 + _largest_ratio(task, methods)) * calibration.seconds_per_step
    return final_steps(seconds, fixed, per_step, shortest, task.full_steps)


def _search_seconds(
    task: Task, calibration: Calibration, methods: tuple[str, ...], trials: int, steps: int, rungs: int = 0
) -> float:
    per_step = _mean_ratio(task, methods) * calibration.seconds_per_step
    return trials * (_trial_fixed_seconds(calibration, rungs) + steps * per_step)


def _finals_seconds(task: Task, calibration: Calibration, methods: tuple[str, ...], steps: int) -> float:
    per_step = (1 + _largest_ratio(task, methods)) * calibration.seconds_per_step
    return 2 * (calibration.fixed_seconds + calibration.choose_seconds) + steps * per_step


def _trial_fixed_seconds(calibration: Calibration, rungs: int) -> float:
    """Returns everything but the steps: load, save, the last scoring and those at the rungs."""
    return calibration.fixed_seconds + (1 + rungs) * calibration.choose_seconds


def _tests_seconds(methods: int, calibration: Calibration) -> float:
    """Returns the test scores of the untouched base, two final trainings and the best trial of each method."""
    return (3 + methods) * calibration.test_seconds


def _mean_ratio(task: Task, methods: tuple[str, ...]) -> float:
    return sum(task.step_ratios[method] for method in methods) / len(methods)


def _largest_ratio(task: Task, methods: tuple[str, ...]) -> float:
    return max(task.step_ratios[method] for method in methods)


def _thirds(steps: int) -> tuple[int, ...]:
    return tuple(sorted({steps // 3, 2 * steps // 3} - {0, steps}))


def _overrun(task: Task, calibration: Calibration, methods: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the sentence that says how far even the smallest plan exceeds the time left; nothing if it does not."""
    floor = min(FLOOR_STEPS, task.full_search_steps)
    needed = _search_seconds(task, calibration, methods, 1, floor) + _tests_seconds(0, calibration)
    needed += _finals_seconds(task, calibration, methods, floor)
    left = max(0.0, task.remaining_seconds or 0.0)
    if needed <= left:
        return ()
    return (
        "the time budget is exceeded: one search trial, the shortest final trainings and their test scores "
        f"need about {format_duration(needed)}, but {format_duration(left)} are left",
    )


def _epochs(task: Task, steps: int) -> str:
    share = steps / task.steps_per_epoch
    return f"{share:.2g} epoch" if share <= 1 else f"{share:.3g} epochs"
