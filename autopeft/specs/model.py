"""What is known of the model, from its configuration and file headers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayer:
    """Linear layers of one name and shape.

    Attributes:
        name: last part of the module path, as ``target_modules`` names it: "q_proj".
        path: module path with ``{layer}`` for the layer index: "model.layers.{layer}.self_attn.q_proj".
        in_features: width of the input.
        out_features: width of the output.
        count: how many of them the model has.
        role: what it belongs to; heads and routers are never adapted by the aliases.
        has_bias: whether it has a bias vector.
        quantizable: False where the installed stack leaves it in 16 bits (heads, fused expert tensors).
    """

    name: str
    path: str
    in_features: int
    out_features: int
    count: int
    role: Literal["attention", "mlp", "head", "router", "other"]
    has_bias: bool = False
    quantizable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model's shape.

    Attributes:
        id: hub id, folder name or profile name.
        format: where it was read from.
        path: local folder or file; None for a hub id and a profile.
        revision: commit of the hub, hash of the local config and header; None if unknown.
        model_type: as in config.json: "llama", "bert".
        kind: the head that is trained.
        parameter_count: all parameters, tied ones once.
        parameter_count_source: how the count was found.
        layers: transformer blocks.
        intermediate_size: width inside the MLP.
        context_length: longest input; None if not stated.
        stored_dtype: dtype of the checkpoint: "bfloat16", "gguf:Q4_1".
        stored_quantization: quantization method of an already quantized checkpoint ("gptq"); None otherwise.
        has_chat_template: whether the tokenizer brings one.
        has_tokenizer_file: whether a tokenizer.json is beside it.
        config: config.json as it is (for a GGUF file: the equivalent), from which a trace builds the model.
        notes: what could not be found out, one sentence each.
    """

    id: str
    format: Literal["folder", "gguf", "hub", "profile"]
    path: str | None
    revision: str | None
    model_type: str
    kind: Literal["causal_lm", "encoder"]
    parameter_count: int
    parameter_count_source: Literal["header", "config", "profile"]
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    linear_layers: tuple[LinearLayer, ...]
    context_length: int | None = None
    stored_dtype: str | None = None
    stored_quantization: str | None = None
    has_chat_template: bool = False
    has_tokenizer_file: bool = False
    license: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
