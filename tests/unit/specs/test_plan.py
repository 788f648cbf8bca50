"""plan.json: what is written is read back the same, and what is no plan is refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import InvalidInputError
from autopeft.specs import (
    Baseline,
    Candidate,
    Claim,
    DatasetProfile,
    Device,
    HardwareProfile,
    LinearLayer,
    MemoryEstimate,
    ModelSpec,
    PlanInputs,
    RankedCandidate,
    Recommendation,
    RejectedCandidate,
    from_json,
    to_json,
)

KEYS = [
    "schema_version",
    "seed",
    "inputs",
    "hardware",
    "model",
    "data",
    "candidates",
    "rejected",
    "baselines",
    "notes",
    "shortened_length",
    "versions",
]
"""In the order of the file."""

GLOSSARY = {
    "method", "r", "lora_alpha", "lora_dropout", "target_modules", "quantization", "dtype", "learning_rate",
    "scheduler", "per_device_batch_size", "gradient_accumulation_steps", "effective_batch_size", "max_length",
    "packing", "activation_checkpointing", "optimizer",
}  # fmt: skip

text = st.text(max_size=8)
size = st.integers(0, 2**45)
positive = st.floats(min_value=1e-9, max_value=1e15)
options = st.dictionaries(text, st.one_of(st.booleans(), st.integers(-(2**53), 2**53), positive, text), max_size=2)
json_value = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), text, st.lists(st.integers(0, 9)))

claims = st.builds(
    Claim,
    about=text,
    text=text,
    basis=st.sampled_from(["measured", "interpolated", "extrapolated", "computed", "asked", "judgement"]),
    source=st.none() | text,
)
candidates = st.builds(
    Candidate,
    method=text,
    r=st.none() | st.integers(1, 512),
    lora_alpha=st.none() | positive,
    target_modules=st.lists(text, max_size=3).map(tuple),
    quantization=st.sampled_from(["none", "int8", "nf4"]),
    double_quantization=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    adapter_dtype=st.none() | st.sampled_from(["float32", "bfloat16"]),
    learning_rate=positive,
    per_device_batch_size=st.integers(1, 64),
    gradient_accumulation_steps=st.integers(1, 64),
    options=options,
)
estimates = st.builds(
    MemoryEstimate,
    peak_memory_bytes=size,
    peak_reserved_bytes=size,
    overhead_bytes=size,
    required_bytes=size,
    components=st.dictionaries(text, size, max_size=2),
    phases=st.dictionaries(text, size, max_size=2),
    trainable_parameters=size,
    seconds_per_step=st.none() | positive,
    source=st.sampled_from(["closed_form", "traced"]),
    relative_error=st.floats(0, 1),
    assumptions=st.lists(text, max_size=2).map(tuple),
)
ranked = st.builds(
    RankedCandidate,
    candidate=candidates,
    estimate=estimates,
    available_bytes=size,
    predicted_seconds=st.none() | positive,
    steps=st.integers(1, 10**6),
    score=st.floats(-1e6, 1e6),
    reasons=st.lists(claims, max_size=2).map(tuple),
)
hardware = st.builds(
    HardwareProfile,
    name=text,
    origin=st.sampled_from(["probed", "catalogue", "file"]),
    devices=st.lists(
        st.builds(
            Device,
            name=text,
            kind=st.sampled_from(["cuda", "cpu"]),
            total_memory_bytes=size,
            free_memory_bytes=size,
            compute_capability=st.none() | st.tuples(st.integers(0, 12), st.integers(0, 9)),
            peak_flops=st.dictionaries(text, positive, max_size=2),
        ),
        min_size=1,
        max_size=2,
    ).map(tuple),
)
models = st.builds(
    ModelSpec,
    id=text,
    format=st.sampled_from(["folder", "gguf", "hub", "profile"]),
    path=st.none() | text,
    revision=st.none() | text,
    model_type=text,
    kind=st.sampled_from(["causal_lm", "encoder"]),
    parameter_count=size,
    parameter_count_source=st.just("config"),
    layers=st.integers(1, 99),
    hidden_size=st.integers(1, 9999),
    intermediate_size=st.integers(1, 9999),
    vocab_size=st.integers(1, 300_000),
    attention_heads=st.integers(1, 99),
    key_value_heads=st.integers(1, 99),
    head_dim=st.integers(1, 512),
    tie_word_embeddings=st.booleans(),
    linear_layers=st.lists(
        st.builds(
            LinearLayer,
            name=text,
            path=text,
            in_features=st.integers(1, 9999),
            out_features=st.integers(1, 9999),
            count=st.integers(1, 99),
            role=st.sampled_from(["attention", "mlp", "head"]),
        ),
        max_size=2,
    ).map(tuple),
    config=st.dictionaries(text, json_value, max_size=2),
)
data = st.builds(
    DatasetProfile,
    source=text,
    files=st.lists(text, max_size=2).map(tuple),
    content_hash=text,
    format=st.sampled_from(["messages", "text"]),
    columns=st.dictionaries(text, text, max_size=2),
    task=st.just("chat"),
    example_count=size,
    total_characters=size,
    token_counts_source=st.sampled_from(["tokenizer.json", "characters"]),
    sampled_examples=size,
    mean_tokens=positive,
    max_tokens=size,
    token_quantiles=st.dictionaries(text, size, max_size=2),
    total_tokens=size,
    supervised_ratio=st.floats(0, 1),
    label_counts=st.dictionaries(text, size, max_size=2),
)
plans = st.builds(
    Recommendation,
    seed=st.integers(0, 2**31),
    inputs=st.builds(
        PlanInputs,
        model=text,
        data=text,
        hardware=text,
        budget_memory_bytes=st.none() | size,
        methods=st.lists(text, max_size=2).map(tuple),
        columns=st.none() | st.dictionaries(text, text, max_size=2),
    ),
    hardware=hardware,
    model=models,
    data=data,
    candidates=st.lists(ranked, max_size=2).map(tuple),
    rejected=st.lists(
        st.builds(RejectedCandidate, method=text, variant=text, reason=text, required_bytes=st.none() | size),
        max_size=2,
    ).map(tuple),
    baselines=st.lists(
        st.builds(Baseline, name=text, candidate=st.none() | candidates, description=text), max_size=2
    ).map(tuple),
    notes=st.lists(text, max_size=2).map(tuple),
)


few = settings(max_examples=25, deadline=None)


@few
@given(plans)
def test_a_plan_is_read_back_as_it_was_written(plan: Recommendation) -> None:
    assert Recommendation.from_dict(plan.to_dict()) == plan


@few
@given(plans)
def test_a_plan_survives_json_text_in_any_json_library(plan: Recommendation) -> None:
    assert Recommendation.from_dict(json.loads(to_json(plan.to_dict()))) == plan
    assert Recommendation.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@few
@given(plans)
def test_the_same_plan_is_the_same_text_byte_for_byte(plan: Recommendation) -> None:
    again = Recommendation.from_dict(json.loads(to_json(plan.to_dict())))
    assert to_json(again.to_dict()) == to_json(plan.to_dict())


@few
@given(plans)
def test_a_plan_has_the_keys_of_the_issue_and_flat_candidates(plan: Recommendation) -> None:
    content = plan.to_dict()
    assert list(content) == KEYS
    for entry, given_entry in zip(content["candidates"], plan.candidates, strict=True):
        assert GLOSSARY | {"estimate", "reasons", "score"} <= set(entry)
        assert "candidate" not in entry
        assert entry["effective_batch_size"] == given_entry.candidate.effective_batch_size


@few
@given(candidates)
def test_candidates_fit_the_json_schema_of_their_type(candidate: Candidate) -> None:
    jsonschema.validate(json.loads(to_json(candidate)), msgspec.json.schema(Candidate))
    assert from_json(to_json(candidate), Candidate, "test") == candidate


@pytest.mark.parametrize("content", [[], "plan", None, {}, {"schema_version": 1}, {"schema_version": 99}])
def test_what_is_no_plan_of_this_version_is_refused_with_what_to_do(content: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"my\.json is no plan of schema version 2 .*autopeft suggest"):
        Recommendation.from_dict(content, "my.json")


@few
@given(plans)
def test_a_wrong_field_is_named_with_its_place(plan: Recommendation) -> None:
    content = plan.to_dict() | {"seed": "zero"}
    with pytest.raises(InvalidInputError, match=r"my\.json: Expected `int`, got `str` - at `\$\.seed`"):
        Recommendation.from_dict(content, "my.json")


@few
@given(plans, st.sampled_from(["inputs", "hardware", "model", "data", "candidates"]))
def test_a_missing_section_is_named(plan: Recommendation, key: str) -> None:
    content = plan.to_dict()
    del content[key]
    with pytest.raises(InvalidInputError, match=f"my.json: .*`{key}`"):
        Recommendation.from_dict(content, "my.json")
