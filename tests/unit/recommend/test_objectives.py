from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import NothingFitsError
from autopeft.recommend import recommend
from autopeft.recommend.objectives import MEANINGS, WEIGHTS
from autopeft.specs import Objective, PlanInputs

GIB = 2**30
OBJECTIVES = get_args(Objective)
INPUTS = PlanInputs(model="m", data="d")


@pytest.fixture(scope="module")
def plans(large_model, make_data, make_hardware):
    """The plan of each objective for Llama-3-8B, 10,000 rows and 40 GiB."""
    hardware, data = make_hardware(40 * GIB), make_data()
    return {
        name: recommend(hardware, large_model, data, replace(INPUTS, objective=name), seed=0) for name in OBJECTIVES
    }


def best(plans, objective):
    return plans[objective].candidates[0]


def test_every_objective_has_weights_and_a_meaning():
    assert set(WEIGHTS) == set(MEANINGS) == set(OBJECTIVES)


def test_the_score_is_the_sum_of_its_terms(plans):
    entries = [entry for plan in plans.values() for entry in plan.candidates]
    assert entries
    for entry in entries:
        assert entry.score == pytest.approx(sum(entry.score_terms.values()), abs=1e-3)


def test_no_objective_finds_a_first_candidate_of_better_predicted_quality_than_quality_does(plans):
    points = {name: best(plans, name).quality_points for name in OBJECTIVES}
    assert max(points.values()) == points["quality"]


def test_no_objective_finds_a_faster_first_candidate_than_speed_does(plans):
    seconds = {name: best(plans, name).predicted_seconds for name in OBJECTIVES}
    assert min(seconds.values()) == seconds["speed"]


def test_no_objective_finds_a_leaner_first_candidate_than_memory_does(plans):
    required = {name: best(plans, name).estimate.required_bytes for name in OBJECTIVES}
    assert min(required.values()) == required["memory"]
    assert required["memory"] < 0.5 * required["quality"]


def test_quality_puts_dora_first_where_speed_finds_it_too_slow(plans):
    assert best(plans, "quality").candidate.method == "dora"
    assert best(plans, "speed").candidate.method != "dora"
    assert best(plans, "quality").predicted_seconds > best(plans, "speed").predicted_seconds


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=2)
@given(first=st.integers(GIB, 24 * GIB), second=st.integers(GIB, 24 * GIB))
def test_more_memory_never_worsens_the_best_score_whatever_the_objective(
    small_model, make_data, make_hardware, objective, first, second
):
    scores = []
    for free in sorted((first, second)):
        inputs = replace(INPUTS, objective=objective, methods=("lora", "dora"))
        try:
            plan = recommend(make_hardware(free), small_model, make_data(), inputs, seed=0)
        except NothingFitsError:
            scores.append(float("-inf"))
        else:
            scores.append(plan.candidates[0].score)
    assert scores[0] <= scores[1]


def test_a_budget_above_the_free_memory_is_noted_in_gib(small_model, make_data, make_hardware):
    inputs = replace(INPUTS, budget_memory_bytes=80 * GIB)
    notes = recommend(make_hardware(24 * GIB), small_model, make_data(), inputs, seed=0).notes
    assert any(note.startswith("the budget is 80.00 GiB, but") and "has 24.00 GiB free" in note for note in notes)
