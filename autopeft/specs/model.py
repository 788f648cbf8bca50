"""What is known of the model, from its configuration and file headers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.specs.candidate import Quantization

CountSource = Literal["header", "index", "config", "profile"]
"""How a parameter count was found: in the weights' headers, in config.json with the index of the weights agreeing, in
config.json alone, or stated by a profile."""

LANGUAGE_PART_KEYS = {
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}
"""Weight names in the checkpoint of a multimodal model -> those of its language model alone, as transformers'
``key_mapping`` takes them. Checkpoints before transformers 4.52 have the first and third form, others the second."""


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
class Experts:
    """The experts of a mixture of experts.

    Attributes:
        count: routed experts of a block.
        per_token: how many of them see a token.
        parameters: of all routed experts of all blocks.
        active_parameters: of the model, less those of the routed experts that a token does not see.
        shared_width: width of the expert that sees every token; 0 without one.
    """

    count: int
    per_token: int
    parameters: int
    active_parameters: int
    shared_width: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFormat:
    """How an already quantized checkpoint stores its weights, and what peft can train over them.

    Attributes:
        name: "gptq", "bitsandbytes-nf4".
        title: for people.
        bits: of one packed weight, without scales; None if the checkpoint does not say.
        base: the storage that a candidate names for it: "none" where the base stays as the checkpoint stores it.
        priced_as: the storage whose memory stands for it.
        double_quantization: whether nf4's scales are quantized too.
        packages: what loading it takes beside the training stack.
        trains: adapter kinds that peft trains over it: a peft_type, or "DORA".
        refuses: kinds that it does not train, each with the reason.
        why_none: why nothing can be trained over it; None if something can.
    """

    name: str
    title: str
    bits: float | None
    base: Quantization
    priced_as: Quantization
    double_quantization: bool = False
    packages: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()
    refuses: dict[str, str] = field(default_factory=dict)
    why_none: str | None = None

    def problem(self, kind: str) -> str | None:
        """Returns why adapters of a kind cannot be trained over it, in one clause; None if they can."""
        if kind in self.trains:
            return None
        return self.why_none or self.refuses.get(kind) or f"peft has no {kind} layer for {self.title} weights"


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
        wrapper: model type of the multimodal model whose language part this is; None for others.
        parameter_count: all parameters, tied ones once.
        parameter_count_source: how the count was found.
        layers: transformer blocks.
        intermediate_size: width inside the MLP.
        experts: of a mixture of experts; None for others.
        context_length: longest input; None if not stated.
        stored_dtype: dtype of the checkpoint: "bfloat16", "gguf:Q4_1".
        stored_quantization: how an already quantized checkpoint stores its weights ("gptq"); None otherwise.
        stored_format: what that means for training; None for a checkpoint that is not quantized.
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
    parameter_count_source: CountSource
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    linear_layers: tuple[LinearLayer, ...]
    wrapper: str | None = None
    experts: Experts | None = None
    context_length: int | None = None
    stored_dtype: str | None = None
    stored_quantization: str | None = None
    stored_format: StoredFormat | None = None
    has_chat_template: bool = False
    has_tokenizer_file: bool = False
    license: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
