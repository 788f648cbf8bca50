from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.memory.closed_form import estimate_memory
from autopeft.methods import get_method, method_names
from autopeft.recommend import CandidateFactory, plain_lora, recommend
from autopeft.specs import PlanInputs, RankedCandidate, RejectedCandidate

GIB = 2**30
INPUTS = PlanInputs(model="m", data="d")
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def factory(small_model, make_data, make_hardware):
    return CandidateFactory(small_model, make_data(), make_hardware(), INPUTS)


def test_there_are_methods_to_test():
    assert {"lora", "full"} <= set(method_names())


def test_missing_knobs_take_the_recommended_values(factory):
    candidate = factory.candidate("lora", {})
    assert (candidate.r, candidate.lora_alpha, candidate.quantization) == (16, 16.0, "none")
    assert set(candidate.target_modules) == ALL
    # 4.352e-4, llama 1.063, r and alpha (16 / 32) ** (0.197 - 0.624), batch (32 / 128) ** 0.298, 274 steps
    # (274 / 780) ** -0.261, width (the nearest covered one, 1024 / 4096) ** -0.047: 5.77e-4, to two digits.
    assert candidate.learning_rate == 5.8e-4
    assert candidate.effective_batch_size == 32


def test_alpha_follows_from_rank_and_scaling(factory):
    assert factory.candidate("rslora", {"r": 16}).lora_alpha == 4.0
    # AdaLoRA divides by its initial rank, half as much again as the final one.
    adalora = factory.candidate("adalora", {"r": 8})
    assert (adalora.lora_alpha, adalora.options["init_r"]) == (12.0, 12)


@given(data=st.data())
def test_a_candidate_is_rebuilt_from_its_values(small_model, make_data, make_hardware, data):
    factory = CandidateFactory(small_model, make_data(), make_hardware(16 * GIB), INPUTS)
    method = data.draw(st.sampled_from([name for name in method_names() if get_method(name).closed_form]))
    values = {}
    for name, knob in factory.allowed(method).parameters.items():
        values[name] = data.draw(
            st.sampled_from(knob.choices) if knob.choices else st.floats(knob.low, knob.high), label=name
        )
    candidate = factory.candidate(method, values)
    assert factory.values_of(candidate) == values
    assert factory.candidate(method, factory.values_of(candidate)) == candidate


def test_an_unknown_knob_names_the_known_ones(factory):
    with pytest.raises(UnknownNameError, match="knob of lora 'rank'; known: learning_rate"):
        factory.candidate("lora", {"rank": 8})


@pytest.mark.parametrize("values", [{"r": 5}, {"learning_rate": 1.0}, {"learning_rate": "fast"}])
def test_a_value_outside_the_space_is_an_error(factory, values):
    with pytest.raises(InvalidInputError, match=r"search_spaces/lora\.yaml does not allow"):
        factory.candidate("lora", values)


def test_foreign_target_modules_have_no_values(factory):
    candidate = replace(factory.candidate("lora", {}), target_modules=("q_proj",))
    with pytest.raises(InvalidInputError, match="q_proj are no choice"):
        factory.values_of(candidate)


@pytest.mark.parametrize(
    ("changes", "dtype", "full_dtype"),
    [
        ({}, "bfloat16", "bfloat16"),
        ({"supports_bfloat16": False}, "float16", "float32"),
        ({"kind": "cpu", "supports_bfloat16": False}, "float32", "float32"),
        ({"kind": "cpu"}, "bfloat16", "bfloat16"),
    ],
)
def test_the_device_decides_the_dtype(small_model, make_data, make_hardware, changes, dtype, full_dtype):
    factory = CandidateFactory(small_model, make_data(), make_hardware(**changes), INPUTS)
    assert factory.candidate("lora", {}).dtype == dtype
    assert factory.candidate("full", {}).dtype == full_dtype


def test_float16_states_its_risk(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(), make_hardware(supports_bfloat16=False), INPUTS)
    priced = factory.price(factory.candidate("lora", {}))
    assert any("risk of overflow" in claim.text for claim in priced.reasons)


def test_a_device_without_nf4_has_no_nf4_in_its_spaces(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(), make_hardware(supports_nf4=False), INPUTS)
    assert factory.allowed("lora").parameters["quantization"].choices == ("none",)
    assert factory.why_not("loftq") == "test GPU does not support nf4 storage"
    with pytest.raises(InvalidInputError, match="loftq cannot be searched here"):
        factory.allowed("loftq")


def test_a_base_that_never_fits_in_16_bits_is_quantized_in_the_space(large_model, make_data, make_hardware):
    factory = CandidateFactory(large_model, make_data(), make_hardware(12 * GIB), INPUTS)
    knob = factory.allowed("lora").parameters["quantization"]
    assert (knob.choices, knob.default) == (("nf4",), "nf4")
    assert factory.candidate("lora", {}).quantization == "nf4"
    assert "even its smallest form needs" in factory.why_not("full")


def test_ranks_above_the_layer_width_are_left_out(small_model, make_data, make_hardware):
    layers = tuple(replace(x, out_features=24) if x.name == "k_proj" else x for x in small_model.linear_layers)
    factory = CandidateFactory(replace(small_model, linear_layers=layers), make_data(), make_hardware(), INPUTS)
    assert factory.allowed("rslora").parameters["r"].choices == (4, 8, 16)
    assert factory.candidate("rslora", {}).r == 16


def test_a_model_too_narrow_for_every_rank_says_so(small_model, make_data, make_hardware):
    layers = tuple(replace(x, out_features=2) if x.name == "k_proj" else x for x in small_model.linear_layers)
    factory = CandidateFactory(replace(small_model, linear_layers=layers), make_data(), make_hardware(), INPUTS)
    assert "above 2, the width of the narrowest adapted layer" in factory.why_not("lora")


def test_an_already_quantized_checkpoint_is_not_quantized_again(small_model, make_data, make_hardware):
    model = replace(small_model, stored_quantization="gptq")
    factory = CandidateFactory(model, make_data(), make_hardware(), INPUTS)
    assert factory.allowed("lora").parameters["quantization"].choices == ("none",)
    assert "already quantized (gptq)" in factory.why_not("full")


def test_a_training_too_short_for_a_method_says_how_short(small_model, make_data, make_hardware):
    factory = CandidateFactory(small_model, make_data(20), make_hardware(), INPUTS)
    # 2 rows choose and 3 test; 3 epochs of 15 rows at batch 8 are 6 steps.
    assert "at least 10 optimizer steps to move ranks, not 6" in factory.why_not("adalora")
    assert factory.why_not("lora") is None


def test_available_memory_is_the_lower_of_budget_and_free(small_model, make_data, make_hardware):
    for budget, expected in ((None, 10 * GIB), (4 * GIB, 4 * GIB), (40 * GIB, 10 * GIB)):
        inputs = replace(INPUTS, budget_memory_bytes=budget)
        factory = CandidateFactory(small_model, make_data(), make_hardware(10 * GIB), inputs)
        assert factory.available_bytes == expected


def test_a_price_holds_time_and_reasons(factory):
    priced = factory.price(factory.candidate("lora", {}))
    assert isinstance(priced, RankedCandidate)
    assert priced.predicted_seconds == pytest.approx(priced.estimate.seconds_per_step * 274)
    assert len(priced.reasons) >= 10


def test_the_time_ratio_counts_where_the_formula_does_not_know_the_method(factory, small_model):
    for method, ratio in (("adalora", 1.15), ("dora", 1.0), ("full", 1.0)):
        candidate = factory.candidate(method, {})
        formula = estimate_memory(
            candidate, small_model, factory.hardware.device, sequence_length=factory.advice.sequence_length
        )
        assert factory.estimate(candidate).seconds_per_step == pytest.approx(ratio * formula.seconds_per_step)


def test_a_traced_time_holds_all_that_a_method_does(small_model, make_data, make_hardware):
    def traced(candidate, model, device, *, sequence_length):
        estimate = estimate_memory(candidate, model, device, sequence_length=sequence_length)
        return replace(estimate, source="traced", seconds_per_step=1.0)

    factory = CandidateFactory(small_model, make_data(), make_hardware(), INPUTS, price=traced)
    assert factory.estimate(factory.candidate("adalora", {})).seconds_per_step == 1.0


def test_an_unknown_speed_leaves_the_time_unknown_and_still_ranks(small_model, make_data, make_hardware):
    plan = recommend(make_hardware(peak_flops={}), small_model, make_data(), INPUTS, seed=0)
    assert all(entry.predicted_seconds is None for entry in plan.candidates)
    assert plan.candidates[0].score > plan.candidates[-1].score


def test_what_does_not_fit_is_rejected_with_both_numbers(large_model, make_data, make_hardware):
    factory = CandidateFactory(large_model, make_data(), make_hardware(8 * GIB), INPUTS)
    priced = factory.price(factory.candidate("lora", {"quantization": "none"}))
    assert isinstance(priced, RejectedCandidate)
    assert str(priced.required_bytes) in priced.reason
    assert str(8 * GIB) in priced.reason


def test_the_plain_recipe_is_the_fields(factory):
    recipe = plain_lora(factory)
    assert (recipe.method, recipe.r, recipe.lora_alpha, recipe.learning_rate) == ("lora", 16, 16.0, 2e-4)
    assert set(recipe.target_modules) == ALL
    assert recipe.max_length == factory.advice.max_length
    assert recipe.effective_batch_size == factory.advice.effective_batch_size


def test_the_smallest_form_is_not_larger_than_the_recommended_one(factory, small_model):
    for name in (name for name in method_names() if get_method(name).closed_form):
        for quantization in factory.drafts.quantizations(name):
            smallest = factory.variant(name, quantization).smallest
            candidate = factory.drafts.smallest(name, quantization)
            assert smallest.trainable_parameters == get_method(name).trainable_parameters(candidate, small_model)
            values = {"quantization": quantization} if "quantization" in factory.allowed(name).parameters else {}
            assert smallest.required_bytes <= factory.price(factory.candidate(name, values)).estimate.required_bytes
