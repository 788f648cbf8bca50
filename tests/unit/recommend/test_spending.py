from dataclasses import replace

import pytest

from autopeft.errors import InvalidInputError, NothingFitsError
from autopeft.recommend import recommend
from autopeft.recommend.spending import Prices, over_limit
from autopeft.specs import PlanInputs

INPUTS = PlanInputs(model="m", data="d", methods=("lora", "dora"))
PRICES = Prices(per_hour=2.0, per_kwh=0.5, power_watts=400.0)


def test_ten_hours_at_400_watts_take_4_kwh():
    assert PRICES.energy_kwh(36_000) == pytest.approx(4.0)


def test_hours_and_energy_add_up():
    assert PRICES.cost(36_000) == pytest.approx(10 * 2.0 + 4 * 0.5)


@pytest.mark.parametrize(
    ("changes", "cost"), [({"per_hour": None}, 2.0), ({"per_kwh": None}, 20.0), ({"power_watts": None}, 20.0)]
)
def test_what_has_no_price_is_left_out(changes, cost):
    assert replace(PRICES, **changes).cost(36_000) == pytest.approx(cost)


def test_without_any_price_or_without_a_time_the_cost_is_unknown():
    assert replace(PRICES, per_hour=None, per_kwh=None).cost(36_000) is None
    assert replace(PRICES, per_hour=None, power_watts=None).cost(36_000) is None
    assert PRICES.cost(None) is None
    assert PRICES.energy_kwh(None) is None


def test_a_broken_limit_is_named_with_numbers():
    assert over_limit(replace(INPUTS, max_seconds=60.0), 90.0, None) == (
        "takes 1m 30s (90 s), --max-time allows 1m 00s (60 s)"
    )
    assert over_limit(replace(INPUTS, max_cost=1.0), 90.0, 1.5) == "costs 1.50, --max-cost allows 1.00"
    assert over_limit(replace(INPUTS, max_cost=0.001), 90.0, 1.5) == "costs 1.50, --max-cost allows 0.001"
    assert over_limit(replace(INPUTS, max_cost=2.0, max_seconds=90.0), 90.0, 1.5) is None


def test_what_takes_too_long_is_rejected_with_its_time(small_model, make_data, make_hardware):
    free = recommend(make_hardware(), small_model, make_data(), INPUTS, seed=0)
    seconds = {entry.candidate.method: entry.predicted_seconds for entry in free.candidates}
    assert seconds["lora"] < seconds["dora"]
    limit = (seconds["lora"] + seconds["dora"]) / 2
    plan = recommend(make_hardware(), small_model, make_data(), replace(INPUTS, max_seconds=limit), seed=0)
    assert all(entry.predicted_seconds <= limit for entry in plan.candidates)
    assert any(entry.candidate.method == "lora" for entry in plan.candidates)


def test_what_costs_too_much_is_rejected_with_its_cost(small_model, make_data, make_hardware):
    inputs = replace(INPUTS, price_per_hour=3600.0, max_cost=1e9, objective="cost")
    free = recommend(make_hardware(), small_model, make_data(), inputs, seed=0)
    least = min(entry.predicted_cost for entry in free.candidates)
    assert least == pytest.approx(min(entry.predicted_seconds for entry in free.candidates))
    plan = recommend(make_hardware(), small_model, make_data(), replace(inputs, max_cost=least), seed=0)
    assert all(entry.predicted_cost <= least for entry in plan.candidates)
    told = [entry.reason for entry in plan.rejected if entry.predicted_seconds is not None]
    assert told
    assert all("--max-cost allows" in reason for reason in told)


def test_where_every_candidate_takes_too_long_the_error_names_the_fastest(small_model, make_data, make_hardware):
    with pytest.raises(NothingFitsError, match=r"the fastest, lora \(base \w+\), takes .* --max-time allows 1.0s"):
        recommend(make_hardware(), small_model, make_data(), replace(INPUTS, max_seconds=1.0), seed=0)


def test_a_limit_on_cost_without_a_price_is_refused(small_model, make_data, make_hardware):
    with pytest.raises(InvalidInputError, match=r"needs a price, and test GPU has none; .*--price-per-hour"):
        recommend(make_hardware(), small_model, make_data(), replace(INPUTS, max_cost=5.0), seed=0)


@pytest.mark.parametrize("field", ["price_per_hour", "price_per_kwh", "max_cost", "max_seconds"])
def test_a_negative_price_or_limit_is_refused(field, small_model, make_data, make_hardware):
    name = field.replace("max_seconds", "max_time")
    with pytest.raises(InvalidInputError, match=f"{name} cannot be negative: -1"):
        recommend(make_hardware(), small_model, make_data(), replace(INPUTS, **{field: -1.0}), seed=0)


def test_an_unknown_speed_and_an_unknown_price_are_noted(small_model, make_data, make_hardware):
    unknown = make_hardware(peak_flops={})
    plan = recommend(unknown, small_model, make_data(), replace(INPUTS, max_seconds=5.0, objective="cost"), seed=0)
    assert any("no limit on time or cost was checked" in note for note in plan.notes)
    assert any("give one: --price-per-hour" in note for note in plan.notes)
    assert plan.candidates[0].predicted_cost is None
