"""Habits of a loop, each by what it must cost: figures written out from the shapes of the tiny llama."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autopeft.memory.trace import trace_memory
from autopeft.specs import StepStyle

pytest.importorskip("torch")

ROWS, LENGTH, VOCABULARY = 2, 256, 1000
QUERY, KEYS, LAYERS = 128, 64, 4


@pytest.fixture
def traced(llama, make_candidate):
    def trace(style: StepStyle = StepStyle(), **changes):  # noqa: B008
        candidate = make_candidate(trainer="transformers", adapter_dtype="bfloat16", **changes)
        return trace_memory(candidate, llama, None, sequence_length=LENGTH, style=style)

    return trace


def test_held_outputs_keep_the_16_bit_logits_through_the_backward(traced):
    held = traced(StepStyle(outputs_held=True)).phases["backward"] - traced().phases["backward"]
    assert held == pytest.approx(2 * ROWS * LENGTH * VOCABULARY, rel=0.02)


def test_a_cache_of_keys_and_values_that_are_held_costs_nothing_where_attention_keeps_them_anyway(traced):
    """Without a mask flash kernels share keys among heads, and keep the very tensors that the cache holds."""
    with_cache = traced(StepStyle(outputs_held=True, key_value_cache=True)).peak_memory_bytes
    assert with_cache == pytest.approx(traced(StepStyle(outputs_held=True)).peak_memory_bytes, rel=0.001)


def test_a_padding_mask_repeats_keys_and_values_for_every_head(traced):
    """Kept a layer: keys and values for all heads instead of the shared ones, and the mask as a bias, 2 bytes each."""
    more = traced(StepStyle(padded=True)).phase_components["backward"]["activations"]
    more -= traced().phase_components["backward"]["activations"]
    tokens = ROWS * LENGTH
    assert more == pytest.approx(LAYERS * 2 * tokens * (2 * (QUERY - KEYS) + LENGTH), rel=0.05)


def test_gradients_that_are_kept_until_the_next_step_change_no_peak(traced):
    assert traced(StepStyle(gradients_kept=True)).peak_memory_bytes == traced().peak_memory_bytes


def test_an_emptied_cache_reserves_no_more(traced):
    assert traced(StepStyle(cache_emptied=True)).peak_reserved_bytes <= traced().peak_reserved_bytes


def test_required_lies_between_the_peak_and_what_is_reserved_with_room_to_spare(traced):
    found = traced()
    context = 512 * 2**20  # of an unnamed device
    assert found.peak_memory_bytes <= found.required_bytes - context <= found.peak_reserved_bytes


def test_mixed_precision_can_be_switched_off_for_float32_adapters(llama, make_candidate):
    """Without autocast every adapted layer keeps a float32 copy of its input, which autocast casts down again."""
    candidate = make_candidate(trainer="transformers", adapter_dtype="float32")
    on, off = (
        trace_memory(candidate, llama, None, sequence_length=LENGTH, style=StepStyle(mixed_precision=wanted))
        for wanted in (None, False)
    )
    inputs = 4 * QUERY + 2 * QUERY + 384
    copies = LAYERS * ROWS * LENGTH * 2 * inputs
    assert off.phase_components["backward"]["activations"] > on.phase_components["backward"]["activations"] + copies / 2


def test_float32_norms_make_the_residual_stream_float32(traced):
    plain, widened = (
        traced(style, quantization="nf4", activation_checkpointing=True)
        for style in (StepStyle(mixed_precision=True), StepStyle(mixed_precision=True, float32_norms=True))
    )
    # Checkpoints of every layer but the first, whose input the embedding gives in 16 bits.
    wider = (LAYERS - 1) * ROWS * LENGTH * QUERY * 2
    assert widened.phases["forward"] - plain.phases["forward"] >= wider


def test_flash_attention_traces_without_its_package_and_keeps_what_sdpas_flash_kernel_keeps(llama, make_candidate):
    candidate = make_candidate(trainer="transformers")
    sdpa, flash = (
        trace_memory(replace(candidate, attention=name), llama, None, sequence_length=LENGTH)
        for name in ("sdpa", "flash_attention_2")
    )
    assert flash.peak_memory_bytes == pytest.approx(sdpa.peak_memory_bytes, rel=0.001)


def test_float32_logits_that_are_held_cost_four_bytes_an_entry(traced):
    held = traced(StepStyle(outputs_held=True, float32_logits=True)).phases["backward"] - traced().phases["backward"]
    assert held == pytest.approx(4 * ROWS * LENGTH * VOCABULARY, rel=0.02)


def test_inputs_that_frozen_4_bit_layers_keep_are_held_through_the_backward(traced):
    """Nothing else keeps the input of the last matrix of a block's MLP where only attention has adapters."""
    plain, keeping = (
        traced(style, quantization="nf4", target_modules=("q_proj", "v_proj"))
        for style in (StepStyle(), StepStyle(quantized_inputs_kept=True))
    )
    more = keeping.phase_components["backward"]["activations"] - plain.phase_components["backward"]["activations"]
    assert more >= (LAYERS - 1) * ROWS * LENGTH * 384 * 2


def test_denominators_apart_cost_a_second_temporary_of_the_states(traced):
    plain, apart = (traced(style).phases["optimizer"] for style in (StepStyle(), StepStyle(adam_denominators=True)))
    assert apart - plain == pytest.approx(2 * traced().trainable_parameters, rel=0.02)
