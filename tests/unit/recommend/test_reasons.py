"""Each claim of a candidate has the right basis on models whose evidence is known."""

from dataclasses import replace

import pytest

from autopeft.recommend import CandidateFactory
from autopeft.recommend.reasons import choice_reasons
from autopeft.specs import PlanInputs


@pytest.fixture
def claims_of(large_model, make_data, make_hardware):
    """Returns the claims of a method's recommended candidate by what they are about, for Llama-3-8B's shape."""

    def claims(method, **changes):
        model = replace(large_model, **changes)
        factory = CandidateFactory(model, make_data(), make_hardware(), PlanInputs(model="m", data="d"))
        candidate = factory.drafts.build(method, factory.recommended(method))
        return {claim.about: claim for claim in choice_reasons(candidate, factory.drafts)}

    return claims


@pytest.mark.parametrize(
    ("method", "model", "basis"),
    [
        ("dora", "meta-llama/Meta-Llama-3-8B", "measured"),  # NVlabs/DoRA compared both on it
        ("dora", "someone/else-8B", "interpolated"),
        ("loftq", "meta-llama/Meta-Llama-3-8B", "measured"),  # LoftQ's README: GSM8K
        ("adalora", "someone/else-8B", "extrapolated"),  # two sources: DeBERTa, BART and Qwen-7B
        ("lora", "meta-llama/Meta-Llama-3-8B", "judgement"),  # what the others are compared with
    ],
)
def test_a_method_is_measured_only_on_a_model_that_it_was_compared_on(claims_of, method, model, basis):
    assert claims_of(method, id=model)["method"].basis == basis


def test_a_method_states_what_was_found_and_how_much_of_it_was_fair(claims_of):
    text = claims_of("dora")["method"].text
    assert "+0.5 points (144 comparisons of 10 sources; +0.2 with both tuned)" in text


@pytest.mark.parametrize(
    ("model", "basis"),
    [("meta-llama/Llama-3.2-3B", "measured"), ("meta-llama/Llama-2-7b-hf", "measured"), ("m", "extrapolated")],
)
def test_targets_are_measured_on_two_models_and_extrapolated_to_all_others(claims_of, model, basis):
    assert claims_of("lora", id=model)["target_modules"].basis == basis


def test_a_quantized_base_is_measured_where_lora_was_compared_on_both(claims_of):
    assert claims_of("loftq", id="microsoft/phi-2")["quantization"].basis == "measured"
    assert claims_of("loftq", id="m")["quantization"].basis == "interpolated"


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "loftq", "adalora", "full"])
def test_every_claim_that_rests_on_evidence_names_where_it_can_be_read(claims_of, method):
    for about, claim in claims_of(method).items():
        if claim.basis in ("measured", "interpolated", "extrapolated"):
            assert claim.source, about
