from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.memory.rates import device_rates, efficiency_table, host_rates
from autopeft.memory.step_time import phase_seconds, seconds_from_costs
from autopeft.memory.tracing.request import KernelCost
from autopeft.profiling.hardware import hardware_names, load_hardware
from autopeft.specs import Device

A100 = load_hardware("a100-80gb").device
L40S = load_hardware("l40s").device


def cost(kind="matmul", phase="forward", dtype="bfloat16", flops=0.0, moved_bytes=0.0, launches=1.0) -> KernelCost:
    return KernelCost(phase=phase, kind=kind, dtype=dtype, flops=flops, moved_bytes=moved_bytes, launches=launches)


def seconds(*costs: KernelCost, device: Device = A100) -> float:
    found = seconds_from_costs(costs, device).seconds_per_step
    assert found is not None
    return found


def test_a_large_product_takes_its_flops_over_what_an_a100_reaches():
    # 312 TFLOP/s x 0.78, and 6 microseconds of latency (profiles/efficiency.yaml)
    assert seconds(cost(flops=1e14, moved_bytes=1e9)) == pytest.approx(1e14 / (312e12 * 0.78) + 6e-6)


def test_a_large_element_wise_kernel_takes_its_bytes_over_what_an_a100_reaches():
    # 2,039 GB/s x 0.893, and 3.1 microseconds of latency
    assert seconds(cost("elementwise", moved_bytes=1e11)) == pytest.approx(1e11 / (2.039e12 * 0.893) + 3.1e-6)


def test_the_same_bytes_take_less_time_in_tensors_that_fit_the_cache():
    # 100 kernels of 10 MB: an L40S holds 96 MiB in its cache, 100 kernels of 10 GB fit in none
    small = seconds(cost("elementwise", moved_bytes=1e9, launches=100), device=L40S)
    large = seconds(cost("elementwise", moved_bytes=1e9, launches=1), device=L40S)
    assert small < large


def test_small_kernels_are_bound_by_the_host_that_starts_them():
    calls = cost("call", dtype="", launches=10_000)
    kernels = cost("elementwise", moved_bytes=1e6, launches=5_000)
    # 4.6 microseconds a call of the forward and 3.2 a launch
    assert seconds(calls, kernels) == pytest.approx(10_000 * 4.6e-6 + 5_000 * 3.2e-6)


def test_a_device_that_is_busy_in_the_backward_does_not_wait_for_the_host_of_the_forward_twice():
    forward = cost("call", dtype="", launches=10_000)
    backward = cost(phase="backward", flops=1e14)
    assert seconds(forward, backward) == pytest.approx(0.046 + 1e14 / (312e12 * 0.78) + 6e-6)


def test_work_of_the_forward_hides_the_host_of_the_backward():
    forward = cost(flops=1e14)
    backward = cost("call", phase="backward", dtype="", launches=1_000)
    assert seconds(forward, backward) == seconds(forward)


def test_reading_a_value_costs_the_host_and_no_kernel():
    host, device = phase_seconds([cost("sync", dtype="", launches=3)], A100)["forward"]
    assert host == pytest.approx(3 * host_rates().seconds_by_kind["sync"])
    assert device == 0


def test_a_copy_from_the_host_keeps_host_and_device_waiting():
    # 6.65 GB/s (profiles/efficiency.yaml)
    copied = cost("transfer", moved_bytes=6.65e9)
    assert seconds(copied) == pytest.approx(1.0, rel=1e-4)
    assert seconds(copied, cost(flops=1e14)) == pytest.approx(1.0 + seconds(cost(flops=1e14)), rel=1e-4)


def test_int8_products_run_at_twice_the_16_bit_rate():
    narrow = seconds(cost(dtype="int8", flops=1e15))
    assert narrow == pytest.approx(seconds(cost(dtype="float16", flops=1e15)) / 2, rel=1e-3)


def test_float32_products_are_slower_than_16_bit_ones():
    assert seconds(cost(dtype="float32", flops=1e14)) > 10 * seconds(cost(flops=1e14))


def test_flops_are_those_of_products_alone():
    found = seconds_from_costs([cost(flops=2.0), cost("attention", flops=3.0), cost("elementwise", flops=5.0)], A100)
    assert found.flops_per_step == 5.0


def test_without_a_device_there_are_flops_and_no_seconds():
    found = seconds_from_costs([cost(flops=2.0)], None)
    assert (found.seconds_per_step, found.flops_per_step) == (None, 2.0)
    assert found.assumptions == ("no device was named",)


@pytest.mark.parametrize("lost", ["peak_flops", "memory_bandwidth_bytes_per_second"])
def test_an_unknown_speed_gives_no_seconds_and_says_which(lost):
    unknown = dataclasses.replace(A100, **{lost: {} if lost == "peak_flops" else None})
    found = seconds_from_costs([cost(flops=2.0)], unknown)
    assert found.seconds_per_step is None
    assert "unknown" in found.assumptions[0]


def test_a_host_processor_has_no_queue_and_reaches_what_was_measured():
    processor = Device(
        name="cpu",
        kind="cpu",
        total_memory_bytes=2**34,
        free_memory_bytes=2**34,
        memory_bandwidth_bytes_per_second=1e10,
        peak_flops={"float32": 1e11},
    )
    calls = cost("call", dtype="", launches=1_000)
    assert seconds(calls, cost(dtype="float32", flops=1e11), device=processor) == pytest.approx(1.0)


@given(
    flops=st.floats(1e6, 1e15),
    moved=st.floats(1e3, 1e12),
    launches=st.integers(1, 10_000),
    kind=st.sampled_from(["matmul", "attention", "elementwise", "gather", "dequantize", "optimizer", "transfer"]),
)
def test_more_work_never_takes_less_time(flops, moved, launches, kind):
    one = cost(kind, flops=flops, moved_bytes=moved, launches=launches)
    more = dataclasses.replace(one, flops=2 * flops, moved_bytes=2 * moved, launches=2 * launches)
    assert seconds(more) >= seconds(one)


@pytest.mark.parametrize("name", hardware_names())
def test_every_device_of_the_catalogue_has_rates(name):
    device = load_hardware(name).device
    rates = device_rates(device)
    assert all(0 < share <= 1 for share in rates.shares.values())
    assert rates.assumptions


def test_a_device_is_found_before_its_generation():
    assert device_rates(L40S).shares["matmul", "bfloat16"] == 0.5
    assert device_rates(load_hardware("rtx-4090").device).shares["matmul", "bfloat16"] == 0.96


def test_a_generation_that_is_not_listed_takes_the_next_older_ones_figures():
    newest = dataclasses.replace(A100, name="new", compute_capability=(12, 0))
    assert device_rates(newest).shares["matmul", "bfloat16"] == 0.803


def test_every_fact_has_a_source_and_a_date():
    table = efficiency_table()
    facts = [*table.efficiencies, *table.caches, *table.latencies, *table.host, *table.transfers]
    assert len(facts) > 20
    assert all(fact.source.strip() and fact.checked.year >= 2026 for fact in facts)
