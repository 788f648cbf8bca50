"""Explanations: every figure is the price's, levers come in order of cost, combinations hold nothing superfluous."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.memory.closed_form import estimate_memory
from autopeft.memory.dominance import dominant_sentences, quantization_sentences
from autopeft.memory.explain import Case, explain
from autopeft.memory.levers import LEVERS, nf4_problem
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model, resolve_target_modules
from autopeft.spaces import suggested_methods
from autopeft.specs import Candidate, Explanation, MemoryEstimate, from_json, to_json
from autopeft.units import GIB

MISTRAL, ROBERTA = load_model("mistral-7b"), load_model("roberta-base")
GPU = load_hardware("rtx-4090").device
RISKS = ("none", "small", "some")


def case(method: str = "lora", model: Any = MISTRAL, available: int = 20 * GIB, **changes: Any) -> Case:
    fields: dict[str, Any] = {"method": method, "r": 16, "lora_alpha": 16.0, "max_length": 2048}
    fields["target_modules"] = resolve_target_modules(model, ("all-linear",))
    if method == "full":
        fields |= {"r": None, "lora_alpha": None, "target_modules": (), "adapter_dtype": None}
    candidate = Candidate(**fields | changes)
    return Case(
        candidate=candidate, model=model, device=GPU, sequence_length=candidate.max_length, available_bytes=available
    )


def price_for(asked: Case):
    return lambda candidate, length: estimate_memory(candidate, asked.model, asked.device, sequence_length=length)


def explained(asked: Case) -> Explanation:
    price = price_for(asked)
    return explain(asked, price(asked.candidate, asked.sequence_length), price)


def required(asked: Case, settings_: dict[str, Any]) -> int:
    changed = replace(asked.candidate, **settings_)
    length = min(asked.sequence_length, changed.max_length)
    return price_for(asked)(changed, length).required_bytes


CASES = st.builds(
    case,
    method=st.sampled_from([name for name in suggested_methods() if name != "loftq"]),
    available=st.integers(1, 80).map(lambda gib: gib * GIB),
    per_device_batch_size=st.integers(1, 12),
    trainer=st.sampled_from(["trl", "transformers"]),
    attention=st.sampled_from(["sdpa", "eager"]),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    max_length=st.sampled_from([256, 1024, 3000]),
    activation_checkpointing=st.booleans(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES)
def test_every_lever_saves_what_the_price_says_and_they_come_by_risk_then_time(asked):
    found = explained(asked)
    for lever in found.levers:
        assert lever.required_bytes == required(asked, lever.settings)
        assert lever.saved_bytes == found.required_bytes - lever.required_bytes > 0
        assert lever.fits == (lever.required_bytes <= asked.available_bytes)
    order = [(RISKS.index(lever.quality_risk), round(lever.seconds_ratio, 2)) for lever in found.levers]
    assert order == sorted(order)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES)
def test_a_combination_fits_and_no_lever_of_it_can_be_left_out(asked):
    found = explained(asked)
    assert found.fits == (found.required_bytes <= asked.available_bytes)
    if found.fits:
        assert found.combination is None
        return
    combination = found.combination
    assert combination is not None
    assert combination.required_bytes == required(asked, combination.settings)
    assert combination.fits == (combination.required_bytes <= asked.available_bytes)
    # Whatever fits alone is never combined with another.
    if any(lever.fits for lever in found.levers):
        assert combination.fits
    if combination.fits and len(combination.levers) > 1:
        assert all(not lever.fits for lever in found.levers if lever.change in combination.levers)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES)
def test_accumulation_keeps_the_effective_batch(asked):
    for lever in explained(asked).levers:
        assert replace(asked.candidate, **lever.settings).effective_batch_size == asked.candidate.effective_batch_size


def test_what_fits_alone_is_found_as_the_only_lever():
    found = explained(case(per_device_batch_size=4, trainer="transformers", available=24 * GIB))
    # 8,192 tokens through 32 blocks: more than a 24 GB card has, and nothing else saves as much at no risk.
    assert not found.fits
    assert [lever.name for lever in found.levers if lever.quality_risk == "none"] == [
        "fused_loss", "micro_batch", "activation_checkpointing",
    ]  # fmt: skip
    assert found.combination is not None
    assert found.combination.settings == {"activation_checkpointing": True}
    assert found.combination.fits


def test_two_levers_are_combined_where_neither_is_enough():
    asked = case(per_device_batch_size=8, available=14 * GIB)
    found = explained(asked)
    assert not any(lever.fits for lever in found.levers if lever.quality_risk in ("none", "small"))
    assert found.combination is not None
    assert found.combination.fits
    assert len(found.combination.levers) == 2
    for setting in found.combination.settings:
        rest = {name: value for name, value in found.combination.settings.items() if name != setting}
        if setting not in ("gradient_accumulation_steps", "double_quantization"):
            assert required(asked, rest) > asked.available_bytes


def test_where_nothing_is_enough_the_strongest_levers_are_named_together():
    found = explained(case(available=GIB))
    assert found.combination is not None
    assert not found.combination.fits
    settings_ = found.combination.settings
    assert settings_["quantization"] == "nf4"
    assert settings_["activation_checkpointing"] is True
    assert settings_["max_length"] == 256
    assert found.combination.required_bytes < min(lever.required_bytes for lever in found.levers)


def test_the_time_of_a_lever_is_the_ratio_of_the_estimates():
    asked = case()
    before = price_for(asked)(asked.candidate, 2048).seconds_per_step
    (lever,) = [lever for lever in explained(asked).levers if lever.name == "activation_checkpointing"]
    after = price_for(asked)(replace(asked.candidate, activation_checkpointing=True), 2048).seconds_per_step
    assert lever.seconds_ratio == pytest.approx(after / before)
    assert lever.seconds_ratio > 1.2


def test_without_a_known_speed_levers_keep_their_own_order():
    asked = replace(case(per_device_batch_size=4), device=replace(GPU, peak_flops={}))
    found = explained(asked)
    assert {lever.seconds_ratio for lever in found.levers} == {None}
    places = [[kind.name for kind in LEVERS].index(lever.name) for lever in found.levers]
    assert places == sorted(places)


def test_quantizing_that_helps_needs_no_explanation():
    # 13.5 GiB of 16-bit weights, and few tokens: the weights are what counts.
    assert explained(case(max_length=256)).quantization == ()


def test_float32_checkpoints_that_eat_the_saving_are_named_with_their_size():
    asked = case(per_device_batch_size=4, quantization="nf4", double_quantization=True, prepare_kbit=True)
    plain, nf4 = (
        price_for(asked)(candidate, 2048)
        for candidate in (
            replace(asked.candidate, quantization="none", double_quantization=False, prepare_kbit=False),
            asked.candidate,
        )
    )
    phase = max(nf4.phases, key=lambda name: nf4.phases[name])
    before, after = (estimate.phase_components[phase]["activations"] for estimate in (plain, nf4))
    first, second, *_ = explained(asked).quantization
    # 7.24 B parameters: 13.49 GiB in bfloat16, and 4.33 GiB in nf4 with 16-bit embeddings and float32 norms.
    assert first.startswith(
        "nf4 stores the base in 4.33 GiB instead of 13.49 GiB, 9.16 GiB less, but the peak rises by"
    )
    grown = f"activations grow by {(after - before) / GIB:.2f} GiB in the {phase} phase: "
    assert second == grown + (
        "prepare_model_for_kbit_training makes norms float32, and with them all that blocks hand on and keep"
    )


def one_phase(**components: float) -> MemoryEstimate:
    """An estimate whose peak, in GiB, is all in the backward."""
    sizes = {name: int(gib * GIB) for name, gib in components.items()}
    peak = sum(sizes.values())
    return MemoryEstimate(
        peak_memory_bytes=peak, peak_reserved_bytes=peak, overhead_bytes=0, required_bytes=peak, components=sizes,
        phases={"backward": peak}, trainable_parameters=1_000_000, seconds_per_step=None, source="closed_form",
        relative_error=0.0, phase_components={"backward": sizes}, peak_operation="nll_loss in lm_head",
    )  # fmt: skip


def test_logits_that_dwarf_the_weights_are_named():
    candidate = case(per_device_batch_size=8, trainer="transformers").candidate
    plain, nf4 = (one_phase(base_weights=gib, logits=6, activations=2) for gib in (2, 1.25))
    assert quantization_sentences(candidate, plain, nf4) == (
        "nf4 stores the base in 1.25 GiB instead of 2.00 GiB, 0.75 GiB less, but the peak falls by 0.75 GiB only "
        "(10.00 GiB -> 9.25 GiB)",
        "stored in bfloat16 the weights are 20% of the peak; quantizing makes nothing else smaller: "
        "logits 6.00 GiB, activations 2.00 GiB",
    )
    where, logits, *_ = dominant_sentences(candidate, MISTRAL, plain, 2048)
    assert where == "the peak of 10.00 GiB is reached in the backward phase, in nll_loss in lm_head"
    assert logits == (
        "logits take 6.00 GiB of it (60%): 32,000 float32 values and their gradients for each of the 16,384 tokens of "
        "a forward (8 x 2,048)"
    )


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (case("full"), "full fine-tuning trains the weights themselves, which nf4 storage freezes"),
        (case(model=ROBERTA, max_length=512), "the classification head of roberta-base would be stored as nf4 too"),
        (replace(case(), device=replace(GPU, supports_nf4=False)), "NVIDIA GeForce RTX 4090 does not support nf4"),
        (replace(case(), model=replace(MISTRAL, stored_quantization="gptq")), "the checkpoint is already quantized"),
    ],
)
def test_the_reason_why_nf4_is_impossible_is_given(asked, problem):
    assert (nf4_problem(asked.candidate, asked.model, asked.device) or "").startswith(problem)


def test_where_nf4_is_impossible_no_lever_offers_it():
    found = explained(replace(case(), device=replace(GPU, supports_nf4=False)))
    assert found.quantization == ("nf4 is no way out: NVIDIA GeForce RTX 4090 does not support nf4 storage",)
    assert "nf4_base" not in {lever.name for lever in found.levers}


def test_a_method_that_lives_on_nf4_is_not_compared_with_a_plain_base():
    assert explained(case("loftq", quantization="nf4")).quantization == ()


def test_a_smaller_rank_keeps_the_scale_of_the_update_and_follows_in_the_initial_rank():
    def rank_lever(method: str, **changes: Any) -> dict[str, Any]:
        asked = case(method, r=64, available=1, **changes)
        (lever,) = [lever for lever in explained(asked).levers if lever.name == "rank"]
        return lever.settings

    assert rank_lever("lora", lora_alpha=128.0) == {"r": 4, "lora_alpha": 8.0}
    # AdaLoRA divides by its initial rank, one and a half times the final one: 96 falls to 6.
    adalora = rank_lever("adalora", lora_alpha=96.0, options={"init_r": 96})
    assert adalora == {"r": 4, "lora_alpha": 6.0, "options": {"init_r": 6}}


def test_a_saved_peft_configuration_is_offered_neither_another_rank_nor_method():
    names = {lever.name for lever in explained(case("dora", r=256, options={"peft_config": "{}"}, available=1)).levers}
    assert names.isdisjoint({"rank", "method"})
    assert "activation_checkpointing" in names


def test_capped_attention_scores_keep_their_eager_kernel():
    capped = load_model("gemma-2-2b")
    assert capped.config["attn_logit_softcapping"] == 50.0
    names = {lever.name for lever in explained(case(model=capped, attention="eager", available=1)).levers}
    assert "fused_attention" not in names
    assert "fused_attention" in {lever.name for lever in explained(case(attention="eager", available=1)).levers}


def test_each_candidate_is_priced_once():
    asked = case(per_device_batch_size=8, available=GIB)
    seen = [to_json(asked.candidate)]

    def price(candidate: Candidate, length: int) -> MemoryEstimate:
        seen.append(to_json(candidate))
        return price_for(asked)(candidate, length)

    explain(asked, price_for(asked)(asked.candidate, 2048), price)
    assert len(seen) == len(set(seen))


def test_growth_is_read_in_the_phase_that_sets_the_quantized_peak():
    def estimate(forward: float, optimizer: float, base: float) -> MemoryEstimate:
        phases = {
            "forward": one_phase(base_weights=base, activations=forward),
            "optimizer": one_phase(base_weights=base, temporaries=optimizer),
        }
        return replace(
            max(phases.values(), key=lambda each: each.peak_memory_bytes),
            phases={name: each.peak_memory_bytes for name, each in phases.items()},
            phase_components={name: each.components for name, each in phases.items()},
        )

    # The plain peak is the optimizer's, where no activation lives; in the forward they do not differ.
    plain, nf4 = estimate(6, 6.5, 4), estimate(6, 1, 3.9)
    sentences = quantization_sentences(case().candidate, plain, nf4)
    assert sentences[0].startswith("nf4 stores the base in 3.90 GiB instead of 4.00 GiB")
    assert not any("grow" in sentence for sentence in sentences)


def test_an_explanation_survives_json():
    found = explained(case(per_device_batch_size=4))
    assert from_json(to_json(found), Explanation, "explanation").required_bytes == found.required_bytes
