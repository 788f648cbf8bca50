"""The layers of causal language models in closed form, as transformers 5.23 builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from autopeft.profiling._experts import (
    MOE_FAMILIES,
    MoeFields,
    moe_fields,
    routed_parameters,
    router_parameters,
    shared_layers,
)
from autopeft.profiling._shapes import Depth, Natural, Positive, Rate, Shape, check_groups, head_width, read_fields
from autopeft.specs import Experts, LinearLayer

_Bias = Literal["never", "always", "config", "qkv_bias"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How one model type differs from the others of the Llama kind.

    Attributes:
        defaults: values of fields that config.json may leave out.
        qkv_bias: whether the query, key and value projections have biases, or ``attention_bias`` says so.
        output_bias: the same of the attention's output projection.
        mlp_bias: the same of the MLP, whose field is ``mlp_bias``.
        norms_per_layer: vectors of the hidden size in every block.
        head_norms: whether queries and keys are normalized per head.
        fused: whether q, k, v are one matrix, and gate and up another.
        sinks: whether each head has a trained weight that no token takes.
    """

    defaults: dict[str, Any]
    qkv_bias: _Bias = "config"
    output_bias: _Bias = "config"
    mlp_bias: _Bias = "never"
    norms_per_layer: int = 2
    head_norms: bool = False
    fused: bool = False
    sinks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _LlamaFields:
    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Depth
    num_attention_heads: Positive
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    max_position_embeddings: Positive | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qkv_bias: bool = True
    # What follows decides nothing here, but memory: a wrong type is to be told before that.
    sliding_window: Natural | None = None
    sliding_window_pattern: Positive | None = None
    use_sliding_window: bool | None = None
    max_window_layers: Natural | None = None
    layer_types: list[str] | None = None
    attention_dropout: Rate = 0.0


def _defaults(
    sizes: tuple[int, int, int, int, int], heads: tuple[int, int | None, int | None], *, tied: bool
) -> dict[str, Any]:
    """Returns the fields of transformers' configuration class from (vocab, hidden, intermediate, layers, context)."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
    head_names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    return (
        dict(zip(names, sizes, strict=True)) | dict(zip(head_names, heads, strict=True)) | {"tie_word_embeddings": tied}
    )


_LLAMA_KIND = {
    "llama": _Family(
        defaults=_defaults((32000, 4096, 11008, 32, 2048), (32, None, None), tied=False),
        mlp_bias="config",
    ),
    "mistral": _Family(
        defaults=_defaults((32000, 4096, 14336, 32, 131072), (32, 8, None), tied=False),
        qkv_bias="never",
        output_bias="never",
    ),
    "mixtral": _Family(
        defaults=_defaults((32000, 4096, 14336, 32, 131072), (32, 8, None), tied=False),
        qkv_bias="never",
        output_bias="never",
    ),
    "qwen2": _Family(
        defaults=_defaults((151936, 4096, 22016, 32, 32768), (32, 32, None), tied=False),
        qkv_bias="always",
        output_bias="never",
    ),
    "qwen3": _Family(
        defaults=_defaults((151936, 4096, 22016, 32, 32768), (32, 32, 128), tied=False),
        head_norms=True,
    ),
    "qwen2_moe": _Family(
        defaults=_defaults((151936, 2048, 5632, 24, 32768), (16, 16, None), tied=False),
        qkv_bias="qkv_bias",
        output_bias="never",
    ),
    "qwen3_moe": _Family(
        defaults=_defaults((151936, 2048, 6144, 24, 32768), (32, 4, None), tied=False),
        head_norms=True,
    ),
    "gpt_oss": _Family(
        defaults=_defaults((201088, 2880, 2880, 36, 131072), (64, 8, 64), tied=False) | {"attention_bias": True},
        sinks=True,
    ),
    "gemma": _Family(defaults=_defaults((256000, 3072, 24576, 28, 8192), (16, 16, 256), tied=True)),
    "gemma2": _Family(
        defaults=_defaults((256000, 2304, 9216, 26, 8192), (8, 4, 256), tied=True),
        norms_per_layer=4,
    ),
    "gemma3_text": _Family(
        defaults=_defaults((262208, 2304, 9216, 26, 131072), (8, 4, 256), tied=True),
        norms_per_layer=4,
        head_norms=True,
    ),
    "phi3": _Family(
        defaults=_defaults((32064, 3072, 8192, 32, 4096), (32, None, None), tied=False),
        qkv_bias="never",
        output_bias="never",
        fused=True,
    ),
}
LLAMA_KIND: tuple[str, ...] = tuple(_LLAMA_KIND)
"""Model types that :func:`llama_kind` understands."""

_BLOCK = "model.layers.{layer}"


def llama_kind(config: Mapping[str, Any], where: str) -> Shape:
    """Returns the shape of a decoder of the Llama kind: RMS norms, rotary positions, gated MLP or experts.

    Parameters outside the linear layers are ``vocab * hidden`` (embedding), ``(norms_per_layer * layers + 1) *
    hidden``, ``2 * head_dim * layers`` with head norms, ``heads * layers`` with sinks, and routers and routed experts.
    Exact for transformers 5.23: a test compares it with the modules built there.
    """
    family = _LLAMA_KIND[config["model_type"]]
    fields = read_fields(config, _LlamaFields, family.defaults, where)
    head_dim = fields.head_dim or head_width(fields.hidden_size, fields.num_attention_heads, where)
    kv_heads = fields.num_key_value_heads or fields.num_attention_heads
    check_groups(fields.num_attention_heads, kv_heads, where)
    moe = moe_fields(config, where) if config["model_type"] in MOE_FAMILIES else None
    shape = Shape(
        model_type=config["model_type"],
        kind="causal_lm",
        layers=fields.num_hidden_layers,
        hidden_size=fields.hidden_size,
        intermediate_size=moe.width if moe else fields.intermediate_size,
        vocab_size=fields.vocab_size,
        attention_heads=fields.num_attention_heads,
        key_value_heads=kv_heads,
        head_dim=head_dim,
        context_length=fields.max_position_embeddings,
        tie_word_embeddings=fields.tie_word_embeddings,
        linear_layers=(
            *_attention(family, fields, kv_heads, head_dim),
            *(_mlp(family, fields) if moe is None else _shared_experts(fields, moe)),
            head_layer(fields),
        ),
        other_parameters=_other_parameters(family, fields, head_dim),
        weight_roots=frozenset({"model", "lm_head"}),
        base_prefix="",
    )
    return shape if moe is None else _with_experts(shape, config, moe)


def block_layer(path: str, in_features: int, out_features: int, *, count: int, has_bias: bool) -> LinearLayer:
    """Returns the linear layers of one name in all blocks; the path says whether they belong to attention or MLP."""
    is_attention = any(part.startswith(("self_attn", "attn", "attention")) for part in path.split("."))
    return LinearLayer(
        name=path.rsplit(".", 1)[-1],
        path=path,
        in_features=in_features,
        out_features=out_features,
        count=count,
        role="attention" if is_attention else "mlp",
        has_bias=has_bias,
    )


def head_layer(fields: _LlamaFields | _GptFields) -> LinearLayer:
    """Returns the output head; transformers leaves it in 16 bits when it quantizes a model."""
    hidden_size = fields.hidden_size if isinstance(fields, _LlamaFields) else fields.n_embd
    return LinearLayer(
        name="lm_head",
        path="lm_head",
        in_features=hidden_size,
        out_features=fields.vocab_size,
        count=1,
        role="head",
        quantizable=False,
    )


def _attention(family: _Family, fields: _LlamaFields, kv_heads: int, head_dim: int) -> tuple[LinearLayer, ...]:
    hidden, queries, keys = fields.hidden_size, fields.num_attention_heads * head_dim, kv_heads * head_dim
    inputs = {"qkv_proj": queries + 2 * keys} if family.fused else {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    count, bias = fields.num_hidden_layers, _has_bias(family.qkv_bias, fields, stated=fields.attention_bias)
    return (
        *(
            block_layer(f"{_BLOCK}.self_attn.{name}", hidden, width, count=count, has_bias=bias)
            for name, width in inputs.items()
        ),
        block_layer(
            f"{_BLOCK}.self_attn.o_proj",
            queries,
            hidden,
            count=count,
            has_bias=_has_bias(family.output_bias, fields, stated=fields.attention_bias),
        ),
    )


def _mlp(family: _Family, fields: _LlamaFields) -> tuple[LinearLayer, ...]:
    hidden, wide, count = fields.hidden_size, fields.intermediate_size, fields.num_hidden_layers
    bias = _has_bias(family.mlp_bias, fields, stated=fields.mlp_bias)
    inputs = {"gate_up_proj": 2 * wide} if family.fused else {"gate_proj": wide, "up_proj": wide}
    return (
        *(
            block_layer(f"{_BLOCK}.mlp.{name}", hidden, width, count=count, has_bias=bias)
            for name, width in inputs.items()
        ),
        block_layer(f"{_BLOCK}.mlp.down_proj", wide, hidden, count=count, has_bias=bias),
    )


def _has_bias(rule: _Bias, fields: _LlamaFields, *, stated: bool) -> bool:
    if rule == "qkv_bias":
        return fields.qkv_bias
    return stated if rule == "config" else rule == "always"


def _other_parameters(family: _Family, fields: _LlamaFields, head_dim: int) -> int:
    hidden, layers = fields.hidden_size, fields.num_hidden_layers
    norms = (family.norms_per_layer * layers + 1) * hidden + (2 * head_dim * layers if family.head_norms else 0)
    sinks = fields.num_attention_heads * layers if family.sinks else 0
    return fields.vocab_size * hidden + norms + sinks


def _shared_experts(fields: _LlamaFields, moe: MoeFields) -> tuple[LinearLayer, ...]:
    return shared_layers(_BLOCK, moe, fields.hidden_size, fields.num_hidden_layers)


def _with_experts(shape: Shape, config: Mapping[str, Any], moe: MoeFields) -> Shape:
    """Returns the shape with the experts' parameters, and what they mean for adapters."""
    routed = routed_parameters(config, moe, shape.hidden_size, shape.layers)
    routers = router_parameters(config, moe, shape.hidden_size, shape.layers)
    whole = replace(shape, other_parameters=shape.other_parameters + routed + routers)
    active = whole.parameter_count - routed + routed * moe.num_experts_per_tok // moe.count
    experts = Experts(
        count=moe.count,
        per_token=moe.num_experts_per_tok,
        parameters=routed,
        active_parameters=active,
        shared_width=moe.shared_expert_intermediate_size,
    )
    return replace(whole, experts=experts, notes=(experts_note(experts),))


def experts_note(experts: Experts) -> str:
    """Returns what a reader must know of fused experts."""
    return (
        f"the {experts.count} experts of every block are fused tensors, not linear modules, in transformers 5.23: they "
        "count as parameters, but stay in 16 bits and take no adapter"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _GptFields:
    vocab_size: Positive = 50257
    n_embd: Positive = 768
    n_layer: Depth = 12
    n_head: Positive = 12
    n_positions: Positive = 1024
    n_inner: Positive | None = None
    tie_word_embeddings: bool = True
    multi_query: bool = True
    attn_pdrop: Rate = 0.0
    resid_pdrop: Rate = 0.0
    embd_pdrop: Rate = 0.0


_GPT_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_GPT_BLOCK = "transformer.h.{layer}"


def gpt2_kind(config: Mapping[str, Any], where: str) -> Shape:
    """Returns the shape of GPT-2 (Conv1D layers: the matrix transposed) or GPTBigCode (one head of keys and values).

    Parameters outside the linear layers: ``(vocab + positions) * hidden + (2 * layers + 1) * 2 * hidden``.
    """
    renamed = {_GPT_ALIASES.get(name, name): value for name, value in config.items()}
    fields = read_fields(renamed, _GptFields, {}, where)
    head_dim = head_width(fields.n_embd, fields.n_head, where)
    kv_heads = 1 if config["model_type"] == "gpt_bigcode" and fields.multi_query else fields.n_head
    wide = fields.n_inner or 4 * fields.n_embd
    return Shape(
        model_type=config["model_type"],
        kind="causal_lm",
        layers=fields.n_layer,
        hidden_size=fields.n_embd,
        intermediate_size=wide,
        vocab_size=fields.vocab_size,
        attention_heads=fields.n_head,
        key_value_heads=kv_heads,
        head_dim=head_dim,
        context_length=fields.n_positions,
        tie_word_embeddings=fields.tie_word_embeddings,
        linear_layers=(*_gpt_layers(fields, wide, kv_heads * head_dim), head_layer(fields)),
        other_parameters=(fields.vocab_size + fields.n_positions + 2 * (2 * fields.n_layer + 1)) * fields.n_embd,
        weight_roots=frozenset({"wte", "wpe", "h", "ln_f", "lm_head"}),
        base_prefix="transformer",
    )


def _gpt_layers(fields: _GptFields, wide: int, key_width: int) -> tuple[LinearLayer, ...]:
    hidden, count = fields.n_embd, fields.n_layer
    shapes = {
        "attn.c_attn": (hidden, hidden + 2 * key_width),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, wide),
        "mlp.c_proj": (wide, hidden),
    }
    return tuple(
        block_layer(f"{_GPT_BLOCK}.{path}", width_in, width_out, count=count, has_bias=True)
        for path, (width_in, width_out) in shapes.items()
    )
