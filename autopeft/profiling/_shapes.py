"""What a config.json implies: the shape of a model, and its fields read with checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

from autopeft.errors import ModelError
from autopeft.specs import LinearLayer

Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
F = TypeVar("F")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's dimensions and every weight of it.

    Attributes:
        linear_layers: the linear modules of the model as transformers builds it, its output head included.
        other_parameters: parameters outside ``linear_layers``: embeddings, norms, convolutions, fused experts.
        weight_roots: first parts of the weight names that belong to the counted model; a checkpoint may hold others
            (the head of another task).
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


def read_fields(config: Mapping[str, Any], record_type: type[F], defaults: Mapping[str, Any], where: str) -> F:
    """Returns the fields of a config.json that decide the shape, checked.

    Args:
        config: the content of config.json.
        record_type: dataclass with one attribute per field; a field that it has a default for may be missing.
        defaults: the model type's own values for missing fields, as transformers 5.23 sets them.
        where: origin, for errors.

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
                problems.append(f"{name} is {config.get(name)!r} ({error})")
    if problems:
        raise ModelError(f"{where}: {'; '.join(problems)}")
    return record_type(**values)


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
