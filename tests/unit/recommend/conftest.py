from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autopeft.profiling.model import spec_from_config
from autopeft.specs import DatasetProfile, Device, HardwareProfile, ModelSpec, TruncationPoint

GIB = 2**30


@pytest.fixture(scope="session")
def small_model() -> ModelSpec:
    """SmolLM2-135M: the shape in its config.json."""
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    return spec_from_config(config, id="smollm2-135m")


@pytest.fixture(scope="session")
def large_model() -> ModelSpec:
    """Llama-3-8B: the shape in its config.json."""
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    return spec_from_config(config, id="llama-3-8b")


@pytest.fixture(scope="session")
def make_data() -> Callable[..., DatasetProfile]:
    """Builds the profile of a data set of so many rows, 300 tokens each on average, half of them supervised."""

    def build(rows: int = 10_000, **changes: Any) -> DatasetProfile:
        fields: dict[str, Any] = {
            "source": "train.jsonl",
            "files": ("train.jsonl",),
            "content_hash": "0" * 64,
            "format": "messages",
            "columns": {},
            "task": "chat",
            "example_count": rows,
            "total_characters": 1200 * rows,
            "token_counts_source": "tokenizer.json",
            "sampled_examples": rows,
            "mean_tokens": 300.0,
            "max_tokens": 1500,
            "token_quantiles": {"0.5": 280, "0.99": 900},
            "total_tokens": 300 * rows,
            "supervised_ratio": 0.5,
            "truncation": (
                TruncationPoint(max_length=512, rows_truncated_share=0.1, supervised_tokens_lost_share=0.05),
                TruncationPoint(max_length=1024, rows_truncated_share=0.004, supervised_tokens_lost_share=0.001),
            ),
        }
        return DatasetProfile(**fields | changes)

    return build


@pytest.fixture(scope="session")
def make_hardware() -> Callable[..., HardwareProfile]:
    """Builds a CUDA device with the figures of an A100 (312 TFLOP/s in 16 bits, 2.04 TB/s) and any free memory."""

    def build(free_bytes: int = 80 * GIB, **changes: Any) -> HardwareProfile:
        fields: dict[str, Any] = {
            "name": "test GPU",
            "kind": "cuda",
            "total_memory_bytes": max(free_bytes, 80 * GIB),
            "free_memory_bytes": free_bytes,
            "compute_capability": (8, 0),
            "memory_bandwidth_bytes_per_second": 2.04e12,
            "peak_flops": {"bfloat16": 3.12e14, "float16": 3.12e14, "float32": 1.95e13},
            "supports_bfloat16": True,
            "supports_float16": True,
            "supports_int8": True,
            "supports_nf4": True,
        }
        return HardwareProfile(name="test", origin="file", devices=(Device(**fields | changes),))

    return build
