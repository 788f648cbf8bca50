"""Which linear layers the names in ``target_modules`` mean, by peft's rule: the end of the module path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.specs import LinearLayer, ModelSpec
from autopeft.specs.targets import adapted_layers, matched_modules

__all__ = ["adapted_layers", "resolve_target_modules"]

_ALIASES: dict[str, frozenset[str]] = {
    "attention": frozenset({"attention"}),
    "mlp": frozenset({"mlp"}),
    "all-linear": frozenset({"attention", "mlp", "other"}),
}


def resolve_target_modules(model: ModelSpec, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names that peft needs to adapt exactly the layers meant, sorted.

    An alias gives the shortest path endings that match its layers and no other: GPT-2's ``attention`` is
    ``attn.c_proj`` and ``c_attn``, since a bare ``c_proj`` would match the MLP too. Heads and routers belong to no
    alias; an explicit name is kept as it is.

    Args:
        model: the model.
        names: aliases (``attention``, ``mlp``, ``all-linear``) and names of linear layers or endings of their paths.

    Raises:
        UnknownNameError: if a name is neither an alias nor matches a linear layer.
        InvalidInputError: if there is no name, or the model has no layer of an alias.
    """
    if not names:
        raise InvalidInputError(
            f"no target modules given; name linear layers of {model.id} or one of: {', '.join(_ALIASES)}"
        )
    resolved: set[str] = set()
    for name in names:
        if name in _ALIASES:
            resolved.update(_alias_names(model, name))
        elif any(matched_modules(layer, name) for layer in model.linear_layers):
            resolved.add(name)
        else:
            known = {*_ALIASES, *(layer.name for layer in model.linear_layers)}
            raise UnknownNameError(f"target module of {model.id}", name, known)
    return tuple(sorted(resolved))


def _alias_names(model: ModelSpec, alias: str) -> Iterable[str]:
    meant = [layer for layer in model.linear_layers if layer.role in _ALIASES[alias]]
    if not meant:
        raise InvalidInputError(
            f"{model.id} ({model.model_type}) has no linear layer of the kind {alias!r}{_reason(model)}"
        )
    others = [layer for layer in model.linear_layers if layer not in meant]
    return {name for layer in meant for name in _endings(model, layer, others)}


def _reason(model: ModelSpec) -> str:
    return f": {'; '.join(model.notes)}" if model.notes else ""


def _endings(model: ModelSpec, layer: LinearLayer, others: Sequence[LinearLayer]) -> tuple[str, ...]:
    """Returns the shortest endings of the layer's paths that match none of ``others``.

    A name that several layers share (BERT's ``dense``) is never used alone: a task head outside the list may have it.
    """
    parts = layer.path.split(".")
    shared = sum(other.name == layer.name for other in model.linear_layers) > 1
    for length in range(2 if shared else 1, len(parts) + 1):
        endings = _expanded(".".join(parts[-length:]), layer.count)
        if not any(matched_modules(other, ending) for ending in endings for other in others):
            return endings
    raise AssertionError(f"two linear layers of {model.id} have the path {layer.path}")


def _expanded(ending: str, count: int) -> tuple[str, ...]:
    if "{layer}" not in ending:
        return (ending,)
    return tuple(ending.replace("{layer}", str(index)) for index in range(count))
