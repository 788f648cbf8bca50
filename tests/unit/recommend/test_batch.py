from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autopeft.memory.closed_form import estimate_memory
from autopeft.recommend.batch import divisors, safe_bytes, solve_batch
from autopeft.specs import Candidate

LORA = Candidate(method="lora", r=16, lora_alpha=16.0, target_modules=("q_proj", "v_proj"))


def solve(model, hardware, candidate, effective, available):
    def price(tried):
        return estimate_memory(tried, model, hardware.device, sequence_length=512)

    return solve_batch(candidate, effective, available, price), price


@given(st.integers(1, 100_000))
def test_divisors_divide_and_start_with_the_number_itself(count):
    found = divisors(count)
    assert found[0] == count
    assert found[-1] == 1
    assert all(count % divisor == 0 for divisor in found)


def test_divisors_of_twelve():
    assert divisors(12) == (12, 6, 4, 3, 2, 1)


@given(effective=st.integers(1, 96), available_gib=st.floats(0.1, 90))
def test_the_effective_batch_is_always_exact(small_model, make_hardware, effective, available_gib):
    available = int(available_gib * 2**30)
    solved, price = solve(small_model, make_hardware(), LORA, effective, available)
    assert solved.effective_batch_size == effective
    if price(solved).required_bytes > available:
        assert (solved.per_device_batch_size, solved.activation_checkpointing) == (1, True)


@given(effective=st.sampled_from((1, 2, 7, 12, 24, 32)), available_gib=st.floats(0.8, 12), length=st.integers(8, 1024))
def test_no_larger_batch_would_have_fitted(small_model, make_hardware, effective, available_gib, length):
    def price(tried):
        return estimate_memory(tried, small_model, make_hardware().device, sequence_length=length)

    available = int(available_gib * 2**30)
    solved = solve_batch(LORA, effective, available, price)
    for batch in divisors(effective):
        if batch > solved.per_device_batch_size:
            larger = replace(solved, per_device_batch_size=batch, gradient_accumulation_steps=effective // batch)
            assert safe_bytes(larger, price(larger)) > available


@given(effective=st.sampled_from((2, 7, 12, 24, 32)), available_gib=st.floats(0.8, 12))
def test_a_batch_above_one_leaves_room_for_the_error_of_the_estimate(
    small_model, make_hardware, effective, available_gib
):
    available = int(available_gib * 2**30)
    solved, price = solve(small_model, make_hardware(), LORA, effective, available)
    if solved.per_device_batch_size > 1:
        found = price(solved)
        assert found.required_bytes + found.relative_error * found.peak_memory_bytes <= available


def test_with_ample_memory_one_forward_takes_the_whole_batch(small_model, make_hardware):
    solved, _ = solve(small_model, make_hardware(), LORA, 32, 80 * 2**30)
    assert (solved.per_device_batch_size, solved.activation_checkpointing) == (32, False)


def test_checkpointing_comes_when_no_forward_fits_without_or_when_it_is_faster(small_model, make_hardware):
    _, price = solve(small_model, make_hardware(), LORA, 8, 1)
    one = replace(LORA, per_device_batch_size=1, gradient_accumulation_steps=8)
    solved, _ = solve(small_model, make_hardware(), LORA, 8, price(one).required_bytes)
    # Eight small forwards of a small model wait for the host, so that one which computes twice can be faster.
    assert solved.activation_checkpointing == (solved != one)
    assert price(solved).seconds_per_step <= price(one).seconds_per_step
    solved, _ = solve(small_model, make_hardware(), LORA, 8, price(one).required_bytes - 1)
    assert solved.activation_checkpointing


def test_a_quantized_base_prefers_recomputing_to_many_dequantizations(large_model, make_hardware):
    nf4 = replace(LORA, quantization="nf4", double_quantization=True)
    _, price = solve(large_model, make_hardware(), nf4, 32, 1)
    slow = price(replace(nf4, per_device_batch_size=1, gradient_accumulation_steps=32))
    solved, _ = solve(large_model, make_hardware(), nf4, 32, slow.required_bytes)
    assert price(solved).seconds_per_step <= slow.seconds_per_step
