"""Shallow traces stand for deep ones: each part of a step grows by the same bytes with every period of layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

SHALLOWEST = 3
"""First, last and one layer between them differ: the first may need no gradient of its input."""

_PERIOD_FIELDS = ("sliding_window_pattern", "full_attention_interval", "decoder_sparse_step", "moe_layer_freq")
"""Fields of config.json that make every n-th layer differ, in versions of transformers without ``layer_types``."""

_ALTERNATING = frozenset({"gemma2", "cohere2"})
"""Architectures whose layers alternate by rules in the code of older versions: attention windows, no parameters."""


def layer_kinds(config: Any) -> list[tuple[Any, ...]]:
    """Returns what is known to differ between the layers, one entry a layer."""
    layers: int = config.num_hidden_layers
    lists = _layer_lists(config)
    dense_first = getattr(config, "first_k_dense_replace", None) or 0
    dense = getattr(config, "mlp_only_layers", None) or ()
    periods = [value for name in _PERIOD_FIELDS if isinstance(value := getattr(config, name, None), int) and value > 1]
    if config.model_type in _ALTERNATING and not lists:
        periods.append(2)
    return [
        (*(each[i] for each in lists.values()), i < dense_first, i in dense, *(i % period for period in periods))
        for i in range(layers)
    ]


def _layer_lists(config: Any) -> dict[str, Sequence[Any]]:
    """Returns the lists of the configuration that say something of every layer."""
    layers = config.num_hidden_layers
    found: dict[str, Sequence[Any]] = {}
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == layers and layers > 1 and not isinstance(value[0], dict):
            found[name.removeprefix("_")] = value
    return found


def period_of(kinds: Sequence[Any]) -> tuple[int, int]:
    """Returns ``(prefix, period)``: after the first ``prefix`` layers the kinds repeat every ``period`` layers.

    Of all pairs the one with the smallest sum; a sequence without any repetition is its own prefix.
    """
    count = len(kinds)
    best = (count, 1)
    for period in range(1, count // 2 + 1):
        prefix = count - period
        while prefix > 0 and kinds[prefix - 1] == kinds[prefix - 1 + period]:
            prefix -= 1
        if prefix + period < sum(best):
            best = (prefix, period)
    return best


def shallow_depths(layers: int, period: int, prefix: int = 0) -> tuple[int, ...]:
    """Returns the depths to trace: two, one whole period of the pattern apart; the full depth if that is no deeper."""
    first = max(SHALLOWEST, prefix + period)
    first += (layers - first) % period
    return (layers,) if first + period >= layers else (first, first + period)


def shortened(config: Any, layers: int) -> Any:
    """Returns the configuration of the same model with so many layers."""
    short = copy.deepcopy(config)
    for name, value in _layer_lists(config).items():
        setattr(short, name, list(value)[:layers])
    short.num_hidden_layers = layers
    return short


def extrapolate(low: Mapping[str, float], high: Mapping[str, float], periods: int) -> dict[str, float]:
    """Returns named amounts at full depth, ``periods`` whole periods above the shallower of two traces."""
    names = [*high, *(name for name in low if name not in high)]
    grown = {}
    for name in names:
        start, end = low.get(name, 0), high.get(name, 0)
        grown[name] = start + (end - start) * periods
    return grown
