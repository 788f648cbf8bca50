"""What a config.json implies: the shape of a model, and its fields read with checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

from autopeft.errors import ModelError
from autopeft.specs import Experts, LinearLayer

MAX_SIZE = 2**28
MAX_LAYERS = 1_000
"""Far above any model that exists (vocabularies of 262,144, 126 layers): what is larger is a mistake or an attack."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIZE)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE)]
Depth = Annotated[int, msgspec.Meta(ge=1, le=MAX_LAYERS)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1)]
F = TypeVar("F")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's dimensions and every weight of it.

    Attributes:
        linear_layers: the linear modules of the model as transformers builds it, its output head included.
        other_parameters: parameters outside ``linear_layers``: embeddings, norms, convolutions, fused experts.
        weight_roots: first parts of the weight names that belong to the counted model; a checkpoint may hold others
            (the head of another task).
        experts: of a mixture of experts; None for others.
        base_prefix: part that a checkpoint's weight names may or may not start with ("bert").
        notes: what the count or the list leaves out, one sentence each.
    """

    model_type: str
    kind: Literal["causal_lm", "encoder"]
    layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    context_length: int | None
    tie_word_embeddings: bool
    linear_layers: tuple[LinearLayer, ...]
    other_parameters: int
    weight_roots: frozenset[str]
    base_prefix: str
    experts: Experts | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameter_count(self) -> int:
        """All parameters, with a head that shares the embedding's matrix counted once."""
        return self.other_parameters + sum(
            linear_parameters(layer)
            for layer in self.linear_layers
            if not (self.tie_word_embeddings and layer.path == "lm_head")
        )


def linear_parameters(layer: LinearLayer) -> int:
    """Returns the weights and biases of all layers of one name: ``count * (in * out + out if biased)``."""
    bias = layer.out_features if layer.has_bias else 0
    return layer.count * (layer.in_features * layer.out_features + bias)


def read_fields(
    config: Mapping[str, Any],
    record_type: type[F],
    defaults: Mapping[str, Any],
    where: str,
    spelled: Mapping[str, str] | None = None,
) -> F:
    """Returns the fields of a config.json that decide the shape, checked.

    Args:
        config: the content of config.json.
        record_type: dataclass with one attribute per field; a field that it has a default for may be missing.
        defaults: the model type's own values for missing fields, as transformers 5.23 sets them.
        where: origin, for errors.
        spelled: name in ``record_type`` -> name in the file, where these differ.

    Raises:
        ModelError: naming every field of a wrong type or range.
    """
    hints = get_type_hints(record_type, include_extras=True)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name in (field.name for field in fields(record_type)):  # type: ignore[arg-type]
        if name in config or name in defaults:
            try:
                values[name] = msgspec.convert(config.get(name, defaults.get(name)), hints[name])
            except msgspec.ValidationError as error:
                told = (spelled or {}).get(name, name)
                problems.append(f"{told} is {repr(config.get(name))[:60]} ({error})")
    if problems:
        raise ModelError(f"{where}: {'; '.join(problems)}")
    return record_type(**values)


def check_groups(heads: int, key_value_heads: int, where: str) -> None:
    """Checks that each head of keys and values serves the same number of attention heads.

    Raises:
        ModelError: if the division leaves a rest.
    """
    if heads % key_value_heads:
        raise ModelError(
            f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {key_value_heads}; correct "
            "one of them"
        )


def head_width(hidden_size: int, heads: int, where: str) -> int:
    """Returns ``hidden_size / heads``, the width of one attention head where the configuration states none.

    Raises:
        ModelError: if the division leaves a rest.
    """
    if hidden_size % heads:
        raise ModelError(
            f"{where}: hidden size {hidden_size} is no multiple of the {heads} attention heads; correct one of them"
        )
    return hidden_size // heads
