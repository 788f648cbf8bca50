"""Budgets are kept, methods are not dropped lightly, and what is cut is said."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autopeft.search.schedule import (
    FLOOR_STEPS,
    Calibration,
    Schedule,
    Task,
    cut_sentences,
    final_steps,
    latest_start_seconds,
    make_schedule,
    split_sizes,
)

RATIOS = {"lora": 1.0, "rslora": 1.0, "dora": 1.26, "loftq": 1.0, "adalora": 1.15}
DEMO = Calibration(seconds_per_step=1.0, fixed_seconds=5.0, choose_seconds=4.0, test_seconds=10.0)


def _task(remaining: float | None, *, trials: int | None = None, rows: int = 880) -> Task:
    return Task(
        step_ratios=RATIOS,
        steps_per_epoch=-(-rows // 8),
        epochs=3 if rows < 1000 else 1,
        trials=trials,
        remaining_seconds=remaining,
    )


def _cost(task: Task, calibration: Calibration, schedule) -> float:
    """What the schedule takes if every step takes what was measured; the dearest method wins."""
    scorings = 1 + len(schedule.rungs)
    ratios = [RATIOS[method] for method in schedule.methods]
    per_trial = [
        calibration.fixed_seconds
        + scorings * calibration.choose_seconds
        + schedule.search_steps * ratio * calibration.seconds_per_step
        for ratio in ratios
    ]
    more = (schedule.trials - len(ratios)) * sum(per_trial) / len(per_trial)
    finals = 2 * (calibration.fixed_seconds + calibration.choose_seconds)
    finals += schedule.final_steps * (1 + max(ratios)) * calibration.seconds_per_step
    return sum(per_trial) + more + finals + (3 + len(ratios)) * calibration.test_seconds


def _shortest_cost(task: Task, calibration: Calibration) -> float:
    """What first trials at the floor, the shortest final trainings and every test score take."""
    methods = tuple(RATIOS)[: task.full_trials]
    floor = min(FLOOR_STEPS, task.full_search_steps)
    shortest = Schedule(
        methods=methods,
        search_steps=floor,
        rungs=(),
        trials=len(methods),
        final_steps=floor,
        search_seconds=None,
        cut=(),
    )
    return _cost(task, calibration, shortest)


def test_the_demo_fits_eight_minutes_with_every_method():
    # 8 minutes less the margin of 8 % and half a minute of preparing and measuring.
    task = _task(0.92 * 480 - 30)
    schedule = make_schedule(task, DEMO)
    assert schedule.methods == tuple(RATIOS)
    assert schedule.trials >= 5
    assert schedule.search_steps >= 20
    assert schedule.final_steps >= 40
    assert _cost(task, DEMO, schedule) <= task.remaining_seconds
    assert schedule.cut == (
        "5 of 20 search trials",
        "each search trial 0.22 epoch instead of 1 epoch (24 of 110 steps)",
        "final training 0.45 epoch instead of 3 epochs (50 of 330 steps)",
    )


def test_without_a_budget_nothing_is_cut():
    schedule = make_schedule(_task(None), DEMO)
    assert (schedule.trials, schedule.search_steps, schedule.final_steps) == (20, 110, 330)
    assert schedule.rungs == (36, 73)
    assert schedule.cut == ()
    assert latest_start_seconds(_task(None), DEMO, schedule) == float("inf")


def test_a_full_final_training_has_the_epochs_of_the_task():
    assert make_schedule(_task(None, rows=8000), DEMO).final_steps == 1000
    assert make_schedule(_task(None, rows=800), DEMO).final_steps == 300


def test_a_limit_of_trials_below_the_methods_drops_the_last_ones_and_says_so():
    schedule = make_schedule(_task(None, trials=3), DEMO)
    assert schedule.methods == ("lora", "rslora", "dora")
    assert schedule.cut == ("3 of 5 methods tried; not tried: loftq, adalora",)


def test_a_hopeless_budget_keeps_one_method_and_says_what_it_would_need():
    schedule = make_schedule(_task(5.0), DEMO)
    assert schedule.methods == ("lora",)
    assert schedule.search_steps == FLOOR_STEPS
    assert "the time budget is exceeded" in schedule.cut[-1]
    assert "but 5.0s are left" in schedule.cut[-1]


@example(remaining=7597.0, step=98.0, fixed=0.0, choose=0.0, test=25.0, rows=1010, trials=None)
@example(remaining=7814.0, step=100.0, fixed=0.0, choose=18.0, test=5.0, rows=42, trials=None)
@given(
    remaining=st.floats(1, 1e6),
    step=st.floats(0.001, 100),
    fixed=st.floats(0, 100),
    choose=st.floats(0, 60),
    test=st.floats(0, 300),
    rows=st.integers(10, 100_000),
    trials=st.none() | st.integers(1, 50),
)
def test_a_schedule_fits_its_budget_or_says_that_it_does_not(remaining, step, fixed, choose, test, rows, trials):
    task = _task(remaining, trials=trials, rows=rows)
    calibration = Calibration(seconds_per_step=step, fixed_seconds=fixed, choose_seconds=choose, test_seconds=test)
    schedule = make_schedule(task, calibration)
    assert len(schedule.methods) >= 1
    assert len(schedule.methods) <= schedule.trials <= task.full_trials
    assert min(FLOOR_STEPS, task.full_steps) <= schedule.search_steps <= schedule.final_steps <= task.full_steps
    assert all(0 < rung < schedule.search_steps for rung in schedule.rungs)
    cost = _cost(task, calibration, schedule)
    if _shortest_cost(task, calibration) > remaining:
        # The test scores of each method's best trial give way before a method does.
        cost -= len(schedule.methods) * test
    # A second rung costs at most an eighth of the steps it may save; the last training is rounded to whole steps.
    slack = max(0, len(schedule.rungs) - 1) * schedule.trials * choose + step
    exceeded = any("exceeded" in sentence for sentence in schedule.cut)
    assert exceeded or cost <= remaining * 1.001 + slack + 1e-6


@given(remaining=st.floats(30, 1e5), more=st.floats(1, 10))
def test_more_time_never_means_fewer_methods_or_shorter_final_trainings(remaining, more):
    less, longer = make_schedule(_task(remaining), DEMO), make_schedule(_task(remaining * more), DEMO)
    assert len(less.methods) <= len(longer.methods)


@given(
    remaining=st.none() | st.floats(-1e4, 1e6),
    fixed=st.floats(0, 1e3),
    step=st.floats(0.01, 50),
    short=st.integers(1, 100),
)
def test_final_trainings_are_at_least_as_long_as_a_trial_and_fit_otherwise(remaining, fixed, step, short):
    steps = final_steps(remaining, fixed, step, short, short + 200)
    assert short <= steps <= short + 200
    if remaining is not None and steps > short:
        assert fixed + steps * step <= remaining * (1 + 1e-9)


@given(rows=st.integers(20, 10**6), budget=st.none() | st.floats(10, 1e5))
def test_at_least_70_percent_of_the_rows_are_trained_on(rows, budget):
    sizes = split_sizes(rows, budget)
    assert sizes.choose_rows >= 2
    assert sizes.test_rows >= 2
    assert rows - sizes.choose_rows - sizes.test_rows >= 0.7 * rows


@pytest.mark.parametrize(
    ("rows", "budget", "expected"), [(10_000, 480.0, (32, 64)), (10_000, None, (256, 1000)), (400, None, (40, 60))]
)
def test_held_out_rows_are_capped_by_the_time_there_is(rows, budget, expected):
    sizes = split_sizes(rows, budget)
    assert (sizes.choose_rows, sizes.test_rows) == expected


def test_cut_sentences_are_about_what_was_given():
    assert cut_sentences(_task(None), tuple(RATIOS), 20, 110, 330) == ()
    assert cut_sentences(_task(None), tuple(RATIOS), 20, 110, 165) == (
        "final training 1.5 epochs instead of 3 epochs (165 of 330 steps)",
    )
