"""The layers of encoders in closed form, as transformers 5.23 builds them for sequence classification.

Counted is the base model inside ``AutoModelForSequenceClassification``. The classification head is not: it is made
anew for the labels of the data. BERT's pooler belongs to its base; RoBERTa, DeBERTa and DistilBERT have none there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.profiling._decoders import block_layer
from autopeft.profiling._shapes import Depth, Natural, Positive, Rate, Shape, head_width, read_fields
from autopeft.specs import LinearLayer

_HEAD_NOTE = "the classification head is not counted; it is made for the labels of the data"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How one encoder names and sizes its parts.

    Attributes:
        prefix: the base model's attribute in the classification model.
        block: path of a block below it.
        attention: paths of the query, key, value and output projections below a block.
        mlp: paths of the two MLP layers below a block.
        pooler: whether the base holds a pooler.
        defaults: values of fields that config.json may leave out.
        aliases: config.json's own name -> the common one.
    """

    prefix: str
    block: str
    attention: tuple[str, str, str, str]
    mlp: tuple[str, str]
    pooler: bool
    defaults: dict[str, Any]
    aliases: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fields:
    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Depth
    num_attention_heads: Positive
    max_position_embeddings: Positive
    type_vocab_size: Natural
    pad_token_id: int | None = None
    attention_probs_dropout_prob: Rate = 0.0
    hidden_dropout_prob: Rate = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _DebertaFields:
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_buckets: int = -1
    position_biased_input: bool = True
    share_att_key: bool = False
    pos_att_type: str | list[str] | None = None
    norm_rel_ebd: str = "none"
    conv_kernel_size: int = 0
    conv_groups: Positive = 1
    embedding_size: Positive | None = None
    attention_head_size: Positive | None = None


def _defaults(vocab_size: int, hidden_size: int, layers: int, heads: int, type_vocab_size: int) -> dict[str, Any]:
    """Returns the defaults of transformers' configuration class; the MLP is four times as wide as the rest."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 512,
        "type_vocab_size": type_vocab_size,
    }


_BERT_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
_BERT_MLP = ("intermediate.dense", "output.dense")
_FAMILIES = {
    "bert": _Family(
        prefix="bert",
        block="encoder.layer",
        attention=_BERT_ATTENTION,
        mlp=_BERT_MLP,
        pooler=True,
        defaults=_defaults(30522, 768, 12, 12, 2),
        aliases={},
    ),
    "roberta": _Family(
        prefix="roberta",
        block="encoder.layer",
        attention=_BERT_ATTENTION,
        mlp=_BERT_MLP,
        pooler=False,
        defaults=_defaults(50265, 768, 12, 12, 2) | {"pad_token_id": 1},
        aliases={},
    ),
    "deberta-v2": _Family(
        prefix="deberta",
        block="encoder.layer",
        attention=(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
        ),
        mlp=_BERT_MLP,
        pooler=False,
        defaults=_defaults(128100, 1536, 24, 24, 0),
        aliases={},
    ),
    "distilbert": _Family(
        prefix="distilbert",
        block="transformer.layer",
        attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        mlp=("ffn.lin1", "ffn.lin2"),
        pooler=False,
        defaults=_defaults(30522, 768, 6, 12, 0),
        aliases={
            "dim": "hidden_size",
            "hidden_dim": "intermediate_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
        },
    ),
}
ENCODERS: tuple[str, ...] = tuple(_FAMILIES)
"""Model types that :func:`encoder` understands."""


def encoder(config: Mapping[str, Any], where: str) -> Shape:
    """Returns the shape of an encoder's base model."""
    family = _FAMILIES[config["model_type"]]
    renamed = {family.aliases.get(name, name): value for name, value in config.items()}
    fields = read_fields(renamed, _Fields, family.defaults, where)
    extra = read_fields(config, _DebertaFields, {}, where) if family.prefix == "deberta" else _DebertaFields()
    head_dim = head_width(fields.hidden_size, fields.num_attention_heads, where)
    return Shape(
        model_type=config["model_type"],
        kind="encoder",
        layers=fields.num_hidden_layers,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        vocab_size=fields.vocab_size,
        attention_heads=fields.num_attention_heads,
        key_value_heads=fields.num_attention_heads,
        head_dim=extra.attention_head_size or head_dim,
        context_length=_context_length(family, fields),
        tie_word_embeddings=False,
        linear_layers=(*_blocks(family, fields, extra), *_singles(family, fields, extra)),
        other_parameters=_other_parameters(fields, extra),
        weight_roots=frozenset({"embeddings", family.block.split(".")[0], *(["pooler"] if family.pooler else [])}),
        base_prefix=family.prefix,
        notes=(_HEAD_NOTE,),
    )


def _context_length(family: _Family, fields: _Fields) -> int:
    """RoBERTa numbers its positions from the padding id + 1, so that 514 positions take 512 tokens."""
    if family.prefix == "roberta" and fields.pad_token_id is not None:
        return fields.max_position_embeddings - fields.pad_token_id - 1
    return fields.max_position_embeddings


def _blocks(family: _Family, fields: _Fields, extra: _DebertaFields) -> tuple[LinearLayer, ...]:
    hidden, wide, count = fields.hidden_size, fields.intermediate_size, fields.num_hidden_layers
    inner = (extra.attention_head_size or hidden // fields.num_attention_heads) * fields.num_attention_heads
    query, key, value, output = family.attention
    widths = dict.fromkeys((query, key, value, *_position_projections(extra)), (hidden, inner))
    widths |= {output: (hidden, hidden), family.mlp[0]: (hidden, wide), family.mlp[1]: (wide, hidden)}
    root = f"{family.prefix}.{family.block}.{{layer}}"
    return tuple(
        block_layer(f"{root}.{path}", width_in, width_out, count=count, has_bias=True)
        for path, (width_in, width_out) in widths.items()
    )


def _position_projections(extra: _DebertaFields) -> tuple[str, ...]:
    if not extra.relative_attention or extra.share_att_key:
        return ()
    kinds = extra.pos_att_type or ()
    names = {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}
    return tuple(f"attention.self.{name}" for kind, name in names.items() if kind in kinds)


def _singles(family: _Family, fields: _Fields, extra: _DebertaFields) -> tuple[LinearLayer, ...]:
    hidden, width = fields.hidden_size, extra.embedding_size or fields.hidden_size
    layers = []
    if width != hidden:
        layers.append(_single(f"{family.prefix}.embeddings.embed_proj", width, hidden, has_bias=False))
    if family.pooler:
        layers.append(_single(f"{family.prefix}.pooler.dense", hidden, hidden, has_bias=True))
    return tuple(layers)


def _single(path: str, in_features: int, out_features: int, *, has_bias: bool) -> LinearLayer:
    return LinearLayer(
        name=path.rsplit(".", 1)[-1],
        path=path,
        in_features=in_features,
        out_features=out_features,
        count=1,
        role="head" if "pooler" in path else "other",
        has_bias=has_bias,
    )


def _other_parameters(fields: _Fields, extra: _DebertaFields) -> int:
    """Embeddings and their norm, two norms (weight and bias) in every block, and what DeBERTa adds."""
    width = extra.embedding_size or fields.hidden_size
    positions = fields.max_position_embeddings if extra.position_biased_input else 0
    embeddings = (fields.vocab_size + positions + fields.type_vocab_size) * width
    norms = (2 * fields.num_hidden_layers + 1) * 2 * fields.hidden_size
    return embeddings + norms + _relative_parameters(fields, extra) + _convolution_parameters(fields, extra)


def _relative_parameters(fields: _Fields, extra: _DebertaFields) -> int:
    norm = 2 * fields.hidden_size if "layer_norm" in extra.norm_rel_ebd.lower() else 0
    if not extra.relative_attention:
        return norm
    reach = extra.max_relative_positions if extra.max_relative_positions > 0 else fields.max_position_embeddings
    buckets = extra.position_buckets if extra.position_buckets > 0 else reach
    return 2 * buckets * fields.hidden_size + norm


def _convolution_parameters(fields: _Fields, extra: _DebertaFields) -> int:
    if extra.conv_kernel_size <= 0:
        return 0
    hidden = fields.hidden_size
    return hidden * (hidden // extra.conv_groups) * extra.conv_kernel_size + hidden + 2 * hidden
