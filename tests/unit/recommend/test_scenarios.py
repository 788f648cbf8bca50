"""Named situations and the method that comes first in each, with the reason that the plan gives for it."""

from pathlib import Path

import pytest
import yaml

from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model
from autopeft.recommend import recommend
from autopeft.recommend.explain import compared_terms, runner_up
from autopeft.specs import PlanInputs

SCENARIOS = yaml.safe_load(Path(__file__).with_name("scenarios.yaml").read_text(encoding="utf-8"))


def test_there_are_a_dozen_scenarios_with_at_least_four_different_first_methods():
    assert len({scenario["name"] for scenario in SCENARIOS}) == len(SCENARIOS) >= 12
    assert len({scenario["first"] for scenario in SCENARIOS}) >= 4


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_the_first_method_of_a_scenario_has_its_reason(scenario, make_data):
    inputs = PlanInputs(model=scenario["model"], data="d", **scenario.get("inputs", {}))
    data = make_data(scenario["rows"], **scenario.get("data", {}))
    plan = recommend(load_hardware(scenario["hardware"]), load_model(scenario["model"]), data, inputs, seed=0)
    first, because = plan.candidates[0], scenario.get("because", {})
    assert first.candidate.method == scenario["first"]
    assert first.candidate.quantization == scenario.get("quantization", first.candidate.quantization)
    if "term" in because:
        speaking = compared_terms(first, runner_up(plan))[:2]
        assert because["term"] in [term.term for term in speaking if term.difference > 0]
    if "claim" in because:
        assert any(because["claim"] in claim.text for claim in first.reasons)
    for method, words in because.get("rejected", {}).items():
        reasons = [entry.reason for entry in plan.rejected if entry.method == method]
        assert reasons
        assert all(words in reason for reason in reasons)
        assert method not in {entry.candidate.method for entry in plan.candidates}
