"""The learning rate and its claim on known examples; tests/unit/benchmarks/test_priors.py refits the rule."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.recommend import Conditions, advised_learning_rate
from autopeft.recommend.learning_rate import learning_rate_claim
from autopeft.recommend.priors import is_mixture, priors
from autopeft.spaces import all_spaces

TYPICAL = Conditions(r=16, effective_batch_size=32, steps=300)
AS_SWEPT = Conditions(r=32, effective_batch_size=128, steps=780)


def advised(model, method="lora", conditions=TYPICAL, **changes):
    return advised_learning_rate(model, replace(all_spaces()[method], **changes), conditions)


def claim(model, method="lora", conditions=TYPICAL):
    space = all_spaces()[method]
    return learning_rate_claim(model, space, conditions, advised_learning_rate(model, space, conditions))


@pytest.fixture
def swept_model(large_model):
    """Llama-3.1-8B-Instruct has Llama-3-8B's shape."""
    return replace(large_model, id="meta-llama/Llama-3.1-8B-Instruct")


def test_at_the_conditions_of_a_published_sweep_its_best_rate_is_near(swept_model):
    # Tinker's sweep of this model: 3e-4 is best at ranks 4 to 128 on the grid 4e-5, 1e-4, 3e-4, 1e-3.
    assert 2e-4 < advised(swept_model, conditions=AS_SWEPT, scaling=1.0) < 6e-4


@pytest.mark.parametrize("space", all_spaces().values(), ids=all_spaces())
@given(batch=st.integers(1, 4096), steps=st.integers(1, 10**6), r=st.sampled_from((1, 4, 16, 64, 256)))
def test_every_learning_rate_lies_inside_its_space(small_model, large_model, space, batch, steps, r):
    conditions = Conditions(r=r if space.scaling else None, effective_batch_size=batch, steps=steps)
    knob = space.parameters["learning_rate"]
    for model in (small_model, large_model):
        assert knob.low <= advised_learning_rate(model, space, conditions) <= knob.high


@given(batch=st.integers(1, 512), steps=st.integers(10, 10_000), r=st.sampled_from((4, 8, 16, 32)))
def test_the_rate_rises_with_the_batch_and_falls_with_steps_scaling_and_rank(large_model, batch, steps, r):
    conditions = Conditions(r=r, effective_batch_size=batch, steps=steps)
    rate = advised(large_model, conditions=conditions)
    assert advised(large_model, conditions=replace(conditions, effective_batch_size=2 * batch)) >= rate
    assert advised(large_model, conditions=replace(conditions, steps=2 * steps)) <= rate
    assert advised(large_model, conditions=replace(conditions, r=2 * r)) <= rate  # at lora_alpha = r
    assert advised(large_model, conditions=conditions, scaling=2.0) <= rate


def test_beyond_the_evidence_the_nearest_condition_counts(large_model):
    low, _ = priors().learning_rate.covered["batch_size"]
    edge = replace(TYPICAL, effective_batch_size=int(low))
    assert advised(large_model, conditions=replace(edge, effective_batch_size=1)) == advised(
        large_model, conditions=edge
    )


def test_a_method_at_loras_scaling_takes_loras_rate(large_model):
    assert advised(large_model, "rslora") == advised(large_model, "dora") == advised(large_model)


def test_full_fine_tuning_takes_a_tenth_of_loras_rate_at_the_reference(large_model):
    lora = advised(large_model, conditions=AS_SWEPT)
    full = advised(large_model, "full", replace(AS_SWEPT, r=None))
    assert full == pytest.approx(lora / 10, rel=0.05)


@pytest.mark.parametrize(
    ("method", "conditions", "basis"),
    [
        ("lora", AS_SWEPT, "measured"),  # the very model, batch 128
        ("lora", TYPICAL, "interpolated"),  # the same model at a batch that it was not swept at
        ("lora", replace(TYPICAL, effective_batch_size=8), "extrapolated"),  # no sweep below batch 16
        ("lora", replace(TYPICAL, steps=20), "extrapolated"),  # no sweep below 78 steps
        ("dora", AS_SWEPT, "interpolated"),  # swept on two other models
        ("rslora", AS_SWEPT, "computed"),  # LoRA at another scaling
        ("loftq", AS_SWEPT, "extrapolated"),  # nobody swept it
        ("adalora", AS_SWEPT, "judgement"),  # its factor is ours
    ],
)
def test_the_basis_says_how_near_the_evidence_is(swept_model, method, conditions, basis):
    assert claim(swept_model, method, conditions).basis == basis


def test_an_unknown_family_a_width_beyond_and_an_encoder_are_extrapolated(large_model):
    assert claim(large_model).basis == "interpolated"
    for strange in ({"model_type": "mamba"}, {"hidden_size": 16384}, {"kind": "encoder"}):
        assert claim(replace(large_model, **strange)).basis == "extrapolated", strange


def test_a_given_rate_is_not_called_advice(large_model):
    given_rate = learning_rate_claim(large_model, all_spaces()["lora"], TYPICAL, 1e-5)
    assert given_rate.basis == "asked"
    assert "1.0e-05 was given" in given_rate.text


def test_a_mixture_of_experts_is_known_by_its_configuration(large_model):
    assert is_mixture(replace(large_model, config={"num_local_experts": 8}))
    assert not is_mixture(replace(large_model, config={"num_local_experts": 1}))
    assert not is_mixture(large_model)
