"""Remembers what an operator makes of tensors of given shapes, so that torch is asked once and not once a layer.

A step calls some thousand operators on a few hundred combinations of shapes. torch's FakeTensorMode remembers them too,
but for any program: its key and its checks take longer than everything else in a trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

from autopeft.memory.tracing.costs import Booking
from autopeft.memory.tracing.values import reads_values

_PLAIN = frozenset(
    {int, float, bool, str, type(None), complex, torch.dtype, torch.device, torch.layout, torch.memory_format}
)
"""Types of arguments that say all by their value."""

_UNCACHEABLE_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)


class _Argument(NamedTuple):
    """A result that is one of the tensors given: what an in-place operator returns."""

    place: int


class _View(NamedTuple):
    """A result that shares its storage with one of the tensors given."""

    place: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


class _Fresh(NamedTuple):
    """A result with a storage of its own."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


_Result = _Argument | _View | _Fresh | None


@dataclass(slots=True, eq=False)
class Remembered:
    """What an operator makes of its arguments.

    Attributes:
        results: one entry a result.
        form: list or tuple, where there are several; None for a single result.
        bookings: by whether the optimizer runs, what the call costs.
    """

    results: tuple[_Result, ...]
    form: type | None
    bookings: dict[bool, list[Booking]] = field(default_factory=dict)


class Call(NamedTuple):
    """A call of an operator whose result depends on shapes alone.

    Attributes:
        key: operator and arguments, tensors by dtype, shape, strides, offset and device.
        tensors: those among the arguments.
    """

    key: tuple[Any, ...]
    tensors: list[FakeTensor]


class ShapeMemory:
    """Results of operators by the shapes of their arguments; one serves all traces of a request."""

    def __init__(self) -> None:
        self._remembered: dict[tuple[Any, ...], Remembered] = {}
        self._refused: set[Any] = set()

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Call | None:
        """Returns a call that can be remembered; None where values matter, or tensors that are not fake."""
        if func in self._refused:
            return None
        tensors: list[FakeTensor] = []
        key: list[Any] = [func]
        if not _describe(args, key, tensors):
            return None
        if kwargs:
            key.extend(kwargs)
            if not _describe(kwargs.values(), key, tensors):
                return None
        if len(tensors) > 1:
            places = list(map(id, tensors))
            if len(set(places)) < len(places):  # x * x reads less than x * y
                key.append(tuple(map(places.index, places)))
        return Call(tuple(key), tensors)

    def recall(self, call: Call) -> Remembered | None:
        """Returns what is known of a call."""
        return self._remembered.get(call.key)

    def learn(self, func: Any, call: Call, result: Any) -> Remembered | None:
        """Remembers a call's result; None if it cannot be made again from shapes."""
        values_matter = reads_values(func) or any(tag in _UNCACHEABLE_TAGS for tag in getattr(func, "tags", ()))
        learnt = None if values_matter else _learnt(call, result)
        if learnt is None:
            self._refused.add(func)
            return None
        self._remembered[call.key] = learnt
        return learnt


def made(remembered: Remembered, call: Call, mode: Any) -> Any:
    """Returns the result of a remembered call as tensors of a fake mode."""
    if remembered.form is None:
        return _made(remembered.results[0], call.tensors, mode)
    return remembered.form([_made(spec, call.tensors, mode) for spec in remembered.results])


def _made(spec: _Result, tensors: list[FakeTensor], mode: Any) -> FakeTensor | None:
    if spec is None or isinstance(spec, _Argument):
        return None if spec is None else tensors[spec.place]
    with torch._C._DisableTorchDispatch():
        inner = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")
        if isinstance(spec, _View):
            inner.set_(tensors[spec.place].untyped_storage(), spec.offset, spec.shape, spec.stride)
        return FakeTensor(mode, inner, spec.device)


def _describe(values: Any, key: list[Any], tensors: list[FakeTensor]) -> bool:
    """Adds to a key what is known of some arguments; False if one of them says more by its values."""
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            key.append(kind)
            key.append(value)
        elif isinstance(value, FakeTensor):
            if value.constant is not None or value.layout is not torch.strided:
                return False
            stride = value.stride()
            tensors.append(value)
            key += (value.dtype, value.shape, stride, value.storage_offset(), value.fake_device)
            if 0 in stride:
                key.append(value.untyped_storage().nbytes())
        elif kind is list or kind is tuple:
            key.append(kind)
            key.append(len(value))
            if not _describe(value, key, tensors):
                return False
        else:
            return False
    return True


def _learnt(call: Call, result: Any) -> Remembered | None:
    form = type(result) if type(result) in (list, tuple) else None
    results = tuple(result) if form is not None else (result,)
    specs = [_spec(each, call.tensors) for each in results]
    if any(spec is NotImplemented for spec in specs):
        return None
    own = [each.untyped_storage()._cdata for each, spec in zip(results, specs, strict=True) if type(spec) is _Fresh]
    return Remembered(tuple(specs), form) if len(set(own)) == len(own) else None


def _spec(result: Any, tensors: list[FakeTensor]) -> Any:
    """Returns how to make a result again; NotImplemented if it cannot be told from shapes."""
    if result is None:
        return None
    for place, tensor in enumerate(tensors):
        if result is tensor:
            return _Argument(place)
    if type(result) is not FakeTensor or not _is_ordinary(result):
        return NotImplemented
    shape, stride, device = tuple(result.shape), result.stride(), result.fake_device
    storage = result.untyped_storage()
    for place, tensor in enumerate(tensors):
        if tensor.untyped_storage()._cdata == storage._cdata:
            return _View(place, shape, stride, result.storage_offset(), result.dtype, device)
    with torch._C._DisableTorchDispatch():
        alike = torch.empty_strided(shape, stride, dtype=result.dtype, device="meta").untyped_storage().nbytes()
    whole = result.storage_offset() == 0 and alike == storage.nbytes()
    return _Fresh(shape, stride, result.dtype, device) if whole else NotImplemented


def _is_ordinary(tensor: FakeTensor) -> bool:
    odd = tensor.constant is not None or tensor.requires_grad or tensor.is_conj() or tensor.is_neg()
    return not odd and tensor.layout is torch.strided and not tensor.is_quantized
