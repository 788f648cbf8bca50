"""Every PEFT configuration traces: the published ones, and one of each type that the installed peft knows.

The published configurations and their counts of trained parameters are those of Hugging Face's comparison of PEFT
methods (github.com/huggingface/peft at 5d602fdbff04, method_comparison/MetaMathQA/results, Apache-2.0).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from autopeft.memory.tracing.core import trace
from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.specs import Candidate, StepStyle


def _records() -> Any:
    """Returns the module of the benchmarks that reads published rows."""
    path = Path(__file__).parents[2] / "benchmarks" / "accuracy" / "records.py"
    spec = importlib.util.spec_from_file_location("accuracy_records_of_the_registry_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORDS = _records()
ROWS = {
    row.location.rpartition("/")[2].removesuffix(".json"): row
    for row in RECORDS.load_rows()
    if row.source == "peft_metamath"
}

QUICK = (
    "full-finetuning--llama-3.2-3B-lr_0.00001",
    "ia3--llama-3.2-3B-lr_0.001",
    "lily--llama-3.2-3B-rank896-a2-b2-s2.0",
    "lora--llama-3.2-3B-rank32-dora",
    "lora--llama-3.2-3B-rank32-lorafa",
    "ptuning--llama-3.2-3B-default",
    "randlora--llama-3.2-3B-default",
    "shira--llama-3.2-3B-lr_0.0003-random_seed_42",
)
"""One of each way to build an adapter; the others take a minute together."""


MORE_TRAINED = {"adalora--llama-3.2-3B-rank32": 56}
"""Row -> parameters that the installed peft trains and the record's did not: casting an adapter to float32 makes
AdaLoRA's counters of ranks, one a layer, require gradients since peft 0.21 (tried on a real model of bfloat16)."""


def _named(names: Any, quick: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def _request(row: Any) -> TraceRequest:
    options = {} if row.peft_config is None else {"peft_config": json.dumps(row.peft_config)}
    candidate = dataclasses.replace(
        row.candidate,
        method="full" if row.peft_config is None else "lora",
        optimizer="lorafa" if row.optimizer_class == "lora-fa" else row.candidate.optimizer,
        options=options,
    )
    config = RECORDS.load_models()[row.model].config
    return TraceRequest(
        candidate=candidate,
        model_type="llama",
        config=config,
        encoder=False,
        kind="cuda",
        sequence_length=row.sequence_length,
        style=StepStyle(mixed_precision=False, outputs_held=True, key_value_cache=True, padded=True),
    )


def test_all_36_published_configurations_are_there() -> None:
    assert len(ROWS) == 36
    assert set(QUICK) <= ROWS.keys()


@pytest.mark.parametrize("name", _named(ROWS, QUICK))
def test_a_published_configuration_traces_with_the_published_count_of_trained_parameters(name: str) -> None:
    row = ROWS[name]
    published = re.match(r"([\d,]+) trained parameters", row.notes)
    assert published is not None, "the row says how many parameters its run trained"
    expected = int(published[1].replace(",", "")) + MORE_TRAINED.get(name, 0)
    assert trace(_request(row)).trainable_parameters == expected


TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}

TARGETS = {"target_modules": ["q_proj", "v_proj"]}
VIRTUAL_TOKENS = {"num_virtual_tokens": 4}

SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {**TARGETS, "init_r": 8, "target_r": 4, "total_step": 1000, "tinit": 10, "tfinal": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 8},
    "C3A": {**TARGETS, "block_size": 16},
    "CARTRIDGE": VIRTUAL_TOKENS,
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {**TARGETS, "n_frequency": 10},
    "IA3": {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LILY": {**TARGETS, "r": 4, "stride_A": 2, "num_B": 2},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MULTITASK_PROMPT_TUNING": {**VIRTUAL_TOKENS, "num_tasks": 2},
    "POLY": {**TARGETS, "r": 2, "n_tasks": 1},
    "PREFIX_TUNING": VIRTUAL_TOKENS,
    "PROMPT_TUNING": VIRTUAL_TOKENS,
    "P_TUNING": {**VIRTUAL_TOKENS, "encoder_hidden_size": 16},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2]},
    "VBLORA": {**TARGETS, "num_vectors": 8, "vector_length": 16, "r": 2, "topk": 2},
    "WAVEFT": {**TARGETS, "n_frequency": 10},
    "XLORA": {"hidden_size": 64, "adapters": {}},
}
"""What a type needs beside its defaults; all others adapt the queries and the values."""

UNTRACED = {
    "CPT": "its loss counts the different kinds of tokens, which a tensor without values does not have",
    "MULTITASK_PROMPT_TUNING": "its forward needs the number of each row's task, which no batch of ours has",
    "POLY": "its forward needs the number of each row's task, which no batch of ours has",
    "SHADOW": "it puts an object of its own in the place of the hidden states, which attention cannot take",
    "XLORA": "it mixes adapters that were trained before, and none are given",
}
"""peft type -> why it does not trace. All others do."""


@cache
def _types() -> tuple[str, ...]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return tuple(sorted(str(getattr(key, "value", key)) for key in PEFT_TYPE_TO_CONFIG_MAPPING))


def _tiny(peft_type: str, **changes: Any) -> TraceRequest:
    content = {"peft_type": peft_type, "task_type": "CAUSAL_LM", **SETTINGS.get(peft_type, TARGETS)}
    candidate = Candidate(
        method="lora",
        r=8,
        lora_alpha=8.0,
        target_modules=("q_proj",),
        trainer="transformers",
        options={"peft_config": json.dumps(content)},
        **changes,
    )
    style = StepStyle(padded=True)
    return TraceRequest(
        candidate=candidate,
        model_type="llama",
        config=TINY,
        encoder=False,
        kind="cuda",
        sequence_length=32,
        style=style,
    )


def test_the_registry_is_the_one_that_was_tried() -> None:
    assert len(_types()) >= 45
    assert set(UNTRACED) | set(SETTINGS) <= set(_types())


@pytest.mark.parametrize("peft_type", _named(_types(), ("ADALORA", "FROD", "LILY", "LOKR", "POLY", "TINYLORA", "VERA")))
def test_a_type_of_the_registry_traces_alike_from_shallow_models_and_at_full_depth(peft_type: str) -> None:
    request = _tiny(peft_type)
    if peft_type in UNTRACED:
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the library raises; the reason stands above
            trace(request)
        return
    shallow, whole = trace(request), trace(dataclasses.replace(request, full_depth=True))
    assert shallow.trainable_parameters == whole.trainable_parameters > 0
    assert _peak_bytes(shallow) == pytest.approx(_peak_bytes(whole), rel=0.001)


def _peak_bytes(answer: TraceAnswer) -> int:
    return max(sum(part.values()) for part in answer.parts.values())
