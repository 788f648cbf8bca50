"""Parameter counts against those that were published, to the last parameter."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from autopeft.profiling.model import spec_from_config, supported_model_types

_FILE = Path(__file__).with_name("published_counts.csv")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def rows() -> list[dict[str, str]]:
    lines = [line for line in _FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def config(row: dict[str, str]) -> dict[str, Any]:
    sizes: dict[str, Any] = {name: int(row[name]) for name in _SIZES}
    return {"model_type": row["model_type"], "tie_word_embeddings": row["tie_word_embeddings"] == "true"} | sizes


KNOWN = [row for row in rows() if row["model_type"] in supported_model_types()]
OTHERS = [row for row in rows() if row["model_type"] not in supported_model_types()]


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row["model"])
def test_a_published_model_is_counted_exactly_without_torch(row: dict[str, str]) -> None:
    assert spec_from_config(config(row), id=row["model"]).parameter_count == int(row["parameters"])


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: row["model"])
def test_a_published_model_of_another_type_is_counted_by_transformers(row: dict[str, str]) -> None:
    pytest.importorskip("transformers")
    assert spec_from_config(config(row), id=row["model"]).parameter_count == int(row["parameters"])


def test_the_table_is_worth_its_name() -> None:
    assert len(KNOWN) >= 40
    assert OTHERS
    assert sum(row["count"] == "listed" for row in rows()) >= 10


# Totals as listed, like those above. Active: Qwen3-30B-A3B's as printed in public tests of its config; Mixtral's is the
# total less six of eight experts, 6 * 32 * 3 * 4096 * 14336. Sizes as in catalogues of the configurations.
MIXTRAL = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
QWEN3_30B = {
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}


@pytest.mark.parametrize(
    ("content", "total", "active"),
    [(MIXTRAL, 46_702_792_704, 12_879_925_248), (QWEN3_30B, 30_532_122_624, 3_353_032_704)],
    ids=["Mixtral-8x7B", "Qwen3-30B-A3B"],
)
def test_of_a_mixture_of_experts_total_and_active_parameters_are_exact(
    content: dict[str, Any], total: int, active: int
) -> None:
    spec = spec_from_config(content, id="mixture")
    assert spec.experts is not None
    assert (spec.parameter_count, spec.experts.active_parameters) == (total, active)
    assert (spec.experts.count, spec.experts.per_token) in ((8, 2), (128, 8))
