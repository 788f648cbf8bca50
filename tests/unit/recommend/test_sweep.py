from dataclasses import replace

import numpy as np
import pytest

from autopeft.recommend import CandidateFactory, recommend
from autopeft.recommend.sweep import every_form, sweep
from autopeft.specs import PlanInputs, RankedCandidate

GIB = 2**30
INPUTS = PlanInputs(model="m", data="d")


@pytest.fixture(scope="module")
def factory(large_model, make_data, make_hardware):
    """Llama-3-8B, 10,000 rows, 24 GiB."""
    return CandidateFactory(large_model, make_data(), make_hardware(24 * GIB), INPUTS)


@pytest.fixture(scope="module")
def swept(factory):
    return sweep(factory, every_form(factory))


def test_many_forms_at_once_are_priced_and_scored_like_one_by_one(factory, swept):
    places = np.random.default_rng(0).choice(len(swept.candidates), 40, replace=False)
    fitting = set(swept.order.tolist())
    assert 0 < len(fitting) < len(swept.candidates)
    for place in places.tolist():
        candidate = swept.candidates[place]
        ranked = factory.rank(candidate, factory.estimate(candidate))
        assert isinstance(ranked, RankedCandidate) == (place in fitting)
        if isinstance(ranked, RankedCandidate):
            assert ranked.estimate.required_bytes == swept.required_bytes[place]
            assert ranked.score == pytest.approx(swept.score[place], abs=2e-4)
            assert ranked.predicted_seconds == pytest.approx(swept.seconds[place])
            assert ranked.quality_points == pytest.approx(swept.quality_points[place])


@pytest.mark.parametrize("objective", ["speed", "memory"])
def test_objectives_weigh_many_forms_like_one(small_model, make_data, make_hardware, objective):
    factory = CandidateFactory(small_model, make_data(), make_hardware(), replace(INPUTS, objective=objective))
    found = sweep(factory, every_form(factory))
    for place in found.order[::200].tolist():
        candidate = found.candidates[place]
        ranked = factory.rank(candidate, factory.estimate(candidate))
        assert ranked.score == pytest.approx(found.score[place], abs=2e-4)


def test_an_unknown_speed_is_weighed_by_operations(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(), make_hardware(peak_flops={}), INPUTS)
    found = sweep(factory, every_form(factory))
    assert np.isnan(found.seconds).all()
    place = int(found.order[0])
    candidate = found.candidates[place]
    assert factory.rank(candidate, factory.estimate(candidate)).score == pytest.approx(found.score[place], abs=2e-4)


def test_the_best_come_first_and_what_does_not_fit_is_left_out(factory, swept):
    scores = swept.score[swept.order]
    assert (np.diff(scores) <= 0).all()
    assert (swept.required_bytes[swept.order] <= factory.available_bytes).all()


def test_the_front_holds_the_extremes_of_what_fits(swept):
    front = swept.front()
    order = swept.order
    assert 0 < len(front) < len(order)
    assert swept.quality_points[front].max() == swept.quality_points[order].max()
    assert swept.required_bytes[front].min() == swept.required_bytes[order].min()
    assert swept.seconds[front].min() == swept.seconds[order].min()


def test_a_plan_misses_little_of_the_best_form_of_all(factory, swept):
    """A plan walks a ladder and keeps the estimate's error to spare; a sweep looks at every form, to the last byte."""
    plan = recommend(factory.hardware, factory.model, factory.data, INPUTS, seed=0)
    assert plan.candidates[0].score <= swept.score[swept.order[0]] + 1e-3
    assert plan.candidates[0].score > swept.score[swept.order[0]] - 0.1


def test_forms_that_are_too_large_to_keep_are_not_among_them(small_model, make_data, make_hardware):
    inputs = replace(INPUTS, max_adapter_parameters=1_000_000)
    factory = CandidateFactory(small_model, make_data(), make_hardware(), inputs)
    forms = every_form(factory)
    assert forms
    assert all(factory.judge.problem(form) is None for form in forms)
