"""Counts what a traced step asks of the device and of the host: operations, bytes, kernels, calls.

Kernels are booked by class, dtype and size, so that a roofline can be applied to kernels of one size instead of to
sums; nothing here knows a device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry


class KernelKey(NamedTuple):
    """What kernels that are summed have in common.

    Attributes:
        kind: kernel class: "matmul", "attention", "elementwise", "gather", "dequantize", "optimizer"; "call" counts
            calls of torch operators (views too), which cost the host time, "sync" reads of values, for which the
            host waits, and "transfer" copies between the host and the device.
        dtype: of their inputs; of the result where weights are dequantized.
        size: bytes of one kernel, as a power of two; 0 where the size depends on the model's depth.
        intensity: operations a byte, as a power of two.
    """

    kind: str
    dtype: str
    size: int = 0
    intensity: int = 0


class _Traits(NamedTuple):
    """How an operator is booked: its class, kernels of one call, how its bytes are counted, its FLOP formula."""

    kind: str
    kernels: int
    bytes: str
    formula: Any


_VIEWS = frozenset(
    {
        "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
        "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "chunk", "reshape", "empty",
        "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh", "unfold", "diagonal",
        "movedim", "_reshape_alias", "set_", "resize_", "view_as_real", "view_as_complex", "real", "imag",
    }
)  # fmt: skip
"""Operators that start no kernel."""

_SYNCS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"})

_GATHERS = frozenset({"embedding", "index", "index_select", "gather", "take", "_index_put_impl_"})
"""Operators that read as much of their first input as they write."""

_FILLS = frozenset({"fill_", "zero_", "copy_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_"})
"""In-place operators that do not read what they overwrite."""

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

_KERNELS = {
    "slice_backward": 2, "select_backward": 2, "constant_pad_nd": 2, "native_layer_norm_backward": 2,
    "embedding_dense_backward": 6, "index_put_": 5, "_index_put_impl_": 5, "index_put": 6, "nonzero": 4,
    "masked_select": 6, "sort": 4, "topk": 4, "cumsum": 2, "unique": 6, "_linalg_svd": 100, "linalg_qr": 50,
    "_linalg_solve_ex": 10, "linalg_lu_factor_ex": 5, "linalg_inv_ex": 10, "_fft_c2c": 2, "_fft_r2c": 2, "_fft_c2r": 2,
}  # fmt: skip
"""Kernels of operators that start several: a fill and a copy, sorts, solvers (read in ATen's CUDA sources as far as
memory goes: recalled, unverified); all others start one."""

_LIST_CHUNK_ELEMENTS = 65536 * 320
"""Elements that one multi-tensor kernel takes: 320 blocks of 65,536 (ATen/native/cuda/MultiTensorApply.cuh)."""

_LIST_TENSORS = (110, 64, 48, 36, 30)
"""Tensors that one multi-tensor kernel takes, by the number of lists (the same file)."""


class Booking(NamedTuple):
    """What one call adds to a ledger."""

    key: KernelKey
    flops: float
    moved_bytes: float
    launches: float


class KernelLedger:
    """Sums per moment name and key: operations, bytes read and written, kernels or calls.

    Attributes:
        longest_row: tokens of a row; attention does not reach across rows that a loop has joined to one. 0 if unknown.
    """

    def __init__(self) -> None:
        self.sums: dict[tuple[str, KernelKey], list[float]] = {}
        self.longest_row = 0
        self._moment = ""

    def book(self, moment_name: str, bookings: Iterable[Booking]) -> None:
        """Adds what one call costs."""
        self._moment = moment_name
        for key, flops, moved_bytes, launches in bookings:
            entry = self.sums.get((moment_name, key))
            if entry is None:
                self.sums[moment_name, key] = [flops, moved_bytes, launches]
            else:
                entry[0] += flops
                entry[1] += moved_bytes
                entry[2] += launches

    def add(self, kind: str, dtype: str, flops: float, moved: float, kernels: int = 1) -> None:
        """Books kernels of the current moment that no operator of the trace stands for."""
        self.book(self._moment, [_kernels(kind, dtype, flops, moved, kernels)])


_CALL = Booking(KernelKey("call", ""), 0.0, 0.0, 1)
_SYNC = Booking(KernelKey("sync", ""), 0.0, 0.0, 1)


def bookings_of(
    func: Any, args: Any, kwargs: dict[str, Any], results: list[torch.Tensor], *, in_optimizer: bool
) -> list[Booking]:
    """Returns what one call of an operator costs."""
    traits = _traits(func)
    if traits.kind == "none":
        return []
    if _on_host(args, results):
        return _of_host(func, args, results)
    if traits.kind == "view" or (traits.kind == "sync" and in_optimizer):
        return [_CALL]  # what an optimizer reads are its step counters, which stay on the host
    if traits.kind == "sync" and not results:
        return [_CALL, _SYNC]
    sync = [_SYNC] if traits.kind == "sync" else []
    if traits.bytes == "list":
        return [_CALL, *sync, *_of_lists(args, results)]
    if traits.bytes == "four bits":
        return [_CALL, *sync, *_of_four_bits(args, results)]
    return [_CALL, *sync, _of_kernels(traits, args, kwargs, results, in_optimizer)]


def _on_host(args: Any, results: list[torch.Tensor]) -> bool:
    """Whether a call writes or reads what the host holds, which is on the meta device while a step is traced."""
    return any(each.dim() and _is_held_by_host(each) for each in (*results[:1], *_flat(args[:2])))


def _is_held_by_host(tensor: torch.Tensor) -> bool:
    return bool(tensor.device.type == "meta")


def _of_host(func: Any, args: Any, results: list[torch.Tensor]) -> list[Booking]:
    """Returns the cost of a copy between the host and the device, for which both wait; the host's own work is a call.

    What changes its dtype is converted by the host before it is sent (ATen/native/cuda/Copy.cu); the time of that is
    left out.
    """
    if func not in _COPIES or all(map(_is_held_by_host, (*results, *_flat(args)))):
        return [_CALL]
    return [_CALL, _SYNC, Booking(KernelKey("transfer", _dtype(results)), 0.0, _bytes(results), 1)]


def _of_kernels(
    traits: _Traits, args: Any, kwargs: dict[str, Any], results: list[torch.Tensor], in_optimizer: bool
) -> Booking:
    inputs = _tensors(args)
    moved = _moved(traits.bytes, inputs, results)
    flops = _flops(traits, args, kwargs, results)
    kind = "elementwise" if traits.kind == "sync" else traits.kind
    kind = "optimizer" if in_optimizer and kind == "elementwise" else kind
    dtype = _dtype(results if traits.kind == "dequantize" else inputs or results)
    return _kernels(kind, dtype, flops, moved, traits.kernels)


def _kernels(kind: str, dtype: str, flops: float, moved: float, kernels: int = 1) -> Booking:
    size, intensity = 0, 0
    if kind != "optimizer":
        size = int(moved / kernels).bit_length()
        intensity = int(flops / max(moved, 1.0)).bit_length()
    return Booking(KernelKey(kind, dtype, size, intensity), flops, moved, kernels)


def _of_lists(args: Any, results: list[torch.Tensor]) -> list[Booking]:
    """Returns what a multi-tensor operator costs; one without a result writes to its first list."""
    lists = [each for each in args if isinstance(each, list | tuple) and each and isinstance(each[0], torch.Tensor)]
    if not lists:
        return []
    moved = _bytes(_tensors(lists)) + _bytes(results or lists[0])
    elements = sum(each.numel() for each in lists[0])
    tensors = _LIST_TENSORS[min(len(lists), len(_LIST_TENSORS)) - 1]
    kernels = max(math.ceil(len(lists[0]) / tensors), math.ceil(elements / _LIST_CHUNK_ELEMENTS))
    return [_kernels("optimizer", _dtype(lists[0]), float(elements), moved, kernels)]


def _of_four_bits(args: Any, results: list[torch.Tensor]) -> list[Booking]:
    """Returns the cost of bitsandbytes' ``gemm_4bit``, which above 256 rows rebuilds the weight and multiplies it."""
    states, packed, (rows, columns), scales = args[:4]
    rebuilt = float(rows * columns * states.element_size())
    dtype = _dtype([states])
    return [
        _kernels("dequantize", dtype, float(rows * columns), _bytes([packed, scales]) + rebuilt),
        _kernels("matmul", dtype, 2.0 * states.numel() * rows, _bytes([states, *results]) + rebuilt),
    ]


@functools.cache
def _traits(func: Any) -> _Traits:
    packet = getattr(func, "overloadpacket", None)
    namespace, _, name = str(packet if packet is not None else func).rpartition(".")
    if namespace in ("prim", "profiler"):
        return _Traits("none", 0, "", None)
    if name in _VIEWS or name.startswith("sym_"):
        return _Traits("view", 0, "", None)
    formula = flop_registry.get(packet) or (_int8_flops if name == "int8_linear_matmul" else None)
    return _Traits(_kind(name, formula), _KERNELS.get(name, 1), _counting(name), formula)


def _kind(name: str, formula: Any) -> str:
    if name in _SYNCS:
        return "sync"
    if formula is not None:
        return "attention" if "attention" in name else "matmul"
    if "quant" in name:
        return "dequantize"
    return "gather" if name in _GATHERS or name == "embedding_dense_backward" else "elementwise"


def _counting(name: str) -> str:
    """Returns how the bytes of an operator are counted."""
    if name.startswith("_foreach"):
        return "list"
    if name == "gemm_4bit":
        return "four bits"
    if name in _GATHERS:
        return "gather"
    if name in _FILLS or name in ("nll_loss_backward", "embedding_dense_backward"):
        return "overwrite"
    return "nll" if name == "nll_loss_forward" else "all"


def _moved(how: str, inputs: list[torch.Tensor], results: list[torch.Tensor]) -> float:
    """Returns the bytes read and written; an input that is given twice is read once."""
    written = _bytes(results)
    if how == "nll":
        return _bytes(inputs[1:]) + written
    if how == "gather":
        return _bytes(inputs[1:]) + 2 * written
    if how == "overwrite":
        return _bytes(inputs[1:2]) + written
    return _bytes(inputs) + written


def _flops(traits: _Traits, args: Any, kwargs: dict[str, Any], results: list[torch.Tensor]) -> float:
    """Returns floating-point operations; one an element where torch's counter has no formula."""
    if traits.formula is None:
        return float(sum(each.numel() for each in results))
    if traits.formula is flop_registry.get(torch.ops.aten.convolution_backward):
        found = iter(results)
        return float(traits.formula(*args, **kwargs, out_val=tuple(next(found) if each else None for each in args[-1])))
    return float(traits.formula(*args, **kwargs, out_val=results[0] if len(results) == 1 else tuple(results)))


def _int8_flops(states: Any, weight: Any, *args: Any, **kwargs: Any) -> float:
    """Returns the operations of ``(rows, in) x (out, in)`` (bitsandbytes' int8 product)."""
    del args, kwargs
    return float(2 * states.numel() * weight.shape[0])


def _tensors(args: Iterable[Any]) -> list[torch.Tensor]:
    return list({id(each): each for each in _flat(args)}.values())


def _flat(args: Iterable[Any]) -> Iterator[torch.Tensor]:
    for each in args:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from _flat(each)


def _bytes(tensors: Iterable[torch.Tensor]) -> float:
    """Returns the bytes of some tensors; an expanded one is no larger than what it repeats."""
    total = 0
    for each in tensors:
        if each.layout is torch.sparse_coo:
            total += int(_bytes((each._indices(), each._values())))
            continue
        size = each.numel() * each.element_size()
        if size and 0 in each.stride():
            size = min(size, each.untyped_storage().nbytes())
        total += size
    return float(total)


def _dtype(tensors: Sequence[torch.Tensor]) -> str:
    for each in tensors:
        if each.dtype.is_floating_point:
            return _NAMES.get(each.dtype) or str(each.dtype).removeprefix("torch.")
    return "int8" if tensors and tensors[0].dtype == torch.int8 else "int64"


_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
