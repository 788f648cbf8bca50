from __future__ import annotations

import functools
import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from autopeft.memory.tracing.core import trace
from autopeft.memory.tracing.costs import KernelLedger
from autopeft.memory.tracing.recorder import AllocationRecorder, Moment
from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.specs import Candidate, StepStyle

TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
WEIGHTS = 5 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160) + 512 * 64
"""Of all linear layers: query and output, key and value, three of the MLP, the head."""

ROWS, LENGTH = 2, 48
PRODUCTS = ("matmul", "attention")
BOTH = ("q_proj", "v_proj")


class _Options(dict):
    """Options that a cache can take for a key."""

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.items())))


DENSE = _Options(dense_norm=True)


@functools.cache
def traced(**changes) -> TraceAnswer:
    full_depth = changes.pop("full_depth", True)
    style = StepStyle(mixed_precision=False, host_buffers=changes.pop("host_buffers", False))
    fields = {"method": "full", "r": None, "lora_alpha": None, "adapter_dtype": None, "trainer": "transformers"}
    if changes.get("method", "full") != "full":
        fields |= {"r": 4, "lora_alpha": 4.0, "adapter_dtype": "float32", "target_modules": BOTH}
    fields |= {"per_device_batch_size": ROWS, "attention": "eager"}
    return trace(
        TraceRequest(
            candidate=Candidate(**fields | changes),
            model_type="llama",
            config=TINY,
            encoder=False,
            kind="cuda",
            sequence_length=LENGTH,
            style=style,
            full_depth=full_depth,
        )
    )


def flops(answer: TraceAnswer) -> float:
    return sum(cost.flops for cost in answer.costs if cost.kind in PRODUCTS)


def moved(answer: TraceAnswer, *kinds: str, phase: str | None = None) -> float:
    return sum(c.moved_bytes for c in answer.costs if c.kind in kinds and phase in (None, c.phase))


def booked(call) -> dict[str, list[float]]:
    """Kind -> operations, bytes and kernels of a few real calls."""
    recorder = AllocationRecorder(lambda: Moment("forward"))
    with recorder:
        call()
    kinds: dict[str, list[float]] = {}
    for (_, key), sums in recorder.ledger.sums.items():
        entry = kinds.setdefault(key.kind, [0.0, 0.0, 0.0])
        for index, value in enumerate(sums):
            entry[index] += value
    return kinds


@pytest.fixture(scope="module")
def full() -> TraceAnswer:
    return traced()


def test_products_cost_what_torchs_own_counter_finds_in_a_real_step(full):
    model = LlamaForCausalLM(LlamaConfig(**TINY, attn_implementation="eager")).to(torch.bfloat16)
    ids = torch.zeros((ROWS, LENGTH), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert flops(full) == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_full_tuning_costs_six_operations_a_weight_and_token_beside_attention(full):
    # attention: scores and sums, 4 operations a width and position forward, twice that backward (eager: no causal half)
    attention = 12 * 5 * 64 * LENGTH
    assert flops(full) == pytest.approx(ROWS * LENGTH * (6 * WEIGHTS + attention), rel=0.001)


def test_a_frozen_base_costs_four_operations_a_weight_and_checkpointing_two_more():
    plain, again = flops(traced(method="lora")), flops(traced(method="lora", activation_checkpointing=True))
    tokens = ROWS * LENGTH
    in_blocks = WEIGHTS - 512 * 64
    # the first block's input needs no gradient: its query, key and value get none but the adapters' and attention's
    assert plain == pytest.approx(tokens * (4 * WEIGHTS + 12 * 5 * 64 * LENGTH), rel=0.06)
    # torch stops to repeat a block where its backward has all it needs, which is before the MLP's last product
    repeated = 2 * in_blocks + 4 * 5 * 64 * LENGTH
    assert tokens * (repeated - 2 * 5 * 64 * 160) <= again - plain <= tokens * repeated


def test_fused_attention_costs_half_of_the_scores_under_a_causal_mask_and_five_products_backward():
    answer = traced(attention="sdpa")
    attention = sum(cost.flops for cost in answer.costs if cost.kind == "attention")
    assert attention == 5 * (2 + 5) * 2 * ROWS * 4 * LENGTH * LENGTH * 16 / 2


def test_rows_that_flash_attention_joins_do_not_attend_to_each_other():
    joined = traced(attention="flash_attention_2", packing=True)
    apart = traced(attention="flash_attention_2")
    assert flops(joined) == pytest.approx(flops(apart))


def test_the_update_reads_and_writes_every_parameter_twenty_three_times():
    full = traced(weight_decay=0.1)
    # norm 1, clip 2, decay 2, lerp 3, mul 2, addcmul 3, sqrt 2, div 2, add 2, addcdiv 4
    parameters = WEIGHTS + 512 * 64 + 11 * 64
    assert moved(full, "optimizer") == pytest.approx(23 * 2 * parameters, rel=0.01)


def test_costs_of_shallow_traces_grow_to_those_of_the_whole_model(full):
    grown = traced(full_depth=False)
    assert (grown.depths, full.depths) == ((3, 4), (5,))
    for kind in (*PRODUCTS, "elementwise", "gather", "call"):
        shallow = [sum(c.launches for c in grown.costs if c.kind == kind), moved(grown, kind)]
        deep = [sum(c.launches for c in full.costs if c.kind == kind), moved(full, kind)]
        assert shallow == pytest.approx(deep, rel=0.002)


def test_nf4_rebuilds_each_weight_in_the_forward_and_in_the_backward():
    answer = traced(method="lora", quantization="nf4")
    in_blocks = WEIGHTS - 512 * 64
    each = in_blocks * (0.5 + 4 / 64 + 2)
    assert moved(answer, "dequantize", phase="forward") == pytest.approx(each, rel=0.01)
    assert flops(answer) == pytest.approx(flops(traced(method="lora")), rel=0.01)


def test_doras_norm_multiplies_each_weight_once_with_a():
    more = flops(traced(method="dora")) - flops(traced(method="lora"))
    # W times A, 2 operations an entry and rank, of a 64 x 64 and a 32 x 64 matrix in five blocks; forward only
    least = 5 * 2 * 4 * (64 * 64 + 32 * 64)
    assert least <= more < 1.5 * least


def test_pefts_own_norm_moves_matrices_of_the_weights_size():
    moves = [moved(traced(method="dora", **options), "elementwise", "matmul") for options in ({}, {"options": DENSE})]
    # At the least update, scaled update and their sum are written in float32.
    assert moves[1] - moves[0] > 5 * 3 * 4 * (64 * 64 + 32 * 64)


def test_views_cost_a_call_and_no_kernel():
    weight = torch.ones(4, 4)
    assert booked(lambda: weight.t().unsqueeze(0).expand(3, 4, 4)) == {"call": [0.0, 0.0, 3.0]}


def test_an_element_wise_kernel_reads_its_inputs_and_writes_its_output():
    first, second = torch.ones(100), torch.ones(100)
    assert booked(lambda: first + second)["elementwise"] == [100.0, 1200.0, 1.0]


def test_an_input_that_is_given_twice_is_read_once_and_an_expanded_one_as_often_as_it_is_stored():
    values = torch.ones(100)
    assert booked(lambda: values * values)["elementwise"][1] == 800.0
    spread = torch.ones(1).expand(100)
    assert booked(lambda: values + spread)["elementwise"][1] == 804.0


def test_filling_and_copying_do_not_read_what_they_overwrite():
    target, source = torch.ones(100), torch.ones(100)
    assert booked(lambda: target.zero_())["elementwise"][1] == 400.0
    assert booked(lambda: target.copy_(source))["elementwise"][1] == 800.0


def test_a_lookup_reads_the_rows_that_it_returns():
    table, index = torch.ones(1000, 8), torch.tensor([1, 2])
    assert booked(lambda: torch.nn.functional.embedding(index, table))["gather"][1] == 2 * 8 + 2 * (2 * 8 * 4)


def test_a_list_of_tensors_is_a_few_kernels():
    tensors = [torch.ones(10) for _ in range(250)]
    # 110 tensors fit in one multi-tensor kernel of one list
    assert booked(lambda: torch._foreach_mul_(tensors, 2.0))["optimizer"] == [2500.0, 20000.0, 3.0]


def test_reading_a_value_is_a_wait_for_the_device():
    value = torch.ones(1)
    assert booked(lambda: value.item())["sync"] == [0.0, 0.0, 1.0]


def test_a_copy_from_the_hosts_memory_crosses_in_the_dtype_of_its_target_and_waits():
    # While a step is traced, the meta device plays the host and the host processor the device.
    with FakeTensorMode():
        held = torch.empty(100, device="meta")
        found = booked(lambda: held.to("cpu", torch.bfloat16))
    assert found == {"call": [0.0, 0.0, 1.0], "sync": [0.0, 0.0, 1.0], "transfer": [0.0, 200.0, 1.0]}


def test_work_of_the_host_starts_no_kernel():
    with FakeTensorMode():
        held = torch.empty(100, device="meta")
        assert booked(lambda: held + held) == {"call": [0.0, 0.0, 1.0]}


def test_boft_sends_its_permutation_to_the_device_at_every_step_of_a_loop_that_leaves_it_on_the_host():
    config = {"peft_type": "BOFT", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "boft_block_size": 4,
              "boft_n_butterfly_factor": 1}  # fmt: skip
    fields = {"method": "lora", "options": _Options(peft_config=json.dumps(config))}
    sent = {on_host: moved(traced(**fields, host_buffers=on_host), "transfer") for on_host in (False, True)}
    # one permutation of 64 x 64 in bfloat16, in each of five blocks
    assert sent == {False: 0.0, True: 5 * 64 * 64 * 2}


def test_kernels_of_different_sizes_are_summed_apart():
    ledger = KernelLedger()
    ledger.add("elementwise", "float32", 1.0, 1000.0)
    ledger.add("elementwise", "float32", 1.0, 1010.0)
    ledger.add("elementwise", "float32", 1.0, 10**6)
    assert [sums[2] for sums in ledger.sums.values()] == [2, 1]
