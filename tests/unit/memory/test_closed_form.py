from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.memory._static import TrainedTensors, optimizer_state_bytes, quantized_matrix_bytes
from autopeft.memory.closed_form import (
    UnsupportedArchitectureError,
    UnsupportedMethodError,
    covers,
    estimate_many,
    estimate_memory,
)
from autopeft.memory.overhead import WORKSPACES, workspace_bytes
from autopeft.methods import get_method, method_names
from autopeft.specs import Candidate, Device
from autopeft.specs.targets import adapted_layers

CPU = Device(name="test", kind="cpu", total_memory_bytes=2**34, free_memory_bytes=2**34)
KNOWN = [name for name in method_names() if get_method(name).closed_form]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(KNOWN),
    quantization=st.sampled_from(["none", "int8", "nf4"]),
    rows=st.integers(1, 16),
    length=st.integers(8, 2048),
    checkpointing=st.booleans(),
    trainer=st.sampled_from(["trl", "transformers"]),
    attention=st.sampled_from(["sdpa", "eager"]),
    device=st.sampled_from([None, CPU]),
)
def test_components_sum_to_the_peak_which_is_the_largest_phase(
    llama, make_candidate, method, quantization, rows, length, checkpointing, trainer, attention, device
):
    candidate = make_candidate(
        method,
        quantization="none" if method == "full" else quantization,
        per_device_batch_size=rows,
        activation_checkpointing=checkpointing,
        trainer=trainer,
        attention=attention,
    )
    found = estimate_memory(candidate, llama, device, sequence_length=length)
    assert sum(found.components.values()) == found.peak_memory_bytes
    computes_first = {"init"} if method in ("loftq", "eva") else set()
    assert set(found.phases) == {"load", "forward", "backward", "optimizer"} | computes_first
    assert {name: sum(parts.values()) for name, parts in found.phase_components.items()} == found.phases
    assert max(found.phases.values()) == found.peak_memory_bytes
    assert min(found.components.values()) >= 0
    assert found.required_bytes == found.peak_memory_bytes + found.overhead_bytes
    assert found.peak_reserved_bytes >= found.peak_memory_bytes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(KNOWN), length=st.integers(16, 1024), rows=st.integers(1, 8))
def test_more_tokens_never_need_less_memory(llama, make_candidate, method, length, rows):
    quantization = "nf4" if method == "loftq" else "none"
    small = make_candidate(method, quantization=quantization, per_device_batch_size=rows)
    found = estimate_memory(small, llama, None, sequence_length=length)
    for more in (
        estimate_memory(replace(small, per_device_batch_size=rows + 1), llama, None, sequence_length=length),
        estimate_memory(small, llama, None, sequence_length=length + 64),
    ):
        assert more.phases["forward"] > found.phases["forward"]
        assert more.phases["backward"] > found.phases["backward"]
        assert more.peak_memory_bytes >= found.peak_memory_bytes


def test_more_rank_needs_more_memory(llama, make_candidate):
    peaks = [
        estimate_memory(make_candidate(r=r), llama, None, sequence_length=256).peak_memory_bytes for r in (4, 8, 16, 64)
    ]
    assert peaks == sorted(set(peaks))


def test_checkpointing_saves_activations_where_they_dominate(make_spec, make_candidate):
    model = make_spec(num_hidden_layers=32)
    plain = make_candidate(model=model, per_device_batch_size=8, trainer="transformers")
    saved = estimate_memory(plain, model, None, sequence_length=1024)
    recomputed = estimate_memory(replace(plain, activation_checkpointing=True), model, None, sequence_length=1024)
    assert recomputed.peak_memory_bytes < 0.5 * saved.peak_memory_bytes


def test_a_packed_matrix_has_the_size_that_the_qlora_paper_gives_it():
    nf4 = Candidate(method="lora", r=8, lora_alpha=8.0, quantization="nf4")
    # 4096 x 4096 weights: half a byte each; 262,144 blocks of 64 with a float32 scale (0.5 bits a weight more).
    assert quantized_matrix_bytes(nf4, 4096, 4096) == 8_388_608 + 4 * 262_144
    # Doubly quantized: one byte a block and one float32 for 256 of them, 0.127 bits a weight (arXiv 2305.14314, 3).
    double = replace(nf4, double_quantization=True)
    assert quantized_matrix_bytes(double, 4096, 4096) == 8_388_608 + 262_144 + 4 * 1_024
    # int8: a byte each and one float32 a row.
    assert quantized_matrix_bytes(replace(nf4, quantization="int8"), 4096, 4096) == 16_777_216 + 4 * 4096


@pytest.mark.parametrize(
    ("optimizer", "expected_bytes"),
    [
        ("adamw_torch", 2 * 4 * 65_536),
        ("adamw_torch_fused", 2 * 4 * 65_536),
        ("adamw_bnb_8bit", 2 * 65_536 + 8 * 256),
        ("paged_adamw_32bit", 8 * 65_536),
        ("adafactor", 4 * (16 + 4096)),
        ("sgd", 0),
    ],
)
def test_each_optimizer_keeps_its_states_of_a_16_by_4096_factor(optimizer, expected_bytes):
    candidate = Candidate(method="lora", r=16, lora_alpha=16.0, optimizer=optimizer)
    assert optimizer_state_bytes(candidate, [TrainedTensors(16, 4096, 1)], 4) == expected_bytes


def test_large_paged_states_are_not_on_the_device():
    candidate = Candidate(method="full", r=None, lora_alpha=None, optimizer="paged_adamw_32bit")
    assert optimizer_state_bytes(candidate, [TrainedTensors(4096, 4096, 1)], 2) == 0


def test_full_tuning_in_bfloat16_holds_ten_bytes_a_parameter_at_the_optimizer(llama, make_candidate):
    """Weight, gradient, two states and the temporary of foreach AdamW: 2 bytes each; and cuBLAS's two workspaces."""
    found = estimate_memory(make_candidate("full"), llama, None, sequence_length=16)
    assert found.phases["optimizer"] == 10 * llama.parameter_count + WORKSPACES * workspace_bytes(None)


@pytest.mark.parametrize("method", KNOWN)
def test_it_counts_the_parameters_that_the_method_counts(llama, make_candidate, method):
    candidate = make_candidate(method, quantization="nf4" if method == "loftq" else "none")
    found = estimate_memory(candidate, llama, None, sequence_length=64)
    assert found.trainable_parameters == get_method(method).trainable_parameters(candidate, llama)


def test_gradients_stay_while_later_forwards_of_the_same_step_run(llama, make_candidate):
    once = estimate_memory(make_candidate(), llama, None, sequence_length=512)
    thrice = estimate_memory(make_candidate(gradient_accumulation_steps=3), llama, None, sequence_length=512)
    assert thrice.phases["forward"] - once.phases["forward"] == 4 * once.trainable_parameters


def test_an_unknown_architecture_is_refused_with_what_is_known(llama, make_candidate):
    strange = replace(llama, model_type="strange")
    assert covers(llama) is None
    assert "'strange'" in (covers(strange) or "")
    with pytest.raises(UnsupportedArchitectureError, match=r"'strange'.*autopeft\[train\].*known type: bert, deberta"):
        estimate_memory(make_candidate(), strange, None, sequence_length=64)


def test_a_known_type_with_a_setting_that_changes_its_blocks_is_refused(make_spec):
    model = make_spec(hidden_act="relu2")
    assert "hidden_act 'relu2'" in (covers(model) or "")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_candidates_at_once_are_priced_as_each_by_itself(llama, make_candidate, data):
    draw = data.draw
    candidates = [
        make_candidate(
            draw(st.sampled_from(["lora", "dora", "adalora", "rslora"])),
            r=draw(st.integers(1, 64)),
            quantization=draw(st.sampled_from(["none", "nf4"])),
            per_device_batch_size=draw(st.integers(1, 16)),
            gradient_accumulation_steps=draw(st.integers(1, 2)),
            activation_checkpointing=draw(st.booleans()),
        )
        for _ in range(8)
    ]
    lengths = draw(st.lists(st.integers(8, 2048), min_size=8, max_size=8))
    many = estimate_many(candidates, llama, None, sequence_length=lengths)
    for index, (candidate, length) in enumerate(zip(candidates, lengths, strict=True)):
        alone = estimate_memory(candidate, llama, None, sequence_length=length)
        assert many.estimate(index) == alone
        assert many.required_bytes[index] == pytest.approx(alone.required_bytes, abs=4)
        assert many.phases["backward"][index] == pytest.approx(alone.phases["backward"], abs=4)


def test_a_layer_adapted_in_some_blocks_costs_its_share(llama, make_candidate):
    """Between no adapter in the blocks named and one in all: the recording then runs block by block."""
    one = make_candidate(target_modules=("model.layers.2.self_attn.q_proj",))
    every = make_candidate(target_modules=("q_proj",))
    few, all_ = (estimate_memory(each, llama, None, sequence_length=256) for each in (one, every))
    assert few.trainable_parameters * llama.layers == all_.trainable_parameters
    assert few.phases["forward"] < all_.phases["forward"]


def test_rows_longer_than_the_window_of_some_layers_need_a_mask(make_spec, make_candidate):
    """transformers repeats the keys for the heads and keeps a bias of one number for each pair of tokens."""
    windowed = make_spec(model_type="mistral", sliding_window=512)
    unwindowed = make_spec(model_type="mistral", sliding_window=None)
    candidate = make_candidate(model=windowed, per_device_batch_size=2)
    for length, differs in ((511, False), (512, True)):
        one = estimate_memory(candidate, windowed, None, sequence_length=length).phases["forward"]
        other = estimate_memory(candidate, unwindowed, None, sequence_length=length).phases["forward"]
        assert (one > other) == differs


def test_loftq_holds_four_float32_matrices_while_it_computes_its_factors(llama, make_candidate):
    """Of the largest layer: original, residual, update, scaled update (``autopeft.methods.loftq``); factors beside."""
    found = estimate_memory(make_candidate("loftq", quantization="nf4"), llama, None, sequence_length=16)
    entries = max(x.in_features * x.out_features for x in llama.linear_layers if x.role in ("attention", "mlp"))
    held = found.phases["init"] - found.phases["load"]
    assert 16 * entries < held < 32 * entries


def test_it_imports_nothing_of_the_training_stack():
    heavy = "{'torch', 'transformers', 'peft', 'trl', 'bitsandbytes'}"
    code = f"import sys, autopeft.memory.closed_form; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("method", ["ia3", "miss", "oft", "vera"])
def test_it_refuses_a_method_whose_step_it_does_not_know(llama, make_candidate, method):
    with pytest.raises(UnsupportedMethodError, match=f"does not know a step of {get_method(method).title}.*trace"):
        estimate_memory(make_candidate(method), llama, None, sequence_length=64)


def test_the_optimizer_takes_the_root_of_the_moments_of_one_learning_rate_at_a_time(llama, make_candidate):
    """LoRA+ has two: what is free at a time is that of the larger factors, 4 bytes an entry."""
    lora, plus = (
        estimate_memory(make_candidate(name), llama, None, sequence_length=64).phase_components["optimizer"]
        for name in ("lora", "loraplus")
    )
    layers = adapted_layers(llama, make_candidate("lora").target_modules)
    sizes = [sum(each.count * getattr(each, side) for each in layers) for side in ("in_features", "out_features")]
    assert (lora["temporaries"], plus["temporaries"]) == (4 * 8 * sum(sizes), 4 * 8 * max(sizes))
