"""Architectures without a closed form: their shape is read off the model that transformers builds without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import autopeft
from autopeft.errors import ModelError
from autopeft.profiling._built import built_shape
from autopeft.profiling.model import spec_from_config

pytest.importorskip("transformers")

SMALL = {"vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4}
CONFIGS = {
    "falcon": SMALL,
    "gpt_neox": SMALL | {"intermediate_size": 256},
    "opt": SMALL | {"ffn_dim": 256, "word_embed_proj_dim": 64},
    "olmo2": SMALL | {"intermediate_size": 256, "eos_token_id": 1},
    "electra": SMALL | {"embedding_size": 64, "intermediate_size": 256},
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_parameter_of_the_model_that_transformers_builds_is_counted(model_type):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    spec = spec_from_config({"model_type": model_type} | CONFIGS[model_type], id=model_type)
    auto = AutoModelForSequenceClassification if model_type == "electra" else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(model_type, **CONFIGS[model_type]))
    assert spec.kind == ("encoder" if model_type == "electra" else "causal_lm")
    assert spec.parameter_count == sum(parameter.numel() for parameter in model.parameters())
    assert {layer.role for layer in spec.linear_layers} >= {"attention"}
    assert all(layer.count == 5 for layer in spec.linear_layers if layer.role in ("attention", "mlp"))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_what_is_read_off_equals_what_is_known_by_arithmetic(model_type):
    config = {"model_type": model_type} | SMALL | {"intermediate_size": 256, "n_embd": 64, "n_layer": 5, "n_head": 4}
    known, built = spec_from_config(config, id=model_type), built_shape(config, "test")
    assert built is not None
    assert built.parameter_count == known.parameter_count
    assert {(each.name, each.in_features, each.out_features, each.count) for each in built.linear_layers} == {
        (each.name, each.in_features, each.out_features, each.count) for each in known.linear_layers
    }


def test_the_experts_of_a_type_without_closed_form_are_found_in_the_modules():
    config = {"model_type": "olmoe", "num_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 32, **SMALL}
    spec = spec_from_config(config, id="olmoe")
    assert spec.experts is not None
    assert (spec.experts.count, spec.experts.per_token) == (4, 1)
    # 5 layers, 4 experts, 3 matrices of 64 x 32
    assert spec.experts.parameters == 5 * 4 * 3 * 64 * 32
    assert spec.experts.active_parameters == spec.parameter_count - 5 * 3 * 3 * 64 * 32


def test_an_estimate_of_an_unknown_architecture_is_a_trace_and_says_so(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox"} | CONFIGS["gpt_neox"]))
    found = autopeft.estimate(model=tmp_path, hardware="rtx-4090", sequence_length=32, trainer="transformers")
    assert found.source == "traced"
    assert "does not know how models of type 'gpt_neox' compute" in found.assumptions[0]
    # r (in + out) of query_key_value, dense, dense_h_to_4h and dense_4h_to_h in five layers, r 16.
    assert found.trainable_parameters == 16 * 5 * ((64 + 192) + (64 + 64) + 2 * (64 + 256))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "mamba", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2}, "no attention heads"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "nonsense"}, "nor as a causal language model or classifier"),
        ({"model_type": "nonsense", "auto_map": {"AutoModel": "modeling_x.X"}}, r"modeling_x.X\).*trust_remote_code"),
        (
            {"model_type": "falcon", "num_hidden_layers": 10**6},
            r"num_hidden_layers is 1000000; at most 1000",
        ),
        ({"model_type": "falcon", "hidden_size": "wide"}, r"transformers cannot build a 'falcon' model from it"),
    ],
)
def test_what_cannot_be_priced_is_refused_with_the_reason(config, says):
    with pytest.raises(ModelError, match=says):
        spec_from_config(config, id="x")
