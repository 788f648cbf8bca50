"""Target modules match by peft's rule: the whole path, or its end after a dot."""

from __future__ import annotations

import pytest

from autopeft.profiling.model import spec_from_config
from autopeft.specs import LinearLayer, ModelSpec
from autopeft.specs.targets import adapted_layers, matched_modules

UP = LinearLayer(
    name="up_proj", path="model.layers.{layer}.mlp.up_proj", in_features=8, out_features=16, count=4, role="mlp"
)


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512,
    }  # fmt: skip
    return spec_from_config(config, id="toy")


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("up_proj", [0, 1, 2, 3]),
        ("mlp.up_proj", [0, 1, 2, 3]),
        ("layers.2.mlp.up_proj", [2]),
        ("model.layers.0.mlp.up_proj", [0]),
        ("layers.4.mlp.up_proj", []),
        ("proj", []),
        ("p_proj", []),
        ("attn.up_proj", []),
        ("base.model.layers.0.mlp.up_proj", []),
    ],
)
def test_a_name_matches_whole_parts_of_the_end_of_the_path(name: str, indices: list[int]) -> None:
    assert list(matched_modules(UP, name)) == indices


def test_a_layer_that_two_names_match_counts_once(model: ModelSpec) -> None:
    (layer,) = adapted_layers(model, ["up_proj", "layers.1.mlp.up_proj"])
    assert layer.count == 4


def test_the_count_is_what_the_names_match(model: ModelSpec) -> None:
    counts = {layer.name: layer.count for layer in adapted_layers(model, ["q_proj", "layers.3.mlp.down_proj"])}
    assert counts == {"q_proj": 4, "down_proj": 1}
