"""A small real plan for the search: the recommender's own, for a toy model, on a catalogue-like device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from autopeft.recommend import recommend
from autopeft.specs import DatasetProfile, Device, HardwareProfile, LinearLayer, ModelSpec, PlanInputs, Recommendation


def toy_model() -> ModelSpec:
    """Two blocks of a llama-like model, 64 wide."""
    path = "model.layers.{layer}."
    layers = [
        LinearLayer(
            name=name, path=path + f"self_attn.{name}", in_features=64, out_features=64, count=2, role="attention"
        )
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    layers += [
        LinearLayer(name=name, path=path + f"mlp.{name}", in_features=64, out_features=128, count=2, role="mlp")
        for name in ("gate_proj", "up_proj")
    ]
    layers += [
        LinearLayer(
            name="down_proj", path=path + "mlp.down_proj", in_features=128, out_features=64, count=2, role="mlp"
        ),
    ]
    return ModelSpec(
        id="toy",
        format="profile",
        path=None,
        revision=None,
        model_type="llama",
        kind="causal_lm",
        parameter_count=130_000,
        parameter_count_source="profile",
        layers=2,
        hidden_size=64,
        intermediate_size=128,
        vocab_size=512,
        attention_heads=4,
        key_value_heads=4,
        head_dim=16,
        tie_word_embeddings=True,
        linear_layers=tuple(layers),
        context_length=512,
        stored_dtype="float32",
    )


def toy_data(rows: int) -> DatasetProfile:
    return DatasetProfile(
        source="toy.jsonl",
        files=("toy.jsonl",),
        content_hash="0" * 64,
        format="prompt_completion",
        columns={"prompt": "prompt", "completion": "completion"},
        task="instruction",
        example_count=rows,
        total_characters=240 * rows,
        token_counts_source="characters",
        sampled_examples=rows,
        mean_tokens=60.0,
        max_tokens=90,
        token_quantiles={"0.5": 60, "0.9": 80, "0.95": 85, "0.99": 90},
        total_tokens=60 * rows,
        supervised_ratio=0.5,
    )


def toy_hardware() -> HardwareProfile:
    device = Device(
        name="toy-cpu",
        kind="cpu",
        total_memory_bytes=8 * 2**30,
        free_memory_bytes=8 * 2**30,
        memory_bandwidth_bytes_per_second=2e10,
        peak_flops={"float32": 1e11, "bfloat16": 1e11},
        supports_int8=True,
        supports_nf4=True,
    )
    return HardwareProfile(name="toy-cpu", origin="file", devices=(device,), host_memory_bytes=8 * 2**30, host_cores=2)


def make_plan(*methods: str, rows: int = 400) -> Recommendation:
    inputs = PlanInputs(model="toy", data="toy.jsonl", methods=methods, effective_batch_size=8)
    return recommend(toy_hardware(), toy_model(), toy_data(rows), inputs, seed=0)


@pytest.fixture(scope="session")
def plan() -> Recommendation:
    """The plan over all methods; plain LoRA stands first, whatever is fastest on so small a model."""
    made = make_plan()
    ordered = sorted(made.candidates, key=lambda entry: entry.candidate.method != "lora")
    return replace(made, candidates=tuple(ordered))


@pytest.fixture(scope="session")
def plan_of() -> Callable[[int], Recommendation]:
    """Makes the plan over two methods for so many rows."""
    return lambda rows: make_plan("lora", "dora", rows=rows)


@pytest.fixture(scope="session")
def two_method_plan() -> Recommendation:
    """A plan small enough for hundreds of searches."""
    return make_plan("lora", "dora")
