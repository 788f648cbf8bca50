"""What one transformer block looks like to the memory formulas, by family of the transformers library."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

from autopeft.profiling.model import adapted_layers
from autopeft.specs import LinearLayer, ModelSpec

Site = Literal["attention_in", "attention_out", "mlp_in", "mlp_out"]
SITES: tuple[Site, ...] = ("attention_in", "attention_out", "mlp_in", "mlp_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the blocks of one model type are written in transformers 5.23.

    Attributes:
        norm: "rms" upcasts to float32 by hand; "layer" is torch's layer norm before, "post" after each half.
        norms: norms over the hidden width in one block.
        head_norms: queries and keys are normalized per head.
        fused_projections: query, key and value come from one matrix that rotary positions are applied to afterwards.
        rotary: positions are rotated into queries and keys, which makes new tensors of them.
        activation: "gated" multiplies two projections; "tanh" spells GELU out in elementary functions; "gelu" is one.
        float_weight: the norm multiplies in float32 before it casts down.
        soft_capped: attention scores and logits go through tanh.
        dropout_keys: fields of config.json with the dropout of the two residual branches, and its default.
    """

    norm: Literal["rms", "layer", "post"] = "rms"
    norms: int = 2
    head_norms: bool = False
    fused_projections: bool = False
    rotary: bool = True
    activation: Literal["gated", "tanh", "gelu"] = "gated"
    float_weight: bool = False
    soft_capped: bool = False
    dropout_key: tuple[str, float] = ("", 0.0)


_FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(head_norms=True),
    "gemma": Family(float_weight=True),
    "gemma2": Family(norms=4, float_weight=True, soft_capped=True),
    "gemma3_text": Family(norms=4, float_weight=True, head_norms=True),
    "phi3": Family(fused_projections=True),
    "gpt2": Family(norm="layer", rotary=False, activation="tanh", dropout_key=("resid_pdrop", 0.1)),
    "gpt_bigcode": Family(norm="layer", rotary=False, activation="gelu", dropout_key=("resid_pdrop", 0.1)),
    "bert": Family(norm="post", rotary=False, activation="gelu", dropout_key=("hidden_dropout_prob", 0.1)),
    "roberta": Family(norm="post", rotary=False, activation="gelu", dropout_key=("hidden_dropout_prob", 0.1)),
}
KNOWN_MODEL_TYPES = frozenset(_FAMILIES)
"""Model types whose blocks the formulas know; others are priced as a llama's, and said so."""

_OUTPUT_NAMES = frozenset({"o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin"})


def family_of(model: ModelSpec) -> Family:
    """Returns the family of a model; a llama's for an unknown one."""
    return _FAMILIES.get(model.model_type, _FAMILIES["llama"])


def site_of(layer: LinearLayer) -> Site | None:
    """Returns where in the block a linear layer stands; None for heads, routers and the like."""
    if layer.role == "attention":
        return "attention_out" if layer.name in _OUTPUT_NAMES else "attention_in"
    if layer.role == "mlp":
        return "mlp_out" if layer.in_features > layer.out_features else "mlp_in"
    return None


@dataclass(frozen=True, slots=True)
class Targets:
    """Which linear layers of a model are adapted; usable as a cache's key, which a ModelSpec is not."""

    linear_layers: tuple[LinearLayer, ...]
    target_modules: tuple[str, ...]
    model: ModelSpec = field(compare=False, repr=False)


def targets_of(model: ModelSpec, target_modules: tuple[str, ...]) -> Targets:
    """Returns the key of a model's adapted layers."""
    return Targets(model.linear_layers, target_modules, model)


@functools.lru_cache(maxsize=256)
def adapted(targets: Targets) -> tuple[LinearLayer, ...]:
    """Returns the linear layers that get an adapter; ``count`` is how many of each do."""
    return adapted_layers(targets.model, targets.target_modules)


@functools.lru_cache(maxsize=256)
def adapted_by_site(targets: Targets) -> dict[Site, tuple[LinearLayer, ...]]:
    """Returns the adapted linear layers inside the blocks, by where they stand."""
    return {site: tuple(layer for layer in adapted(targets) if site_of(layer) == site) for site in SITES}
