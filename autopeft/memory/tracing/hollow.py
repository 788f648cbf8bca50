"""Keeps the initialization of an adapter cheap: large results of arithmetic are shaped, not computed.

Nothing in a trace depends on the values of weights, but some adapters decompose them, which takes minutes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from autopeft.memory.tracing.values import value_read

WORK_LIMIT = 2**18
"""Elements up to which arithmetic really happens: a singular value decomposition of so many takes 50 ms."""

NOISE_LIMIT = 2**20
"""Elements up to which a shaped result is filled with random numbers, so that clustering it finds clusters."""

_HEAVY = frozenset(
    {"mm", "bmm", "addmm", "baddbmm", "mv", "dot", "geqrf", "cholesky", "orgqr", "ormqr", "triangular_solve"}
)
_RANDOM = frozenset({"rand", "randn", "normal"})
_aten = torch.ops.aten


def hollow(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    """Returns zeros of any shape that share one element of memory."""
    return torch.zeros((), dtype=dtype).expand(shape)


class CheapInitialization(TorchDispatchMode):  # type: ignore[misc]  # torch is not type-checked here
    """Within it adapters are made above weights that have no values, at a bounded cost.

    The meta device plays the training device, the host processor itself: what is copied from there to here is noise.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        for answer in (_arrived, _shaped, value_read):
            known, value = answer(func, args, named)
            if known:
                return value
        return func(*args, **named)


def _arrived(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
    """Answers copies from the meta device to the host."""
    if func is _aten._to_copy.default and args[0].is_meta:
        device = torch.device(kwargs.get("device") or "meta")
        if device.type == "cpu":
            return True, _noise(args[0].shape, kwargs.get("dtype") or args[0].dtype)
    if func is _aten.copy_.default and args[1].is_meta and not args[0].is_meta:
        return True, args[0]
    return False, None


def _shaped(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
    """Answers arithmetic on the host that would take long, without doing it."""
    name = str(func.overloadpacket).rpartition(".")[2]
    if name in _RANDOM and isinstance(args[0], list | tuple):
        large = math.prod(args[0]) > WORK_LIMIT and kwargs.get("device") in (None, torch.device("cpu"))
        return (True, _noise(args[0], kwargs.get("dtype") or torch.get_default_dtype())) if large else (False, None)
    if name == "randperm" and args[0] > WORK_LIMIT:
        return True, torch.arange(args[0])
    inputs = list(_tensors((args, kwargs)))
    if not inputs or any(each.is_meta for each in inputs) or max(each.numel() for each in inputs) <= WORK_LIMIT:
        return False, None
    if func._schema.is_mutable:
        writes = args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        return (True, args[0]) if writes and args[0].numel() > WORK_LIMIT else (False, None)
    heavy = name in _HEAVY or "linalg" in name
    if any(each.alias_info is not None for each in func._schema.returns) or func is _aten._to_copy.default:
        return False, None
    if not heavy and not all(each.is_floating_point() for each in inputs):
        return False, None
    results = func(*_on_meta(args), **{**_on_meta(dict(kwargs)), **_meta_device(kwargs)})
    if not heavy and not all(each.is_floating_point() for each in _tensors(results)):
        return False, None
    return True, tree_map(lambda each: _noise(each.shape, each.dtype) if _is_tensor(each) else each, results)


def _noise(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    """Returns numbers of no meaning; whole numbers are zeros: the "no error" of a solver."""
    if dtype.is_floating_point and math.prod(shape) <= NOISE_LIMIT:
        return torch.rand(tuple(shape), dtype=dtype, device="cpu")
    return hollow(shape, dtype)


def _meta_device(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"device": torch.device("meta")} if "device" in kwargs else {}


def _on_meta(values: Any) -> Any:
    return tree_map(lambda each: torch.empty_like(each, device="meta") if _is_tensor(each) else each, values)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return filter(_is_tensor, tree_leaves(values))
