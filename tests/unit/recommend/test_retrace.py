from __future__ import annotations

from dataclasses import replace

import pytest

from autopeft.memory.reference import REFERENCE_VERSIONS
from autopeft.recommend import recommend
from autopeft.recommend.retrace import factory_for, retrace, version_differences
from autopeft.specs import PlanInputs

PLANNED = {"transformers": "5.23", "peft": "0.21", "trl": "1.16"}


@pytest.fixture
def plan(large_model, make_data, make_hardware):
    return recommend(make_hardware(), large_model, make_data(), PlanInputs(model="m", data="d"), seed=0)


@pytest.mark.parametrize(
    ("present", "differing"),
    [
        ({"transformers": "5.23.4", "peft": "0.21.2", "trl": "1.16.0"}, []),
        ({"transformers": "5.24.0", "peft": "0.21.2", "trl": "1.16.0"}, ["transformers"]),
        ({"transformers": "4.57.1", "peft": "0.18.0", "trl": "1.16.9"}, ["peft", "transformers"]),
        ({"transformers": "5.23.0"}, []),
        ({"torch": "2.4.1"}, []),
    ],
)
def test_versions_differ_by_their_first_two_numbers(present, differing):
    assert sorted(version_differences(PLANNED | {"torch": "2.13.0+cpu"}, present)) == differing


def test_a_plan_for_the_same_libraries_comes_back_as_it_is(plan):
    made = replace(plan, versions=PLANNED)
    assert retrace(made, {"transformers": "5.23.9"}, _never) is made


def test_a_plan_for_other_libraries_is_priced_anew_with_a_note(plan):
    asked = []

    def price(candidate, model, device, *, sequence_length):
        asked.append(candidate)
        return next(entry.estimate for entry in plan.candidates if entry.candidate == candidate)

    present = {"transformers": "5.24.0"}
    renewed = retrace(replace(plan, versions=PLANNED), present, price)
    assert len(asked) == len(plan.candidates)
    assert "transformers 5.23 -> 5.24.0" in renewed.notes[0]
    assert renewed.versions == present


def test_a_candidate_traced_with_other_libraries_than_the_plans_is_found(plan):
    first, *rest = plan.candidates
    elsewhere = replace(first, estimate=replace(first.estimate, versions={"transformers": "4.48.1"}))
    mixed = replace(plan, candidates=(elsewhere, *rest), versions=PLANNED)
    priced = retrace(mixed, {"transformers": "5.23.0"}, _known(plan))
    assert "transformers 4.48.1 -> 5.23.0" in priced.notes[0]


def test_a_plan_that_was_priced_again_for_another_device_still_says_its_versions(plan, make_hardware):
    from autopeft.recommend import reprice

    renewed = reprice(plan, make_hardware(40 * 2**30))
    assert renewed.versions["transformers"]
    assert retrace(renewed, {"transformers": "4.50.0"}, _known(renewed)) is not renewed


def test_a_run_prices_its_trials_by_the_trace_where_other_libraries_than_the_closed_forms_are_installed(plan):
    asked = []

    def price(candidate, model, device, *, sequence_length):
        asked.append(candidate)
        return replace(plan.candidates[0].estimate, source="traced", peak_operation="backward: mm")

    values = {"r": 16}
    for versions, source in ((REFERENCE_VERSIONS, "closed_form"), (REFERENCE_VERSIONS | {"peft": "0.13.2"}, "traced")):
        factory = factory_for(plan, versions, price)
        trial = factory.price(factory.candidate("lora", factory.recommended("lora") | values))
        assert trial.estimate.source == source
        assert bool(asked) == (source == "traced")


def _known(plan):
    def price(candidate, model, device, *, sequence_length):
        return next(entry.estimate for entry in plan.candidates if entry.candidate == candidate)

    return price


def _never(*args, **kwargs):
    raise AssertionError("nothing has to be priced")
