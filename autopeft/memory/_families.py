"""The model types whose blocks the closed form knows, as transformers 5.23 writes them."""

from __future__ import annotations

from autopeft.memory.ledger.attention import Heads
from autopeft.memory.ledger.blocks import Family, Positions
from autopeft.memory.ledger.linear import Mode
from autopeft.memory.ledger.record import Adapted, Plan
from autopeft.specs import ModelSpec

_FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(experts=True),
    "qwen2": Family(),
    "qwen3": Family(head_norms=True, norm_first=True),
    "gemma": Family(float_weight=True, scaled_embedding=True),
    "gemma2": Family(norms=4, float_weight=True, soft_capped=True, scaled_embedding=True),
    "gemma3_text": Family(norms=4, float_weight=True, head_norms=True, scaled_embedding=True),
    "phi3": Family(fused=True),
    "gpt2": Family(kind="gpt", spelled_gelu=True),
    "gpt_bigcode": Family(kind="gpt"),
    "bert": Family(kind="bert", pooled=True),
    "roberta": Family(kind="bert", head_trained_whole=True),
    "deberta-v2": Family(kind="deberta"),
}


def known_model_types() -> tuple[str, ...]:
    """Returns the model types whose blocks the closed form knows, in alphabetical order; others are traced."""
    return tuple(sorted(_FAMILIES))


_ALLOWED: dict[str, dict[str, tuple[object, ...]]] = {
    "llama": {"hidden_act": ("silu", "gelu_pytorch_tanh", "gelu")},
    "gpt": {"scale_attn_by_inverse_layer_idx": (False,), "reorder_and_upcast_attn": (False,)},
    "bert": {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,)},
    "deberta": {"hidden_act": ("gelu",), "conv_kernel_size": (0,), "embedding_size": (None,)},
}
"""Settings of config.json that change what a block makes, with the values that the closed form knows."""

_ACTIVATIONS = {"gpt2": ("gelu_new",), "gpt_bigcode": ("gelu_pytorch_tanh", "gelu")}


def why_unknown(model: ModelSpec) -> str | None:
    """Returns why the closed form does not know a model, in one clause; None if it does."""
    if model.model_type not in _FAMILIES:
        return f"the closed form does not know how models of type {model.model_type!r} compute"
    allowed = dict(_ALLOWED[_FAMILIES[model.model_type].kind])
    if model.model_type in _ACTIVATIONS:
        allowed["activation_function"] = _ACTIVATIONS[model.model_type]
    for name, values in allowed.items():
        if name in model.config and model.config[name] not in values:
            return f"the closed form does not know {model.model_type} models with {name} {model.config[name]!r}"
    return None


def plan_of(model: ModelSpec, mode: Mode, adapted: dict[str, Adapted]) -> Plan:
    """Returns what is recorded for a model.

    Dropout rates are those of transformers' configuration classes where config.json leaves them out.
    """
    family, config = _FAMILIES[model.model_type], model.config
    rates = _DROPOUTS[family.kind]
    probabilities, branches, embedding = (config.get(name, rate) for name, rate in rates)
    return Plan(
        model=model,
        family=family,
        heads=_heads(model, family, dropped=probabilities > 0),
        mode=mode,
        adapted=adapted,
        dropout=branches > 0,
        embedding_dropout=embedding > 0,
        labels=labels_of(model),
        expert_count=model.experts.count if model.experts else 0,
        chosen=model.experts.per_token if model.experts else 0,
        sliding=_sliding_layers(model),
        positions=_positions(model),
        mask_kinds=2 if model.model_type in ("gemma2", "gemma3_text") else 1,
    )


def _positions(model: ModelSpec) -> Positions:
    """Returns the relative positions of a DeBERTa; others have none."""
    config = model.config
    if model.model_type != "deberta-v2" or not config.get("relative_attention"):
        return Positions()
    reach = config.get("max_relative_positions", -1)
    reach = reach if reach >= 1 else model.context_length or 512
    buckets = config.get("position_buckets", -1)
    kinds = config.get("pos_att_type") or ()
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    shared = config.get("share_att_key", False)
    names = {"c2p": "key_proj" if shared else "pos_key_proj", "p2c": "query_proj" if shared else "pos_query_proj"}
    return Positions(
        count=2 * (buckets if buckets > 0 else reach),
        layers=tuple((kind, names[kind]) for kind in names if kind in kinds),
        normed="layer_norm" in str(config.get("norm_rel_ebd", "none")).lower(),
    )


_WINDOWS: dict[str, int | None] = {"mistral": 4096, "gemma2": 4096, "gemma3_text": 4096, "qwen2": 4096, "qwen3": 4096}
"""Windows where config.json states none, from transformers' configuration classes; other types have none then."""

NO_WINDOW = 2**62


def window_of(model: ModelSpec) -> int:
    """Returns from how many tokens a row is longer than the window that a token of a sliding layer sees."""
    window = model.config.get("sliding_window", _WINDOWS.get(model.model_type))
    return window if window and _sliding_layers(model) else NO_WINDOW


def _sliding_layers(model: ModelSpec) -> frozenset[int]:
    """Returns the layers whose attention sees a window only, where rows are longer than it."""
    config, layers = model.config, range(model.layers)
    kinds = config.get("layer_types")
    if kinds:
        return frozenset(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
    match model.model_type:
        case "gemma2":
            return frozenset(index for index in layers if (index + 1) % 2)
        case "gemma3_text":
            pattern = config.get("sliding_window_pattern", 6)
            return frozenset(index for index in layers if (index + 1) % pattern)
        case "qwen2" | "qwen3":
            first = config.get("max_window_layers", 28)
            return frozenset(layers[first:]) if config.get("use_sliding_window") else frozenset()
        case "mistral" | "mixtral" | "phi3":
            return frozenset(layers)
    return frozenset()


def labels_of(model: ModelSpec) -> int:
    """Returns how many classes a classifier tells apart; two where config.json does not say."""
    return len(model.config.get("id2label") or ()) or int(model.config.get("num_labels", 2))


def head_parameters(model: ModelSpec) -> tuple[int, int]:
    """Returns the parameters of an encoder's classification head: all, and those that peft trains a copy of.

    peft copies the module named ``classifier``, which is the last layer, or in RoBERTa all of the head.
    """
    if model.kind != "encoder":
        return 0, 0
    family, hidden = _FAMILIES[model.model_type], model.hidden_size
    last = (hidden + 1) * labels_of(model)
    dense = 0 if family.pooled else (hidden + 1) * hidden
    return dense + last, dense + last if family.head_trained_whole else last


def buffer_bytes(model: ModelSpec) -> int:
    """Returns the bytes of constants that a model holds beside its weights: GPTBigCode's causal mask."""
    return (model.context_length or 0) ** 2 if model.model_type == "gpt_bigcode" else 0


_DROPOUTS = {
    "llama": (("attention_dropout", 0.0), ("", 0.0), ("", 0.0)),
    "gpt": (("attn_pdrop", 0.1), ("resid_pdrop", 0.1), ("embd_pdrop", 0.1)),
    "deberta": (
        ("attention_probs_dropout_prob", 0.1),
        ("hidden_dropout_prob", 0.1),
        ("hidden_dropout_prob", 0.1),
    ),
    "bert": (("attention_probs_dropout_prob", 0.1), ("hidden_dropout_prob", 0.1), ("hidden_dropout_prob", 0.1)),
}


def _heads(model: ModelSpec, family: Family, *, dropped: bool) -> Heads:
    """Returns how a model's attention is divided."""
    spelled = family.kind == "gpt" and family.spelled_gelu
    return Heads(
        heads=model.attention_heads,
        key_heads=model.key_value_heads,
        head_dim=model.head_dim,
        soft_capped=family.soft_capped,
        by_head=family.fused,
        softmax_dtype="input" if spelled or model.kind == "encoder" else "float32",
        casts_back=model.kind != "encoder",
        dropout=dropped,
        masked=model.kind == "causal_lm",
    )
