"""Answers for the few calls that read a tensor's values, which tensors without storage do not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

_aten = torch.ops.aten


def value_read(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
    """Returns whether a call reads values of a tensor without storage, and the answer to give it.

    Conditions are answered with False: "are all positions attended to", "is anything not finite"; numbers with 1,
    sizes that depend on values with the most that is possible. A single random number, which layers compare with
    their chance of being left out, is a half.
    """
    del kwargs
    if func is _aten.rand.default and tuple(args[0]) == (1,):
        return True, torch.tensor([0.5])
    answer = _ANSWERS.get(func)
    if answer is None:
        return False, None
    if func is _aten._local_scalar_dense.default and not isinstance(args[0], FakeTensor) and not args[0].is_meta:
        with _disable_current_modes():  # a fake mode would turn the tensor into one without values
            return True, func(*args)
    readable = not any(map(_is_mask, args[1])) if func in _MASKABLE else _has_values(args[0])
    return (False, None) if readable else (True, answer(*args))


def reads_values(func: Any) -> bool:
    """Returns whether some calls of an operator are answered by ``value_read``."""
    return func in _ANSWERS or func is _aten.rand.default


def _has_values(tensor: Any) -> bool:
    if isinstance(tensor, FakeTensor):
        return getattr(tensor, "constant", None) is not None
    return not isinstance(tensor, torch.Tensor) or tensor.device.type != "meta"


def _scalar(tensor: torch.Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return False
    return 1.0 if tensor.dtype.is_floating_point else 1


def _every_position(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)


def _whole(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    del mask
    return tensor.new_empty((tensor.numel(),))


def _unequal(first: torch.Tensor, second: torch.Tensor) -> bool:
    del first, second
    return False


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) and not _has_values(index)


def _picked(tensor: torch.Tensor, indices: list[Any]) -> Any:
    return _aten.index.Tensor(tensor, _without_masks(indices))


def _put(tensor: torch.Tensor, indices: list[Any], *rest: Any) -> Any:
    values = rest[0].expand(()) if rest[0].numel() == 1 else rest[0]
    return _aten.index_put_.default(tensor, _without_masks(indices), values, *rest[1:])


def _without_masks(indices: list[Any]) -> list[Any]:
    """Replaces each mask by as many lists of positions as it has dimensions, as if it held true everywhere."""
    found: list[Any] = []
    for index in indices:
        found += [index.new_empty((index.numel(),), dtype=torch.int64)] * index.dim() if _is_mask(index) else [index]
    return found


def _at_positions(dense: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns as many values as the mask has positions; torch answers with none for tensors without values."""
    values = torch.empty_like(mask._values(), dtype=dense.dtype)
    return torch.sparse_coo_tensor(mask._indices(), values, dense.shape, check_invariants=False)


def _coalesced(sparse: torch.Tensor) -> torch.Tensor:
    """Positions that are given twice are taken once; at most all are different."""
    positions, values = (torch.empty_like(each) for each in (sparse._indices(), sparse._values()))
    result = torch.sparse_coo_tensor(positions, values, sparse.shape, check_invariants=False)
    return result._coalesced_(True)


_MASKABLE = frozenset({_aten.index.Tensor, _aten.index_put_.default})

_ANSWERS: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: _scalar,
    _aten.nonzero.default: _every_position,
    _aten.masked_select.default: _whole,
    _aten.equal.default: _unequal,
    _aten.sparse_mask.default: _at_positions,
    _aten._coalesce.default: _coalesced,
    _aten.index.Tensor: _picked,
    _aten.index_put_.default: _put,
}
