"""A traced step against the same step on real tensors, watched by torch's own profiler."""

from __future__ import annotations

import pytest

from autopeft.memory.trace import trace_memory
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Candidate, Device, ModelSpec

torch = pytest.importorskip("torch")

TOKENS = 128
CPU = Device(name="test", kind="cpu", total_memory_bytes=2**34, free_memory_bytes=2**34)
CONFIG = {
    "model_type": "llama",
    "vocab_size": 2000,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize("trainer", ["transformers", "trl"])
def test_the_traced_peak_is_that_of_the_real_step_on_the_host_processor(trainer):
    model = spec_from_config(CONFIG, id="tiny")
    candidate = Candidate(
        method="lora",
        r=8,
        lora_alpha=8.0,
        target_modules=resolve_target_modules(model, ("all-linear",)),
        dtype="float32",
        per_device_batch_size=2,
        trainer=trainer,
    )
    traced = trace_memory(candidate, model, CPU, sequence_length=TOKENS)
    held = traced.components["base_weights"] + traced.components["adapter_weights"]
    held += traced.components["optimizer_states"]
    # torch's profiler sees what the step allocates; it does not see what was there before.
    assert traced.peak_memory_bytes - held == pytest.approx(_profiled_peak_bytes(candidate, model), rel=0.03)


def _profiled_peak_bytes(candidate: Candidate, model: ModelSpec) -> int:
    """Returns the most bytes that the second real training step holds at once, weights and states not counted."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import AutoConfig, AutoModelForCausalLM

    from autopeft.engine.adapters import inject
    from autopeft.engine.loss import prepare_loss
    from autopeft.engine.optimizer import make_optimizer
    from autopeft.engine.step import StepParts, training_step
    from autopeft.methods import MethodContext, get_method

    settings = {name: value for name, value in model.config.items() if name != "model_type"}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings), dtype=torch.float32)
    prepare_loss(base, candidate.trainer)
    adapted = inject(base, candidate, 100).train()
    parts = StepParts(
        model=adapted,
        method=get_method(candidate.method),
        context=MethodContext(candidate=candidate, steps=100, seed=0, weights=None),
        optimizer=make_optimizer(adapted, candidate, foreach=False),
        device_type="cpu",
    )
    rows = torch.zeros(candidate.per_device_batch_size, TOKENS, dtype=torch.long)
    batches = [{"input_ids": rows, "labels": rows}]
    training_step(parts, batches, 1, rows.numel())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training_step(parts, batches, 2, rows.numel())
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak
