"""Lets fake tensors on the host processor take the ways that the target device would take."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from autopeft.specs import DeviceKind

_autocast_enabled = torch.is_autocast_enabled


@contextlib.contextmanager
def kernels_of(kind: DeviceKind) -> Iterator[None]:
    """Within it, python-level calls allocate what they would on a device of this kind.

    A host processor is traced as it is. Every other kind is taken for CUDA: fused dropout that keeps one byte an
    element, attention kernels that apply dropout inside, bitsandbytes' int8 product, Triton kernels in trl's head,
    and CUDA's list of functions that autocast runs in float32.
    """
    if kind == "cpu":
        yield
        return
    import bitsandbytes
    from trl.kernels import chunked_logprob

    with (
        mock.patch.object(chunked_logprob, "_forward_tile", _nothing),
        mock.patch.object(chunked_logprob, "_backward_tile", _nothing),
        mock.patch.object(chunked_logprob, "_addmm_fp32", _nothing),
        mock.patch.object(bitsandbytes, "matmul", _int8_matmul),
        # Without an argument it answers for CUDA, which peft's quantized layers ask about.
        mock.patch.object(torch, "is_autocast_enabled", lambda device_type="cpu": _autocast_enabled("cpu")),
        _quiet("bitsandbytes.autograd._functions"),
        _CudaFunctions(),
    ):
        yield


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Silences a library's warning on every single call."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A Triton kernel or a product into an existing buffer allocates nothing."""
    del args, kwargs


def _int8_matmul(a: Any, b: Any, out: Any = None, state: Any = None, threshold: float = 0.0, bias: Any = None) -> Any:
    from bitsandbytes.autograd._functions import MatMul8bitLt

    del threshold
    return MatMul8bitLt.apply(a, b, out, bias, state)


class _CudaFunctions(TorchFunctionMode):  # type: ignore[misc]  # torch is not type-checked here
    """Replaces the few functions whose CUDA form allocates otherwise than the host processor's."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _REPLACED:
            return _REPLACED[func](*args, **kwargs)
        if func in _FLOAT32_UNDER_AUTOCAST and _autocast_enabled("cpu"):
            args = tuple(_upcast(value) for value in args)
            kwargs = {name: _upcast(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _dropout(values: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    del inplace
    return torch.native_dropout(values, p, True)[0] if training and p > 0 else values


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    return functional.scaled_dot_product_attention(query, key, value, *args, **(kwargs | {"dropout_p": 0.0}))


_REPLACED: dict[Any, Callable[..., Any]] = {
    functional.dropout: _dropout,
    functional.scaled_dot_product_attention: _attention,
}

# https://docs.pytorch.org/docs/stable/amp.html lists them ("CUDA ops that autocast to float32"; recalled); the host
# processor's list is shorter.
_FLOAT32_UNDER_AUTOCAST = frozenset(
    {
        functional.layer_norm,
        functional.softmax,
        functional.log_softmax,
        torch.softmax,
        torch.log_softmax,
        torch.Tensor.softmax,
        torch.pow,
        torch.Tensor.pow,
        torch.Tensor.__pow__,
        torch.sum,
        torch.Tensor.sum,
    }
)


def _upcast(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value
