from __future__ import annotations

import pytest

from autopeft.memory.timing import BANDWIDTH_EFFICIENCY, MATMUL_EFFICIENCY, estimate_time
from autopeft.specs import Device

GPU = Device(
    name="test",
    kind="cuda",
    total_memory_bytes=2**34,
    free_memory_bytes=2**34,
    memory_bandwidth_bytes_per_second=1e12,
    peak_flops={"bfloat16": 1e14},
)


def test_full_tuning_costs_six_flops_and_a_frozen_base_four_a_weight_and_token(llama, make_candidate):
    weights = sum(layer.count * layer.in_features * layer.out_features for layer in llama.linear_layers)
    length = 2  # attention's quadratic part is negligible
    tokens = 2 * length
    full = estimate_time(make_candidate("full"), llama, None, sequence_length=length).flops_per_step
    assert full == pytest.approx(6 * weights * tokens, rel=0.01)
    lora = estimate_time(make_candidate(r=1), llama, None, sequence_length=length).flops_per_step
    assert lora == pytest.approx(4 * weights * tokens, rel=0.05)


def test_checkpointing_repeats_the_forward(llama, make_candidate):
    plain = estimate_time(make_candidate("full"), llama, None, sequence_length=64).flops_per_step
    again = estimate_time(make_candidate("full", activation_checkpointing=True), llama, None, sequence_length=64)
    assert again.flops_per_step == pytest.approx(plain * 8 / 6)


def test_flops_grow_with_rows_and_accumulation_alike(llama, make_candidate):
    rows = estimate_time(make_candidate(per_device_batch_size=8), llama, None, sequence_length=64)
    steps = estimate_time(make_candidate(gradient_accumulation_steps=4), llama, None, sequence_length=64)
    assert rows.flops_per_step == steps.flops_per_step


def test_seconds_are_flops_over_what_is_reached_of_the_peak_and_bytes_over_bandwidth(llama, make_candidate):
    candidate = make_candidate()
    found = estimate_time(candidate, llama, GPU, sequence_length=512)
    products = found.flops_per_step / (MATMUL_EFFICIENCY["bfloat16"] * 1e14)
    assert found.seconds_per_step > products
    fast = Device(**{name: getattr(GPU, name) for name in GPU.__slots__} | {"memory_bandwidth_bytes_per_second": 2e12})
    moved = found.seconds_per_step - products
    faster = estimate_time(candidate, llama, fast, sequence_length=512).seconds_per_step
    assert faster == pytest.approx(products + moved / 2)
    assert 0 < BANDWIDTH_EFFICIENCY < 1


def test_a_quantized_base_takes_longer(llama, make_candidate):
    plain = estimate_time(make_candidate(), llama, GPU, sequence_length=128).seconds_per_step
    nf4 = estimate_time(make_candidate(quantization="nf4"), llama, GPU, sequence_length=128).seconds_per_step
    assert nf4 > plain


def test_the_ratio_of_the_method_multiplies_the_time(llama, make_candidate):
    once = estimate_time(make_candidate(), llama, GPU, sequence_length=128).seconds_per_step
    dora = estimate_time(make_candidate(), llama, GPU, sequence_length=128, step_time_ratio=1.26).seconds_per_step
    assert dora == pytest.approx(1.26 * once)


@pytest.mark.parametrize("device", [None, Device(name="old", kind="cpu", total_memory_bytes=1, free_memory_bytes=1)])
def test_unknown_speed_gives_no_seconds_and_says_why(llama, make_candidate, device):
    found = estimate_time(make_candidate(), llama, device, sequence_length=128)
    assert found.seconds_per_step is None
    assert found.flops_per_step > 0
    assert len(found.assumptions) == 1
