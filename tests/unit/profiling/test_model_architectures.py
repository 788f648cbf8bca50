"""The closed forms against the modules that transformers and peft really build, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from autopeft.errors import ModelError
from autopeft.profiling.model import (
    adapted_layers,
    load_model,
    model_names,
    resolve_target_modules,
    spec_from_config,
    supported_model_types,
)
from autopeft.specs import LinearLayer, ModelSpec

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
from transformers.integrations.bitsandbytes import replace_with_bnb_linear  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402
from transformers.quantizers.base import get_keys_to_not_convert  # noqa: E402

# No special token beyond the tiny vocabulary: transformers warns of those.
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    **TOKENS,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
MOE = SIZES | {"moe_intermediate_size": 20, "num_experts": 6, "num_experts_per_tok": 2, "num_key_value_heads": 4}
GPT = {"vocab_size": 80, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, **TOKENS}
DISTILBERT = {"vocab_size": 80, "dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4, **TOKENS}
DEBERTA_V3 = SIZES | {
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
TINY: dict[str, tuple[dict[str, Any], ...]] = {
    "llama": (GROUPED, SIZES, GROUPED | {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "mistral": (GROUPED, SIZES | {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "mixtral": (GROUPED | {"num_local_experts": 4},),
    "qwen2_moe": (MOE | {"shared_expert_intermediate_size": 24}, MOE | {"qkv_bias": False, "num_key_value_heads": 2}),
    "qwen3_moe": (MOE | {"head_dim": 16}, MOE | {"attention_bias": True, "num_key_value_heads": 2}),
    "gpt_oss": (GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},),
    "qwen2": (GROUPED, GROUPED | {"tie_word_embeddings": True, "head_dim": 16}),
    "qwen3": (GROUPED | {"head_dim": 16}, GROUPED | {"attention_bias": True}),
    "gemma": (GROUPED, GROUPED | {"head_dim": 16, "attention_bias": True}),
    "gemma2": (GROUPED | {"head_dim": 16}, GROUPED | {"tie_word_embeddings": False}),
    "gemma3_text": (GROUPED | {"head_dim": 16}, SIZES),
    "phi3": (SIZES, GROUPED),
    "gpt2": (GPT, GPT | {"n_inner": 40}),
    "gpt_bigcode": (GPT, GPT | {"multi_query": False, "n_inner": 40}),
    "bert": (SIZES, SIZES | {"type_vocab_size": 5}),
    "roberta": (SIZES | {"pad_token_id": 1},),
    "distilbert": (DISTILBERT, DISTILBERT | {"sinusoidal_pos_embds": True}),
    "deberta-v2": (
        SIZES,
        DEBERTA_V3,
        SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "conv_kernel_size": 3},
        SIZES | {"embedding_size": 16, "type_vocab_size": 2, "conv_kernel_size": 3, "conv_groups": 2},
    ),
}
CASES = [(name, number) for name, variants in TINY.items() for number in range(len(variants))]


def build(config: dict[str, Any]) -> Any:
    settings = {name: value for name, value in config.items() if name != "model_type"}
    built = transformers.AutoConfig.for_model(config["model_type"], **settings)
    is_encoder = "bert" in config["model_type"]
    head = transformers.AutoModelForSequenceClassification if is_encoder else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return head.from_config(built)


def counted(model: Any, spec: ModelSpec) -> Any:
    return model.base_model if spec.kind == "encoder" else model


def linear_modules(model: Any, spec: ModelSpec) -> dict[str, tuple[int, int, bool]]:
    found = {}
    prefix = f"{model.base_model_prefix}." if spec.kind == "encoder" else ""
    for path, module in model.named_modules():
        if path.startswith(prefix) and isinstance(module, torch.nn.Linear | Conv1D):
            shape = tuple(module.weight.shape)
            width_out, width_in = shape if isinstance(module, torch.nn.Linear) else shape[::-1]
            found[path] = (width_in, width_out, module.bias is not None)
    return found


def paths(layer: LinearLayer) -> list[str]:
    return [layer.path.replace("{layer}", str(index)) for index in range(layer.count)]


def predicted_modules(layers: tuple[LinearLayer, ...]) -> dict[str, tuple[int, int, bool]]:
    return {path: (x.in_features, x.out_features, x.has_bias) for x in layers for path in paths(x)}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def tiny(request: pytest.FixtureRequest) -> tuple[dict[str, Any], ModelSpec]:
    name, number = request.param
    config = {"model_type": name, **TINY[name][number]}
    return config, spec_from_config(config, id="tiny")


def test_every_supported_model_type_is_compared_with_transformers() -> None:
    assert set(TINY) == set(supported_model_types())
    assert len(TINY) >= 14


def test_count_and_layers_equal_what_transformers_builds(tiny: tuple[dict[str, Any], ModelSpec]) -> None:
    config, spec = tiny
    model = build(config)
    assert spec.parameter_count == sum(p.numel() for p in counted(model, spec).parameters())
    assert predicted_modules(spec.linear_layers) == linear_modules(model, spec)
    assert spec.layers == 3
    assert spec.parameter_count_source == "config"


def test_quantizable_layers_are_those_that_transformers_replaces(tiny: tuple[dict[str, Any], ModelSpec]) -> None:
    pytest.importorskip("bitsandbytes")
    config, spec = tiny
    model = build(config)
    before = set(linear_modules(model, spec))
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True)
    replace_with_bnb_linear(model, get_keys_to_not_convert(model), quantization_config=settings)
    replaced = {path for path, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    expected = {path for layer in spec.linear_layers if layer.quantizable for path in paths(layer)}
    assert expected
    assert expected == replaced & before


@pytest.mark.parametrize("alias", ["attention", "mlp", "all-linear"])
def test_peft_adapts_exactly_the_layers_of_an_alias(tiny: tuple[dict[str, Any], ModelSpec], alias: str) -> None:
    config, spec = tiny
    if spec.model_type in ("mixtral", "qwen3_moe", "gpt_oss") and alias == "mlp":
        pytest.skip("no linear layer to adapt: test_fused_experts_cannot_be_targeted holds instead")
    names = resolve_target_modules(spec, [alias])
    with torch.device("meta"):
        model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=list(names)), build(config))
    layers = adapted_layers(spec, names)
    adapted = {path for path, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert {path for layer in layers for path in paths(layer)} == adapted
    trainable = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert sum(2 * layer.count * (layer.in_features + layer.out_features) for layer in layers) == trainable


@pytest.mark.parametrize("model_type", supported_model_types())
def test_missing_fields_take_the_defaults_of_transformers(model_type: str) -> None:
    layers = {"gpt2": "n_layer", "gpt_bigcode": "n_layer", "distilbert": "n_layers"}
    config = {"model_type": model_type, layers.get(model_type, "num_hidden_layers"): 1}
    # A part of a config.json: a whole one must state its width.
    spec = spec_from_config({"model_type": "wrapper", "text_config": config}, id="default")
    model = build(config)
    assert spec.parameter_count == sum(p.numel() for p in counted(model, spec).parameters())
    assert spec.context_length is not None
    assert spec.tie_word_embeddings == (spec.kind == "causal_lm" and model.config.tie_word_embeddings)


@pytest.mark.parametrize("name", model_names())
def test_a_profile_builds_the_model_that_it_counts(name: str) -> None:
    spec = load_model(name)
    model = build(spec.config)
    assert spec.parameter_count == sum(p.numel() for p in counted(model, spec).parameters())


def test_fused_experts_cannot_be_targeted() -> None:
    spec = spec_from_config({"model_type": "mixtral", **GROUPED}, id="tiny-mixtral")
    assert {layer.role for layer in spec.linear_layers} == {"attention", "head"}
    assert "fused tensors" in spec.notes[0]
    with pytest.raises(ValueError, match=r"tiny-mixtral .mixtral. has no linear layer of the kind 'mlp'.*fused"):
        resolve_target_modules(spec, ["mlp"])


def test_a_roberta_takes_two_tokens_less_than_it_has_positions() -> None:
    config = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert spec_from_config(config, id="roberta").context_length == 512


def test_a_hidden_size_that_the_heads_do_not_divide_is_refused() -> None:
    config = {"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7}
    with pytest.raises(ModelError, match="hidden size 100 is no multiple of the 7 attention heads"):
        spec_from_config(config, id="odd")
