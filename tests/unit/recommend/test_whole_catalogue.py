"""What must hold for every device and model of the catalogue: sampled by default, the whole in the slow tests."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import NothingFitsError
from autopeft.profiling.hardware import hardware_names, load_hardware
from autopeft.profiling.model import load_model, model_names
from autopeft.recommend import recommend
from autopeft.recommend.serving import servers
from autopeft.specs import PlanInputs, to_json

METHODS = ("adalora", "dora", "loftq", "lora", "rslora")
INPUTS = PlanInputs(model="m", data="d", methods=METHODS)
DEVICES, MODELS = sorted(hardware_names()), sorted(model_names())
OBJECTIVES = ("quality", "balanced", "memory", "speed", "cost")


def plan_of(device, model, data, **inputs):
    """The plan of a catalogue device and model; None where nothing fits."""
    try:
        return recommend(load_hardware(device), load_model(model), data, replace(INPUTS, **inputs), seed=0)
    except NothingFitsError:
        return None


def check(plan):
    """No candidate needs more than is free; every method is judged, and whatever is out has its reason."""
    free = plan.hardware.device.free_memory_bytes
    assert plan.candidates
    assert all(entry.estimate.required_bytes <= entry.available_bytes <= free for entry in plan.candidates)
    assert all(entry.reason for entry in plan.rejected)
    judged = {entry.candidate.method for entry in plan.candidates} | {entry.method for entry in plan.rejected}
    assert set(METHODS) <= judged


def test_the_catalogue_is_large_enough_for_these_tests_to_mean_something():
    assert len(DEVICES) >= 45
    assert len(MODELS) >= 10
    assert len(METHODS) == 5


@settings(max_examples=8)
@given(device=st.sampled_from(DEVICES), model=st.sampled_from(MODELS), objective=st.sampled_from(OBJECTIVES))
def test_no_recommendation_needs_more_than_is_free(make_data, device, model, objective):
    plan = plan_of(device, model, make_data(5000), objective=objective)
    if plan is not None:
        check(plan)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_no_recommendation_on_any_device_needs_more_than_is_free(make_data, model):
    data, fitting = make_data(5000), 0
    for device, objective in zip(DEVICES, itertools.cycle(OBJECTIVES), strict=False):
        plan = plan_of(device, model, data, objective=objective)
        if plan is not None:
            check(plan)
            fitting += 1
    assert fitting > len(DEVICES) // 4


@settings(max_examples=2)
@given(
    device=st.sampled_from(DEVICES),
    model=st.sampled_from(MODELS),
    objective=st.sampled_from(OBJECTIVES),
    serve=st.none() | st.sampled_from(sorted(servers())),
)
def test_the_same_inputs_give_the_same_plan_byte_for_byte(make_data, device, model, objective, serve):
    plans = [plan_of(device, model, make_data(5000), objective=objective, serve=serve) for _ in range(2)]
    if plans[0] is not None:
        assert to_json(plans[0].to_dict()) == to_json(plans[1].to_dict())
    assert (plans[0] is None) == (plans[1] is None)
