"""Which linear layers a candidate adapts, by peft's rule: the end of the module path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from autopeft.specs.model import LinearLayer, ModelSpec


def adapted_layers(model: ModelSpec, target_modules: Sequence[str]) -> tuple[LinearLayer, ...]:
    """Returns the linear layers that the resolved names match; ``count`` is how many of each shape are matched."""
    found = []
    for layer in model.linear_layers:
        matched = {index for name in target_modules for index in matched_modules(layer, name)}
        if matched:
            found.append(replace(layer, count=len(matched)))
    return tuple(found)


def matched_modules(layer: LinearLayer, name: str) -> Iterable[int]:
    """Returns the indices, below ``layer.count``, of the modules whose path is ``name`` or ends in ``.name``."""
    parts, wanted = layer.path.split("."), name.split(".")
    indices = range(layer.count)
    if len(wanted) > len(parts):
        return ()
    for part, want in zip(reversed(parts), reversed(wanted), strict=False):
        if part == "{layer}" and want in map(str, indices):
            indices = range(int(want), int(want) + 1)
        elif part != want:
            return ()
    return indices
