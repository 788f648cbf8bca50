from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from autopeft.errors import InvalidInputError, ModelError
from autopeft.memory.allocator import MIN_BLOCK_BYTES
from autopeft.memory.trace import trace_memory
from autopeft.memory.tracing.recorder import AllocationRecorder, Moment
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Device

torch = pytest.importorskip("torch")

RTX_4090 = load_hardware("rtx-4090").device
CPU = Device(name="test", kind="cpu", total_memory_bytes=2**34, free_memory_bytes=2**34)


def test_the_recorder_counts_what_lives_and_its_peak():
    here = Moment("here")
    recorder = AllocationRecorder(lambda: here)
    with recorder:
        first = torch.zeros(1000)  # 4,000 bytes are 8 blocks
        second = first.view(10, 100)  # the same storage
        third = first + 1
        del third
        gc.collect()
        fourth = torch.zeros(1)
    assert recorder.peaks[here].bytes == 16 * MIN_BLOCK_BYTES
    assert sum(each.size for each in recorder.live_at(len(recorder.events))) == 9 * MIN_BLOCK_BYTES
    assert second.numel() + fourth.numel() == 1001


def test_components_sum_to_the_peak_and_all_phases_are_there(llama, make_candidate):
    found = trace_memory(make_candidate(), llama, None, sequence_length=64)
    assert found.source == "traced"
    assert sum(found.components.values()) == found.peak_memory_bytes == max(found.phases.values())
    assert set(found.phases) == {"load", "forward", "backward", "optimizer"}


def test_trained_parameters_are_those_of_the_method(llama, make_candidate):
    # r (in + out) of q, k, v, o, gate, up and down in four layers of the tiny llama.
    expected = 8 * 4 * ((128 + 128) + 2 * (128 + 64) + (128 + 128) + 2 * (128 + 384) + (384 + 128))
    assert trace_memory(make_candidate(), llama, None, sequence_length=16).trainable_parameters == expected


def test_adaloras_divisor_is_not_trained_on_a_16_bit_base(llama, make_candidate):
    """peft 0.21 makes it trainable when it moves the adapter to the base's dtype."""
    from autopeft.methods import get_method

    candidate = make_candidate("adalora")
    expected = get_method("adalora").trainable_parameters(candidate, llama)
    assert trace_memory(candidate, llama, None, sequence_length=16).trainable_parameters == expected


def test_more_than_two_accumulated_forwards_change_the_time_only(llama, make_candidate):
    two, eight = (
        trace_memory(make_candidate(gradient_accumulation_steps=steps), llama, RTX_4090, sequence_length=64)
        for steps in (2, 8)
    )
    assert eight.phases == two.phases
    assert 2 < eight.seconds_per_step / two.seconds_per_step <= 4


def test_the_optimizers_form_is_the_target_devices(llama, make_candidate):
    """foreach AdamW on CUDA holds one more copy of all trained parameters than the loop on a host processor."""
    candidate = make_candidate("full", dtype="float32")
    gpu = trace_memory(candidate, llama, None, sequence_length=8).phases["optimizer"]
    host = trace_memory(candidate, llama, CPU, sequence_length=8).phases["optimizer"]
    # The loop holds two temporaries of the tensor at work, here at most the embedding's.
    largest = 4 * 1000 * 128
    workspaces = 2 * 8_519_680  # cuBLAS's, one a thread, which torch allocates (4 x 4,096 + 8 x 16 KiB = 8,320 KiB)
    assert gpu - host - workspaces == pytest.approx(4 * llama.parameter_count - 2 * largest, rel=0.01)


def test_dropout_costs_one_byte_an_element_on_cuda(llama, make_candidate):
    candidate = make_candidate(lora_dropout=0.0, adapter_dtype="float32")
    without = trace_memory(candidate, llama, None, sequence_length=128).phases["forward"]
    dropped = trace_memory(replace(candidate, lora_dropout=0.1), llama, None, sequence_length=128).phases["forward"]
    inputs = 3 * 128 + 128 + 2 * 128 + 384
    assert dropped - without == pytest.approx(256 * 4 * inputs, rel=0.1)


@pytest.mark.parametrize("method", ["dora", "adalora"])
def test_methods_that_keep_more_than_lora_are_seen_to(llama, make_candidate, method):
    lora = trace_memory(make_candidate(), llama, None, sequence_length=64)
    assert (
        trace_memory(make_candidate(method), llama, None, sequence_length=64).peak_memory_bytes > lora.peak_memory_bytes
    )


def test_loftqs_initialization_is_a_phase_of_its_own_with_float32_matrices_beside_the_weights(llama, make_candidate):
    """Original, residual, update, scaled update of the largest layer at least (``autopeft.methods.loftq``)."""
    candidate = make_candidate("loftq", quantization="nf4")
    found = trace_memory(candidate, llama, None, sequence_length=16)
    entries = max(x.in_features * x.out_features for x in llama.linear_layers if x.role in ("attention", "mlp"))
    held = found.phase_components["init"]
    assert 16 * entries < held["temporaries"] < 32 * entries
    assert held["base_weights"] == found.phase_components["load"]["base_weights"]
    plain = trace_memory(make_candidate(quantization="nf4"), llama, None, sequence_length=16)
    assert "init" not in plain.phases
    assert found.phases["backward"] == plain.phases["backward"]


def test_adaloras_three_importance_statistics_a_parameter_are_held_as_states(llama, make_candidate):
    """Importance, its moving average and its uncertainty: as many numbers as there are trained parameters, each."""
    candidate = make_candidate("adalora", adapter_dtype="float32")
    found = trace_memory(candidate, llama, None, sequence_length=16)
    states = 5 * 4 * found.trainable_parameters  # AdamW's two beside them, in float32
    layers = sum(x.count for x in llama.linear_layers if x.quantizable)
    blocks = layers * 3 * 5 * MIN_BLOCK_BYTES  # tensors are rounded up: three factors a layer, five numbers each
    assert states <= found.phase_components["backward"]["optimizer_states"] <= states + 1.2 * blocks


def test_quantized_bases_are_packed(llama, make_candidate):
    load = {
        kind: trace_memory(make_candidate(quantization=kind), llama, None, sequence_length=16).phases["load"]
        for kind in ("none", "int8", "nf4")
    }
    linear = sum(x.count * x.in_features * x.out_features for x in llama.linear_layers if x.quantizable)
    assert load["none"] - load["int8"] == pytest.approx(linear, rel=0.05)
    assert load["none"] - load["nf4"] == pytest.approx(1.4375 * linear, rel=0.05)  # 2 - 1/2 - 4/64 bytes a weight


def test_a_quantized_encoder_is_refused_with_the_reason(make_candidate):
    model = spec_from_config({"model_type": "bert", "num_hidden_layers": 2}, id="bert")
    candidate = replace(
        make_candidate(quantization="nf4"), target_modules=resolve_target_modules(model, ("attention",))
    )
    with pytest.raises(InvalidInputError, match="classification head"):
        trace_memory(candidate, model, None, sequence_length=16)


def test_attention_that_the_model_lacks_is_an_error_that_names_it(make_candidate):
    model = spec_from_config({"model_type": "gemma2"}, id="gemma")
    with pytest.raises(ModelError, match="'gemma2' model cannot be built with attention 'sdpa'"):
        trace_memory(make_candidate(attention="sdpa"), model, None, sequence_length=16)


def test_a_model_without_a_config_is_an_error(llama, make_candidate):
    with pytest.raises(ModelError, match=r"no config\.json"):
        trace_memory(make_candidate(), replace(llama, config={}), None, sequence_length=16)


def test_a_file_may_register_an_architecture_of_its_own(llama, make_candidate, tmp_path):
    from autopeft.memory.trace import answer_to
    from autopeft.memory.tracing.request import TraceRequest

    code = tmp_path / "own.py"
    code.write_text(
        "from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
        "AutoConfig.register('own', OwnConfig)\nAutoModelForCausalLM.register(OwnConfig, OwnModel)\n"
    )
    plain = TraceRequest(
        candidate=make_candidate(),
        model_type="llama",
        config=llama.config,
        encoder=False,
        kind="cuda",
        sequence_length=64,
    )
    own = replace(plain, model_type="own", config={**llama.config, "model_type": "own"}, model_code=str(code))
    assert answer_to(own).parts == answer_to(plain).parts
    code.write_text("1 / 0")
    with pytest.raises(ModelError, match="does not run: ZeroDivisionError"):
        answer_to(replace(own, sequence_length=32, model_code=str(code.rename(tmp_path / "broken.py"))))


def test_batches_of_many_lengths_reserve_more_and_peak_the_same(llama, make_candidate):
    from autopeft.memory.trace import answer_to
    from autopeft.memory.tracing.request import TraceRequest

    config = {**llama.config, "vocab_size": 64000}
    alike = TraceRequest(
        candidate=make_candidate(trainer="transformers"),
        model_type="llama",
        config=config,
        encoder=False,
        kind="cuda",
        sequence_length=512,
    )
    varied = answer_to(replace(alike, batch_orders=(tuple(range(64, 513, 64)),)))
    alone = answer_to(alike)
    assert varied.parts == alone.parts
    assert varied.peak_reserved_bytes > 1.2 * alone.peak_reserved_bytes
