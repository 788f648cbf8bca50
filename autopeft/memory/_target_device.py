"""Lets fake tensors on the host processor take the ways that the target device would take."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

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
        mock.patch.object(torch, "is_autocast_enabled", _host_autocast_enabled),
        _quiet("bitsandbytes.autograd._functions"),
        _cuda_functions(),
    ):
        yield


def _host_autocast_enabled(device_type: str = "cpu") -> bool:
    """Answers for the host processor, whatever device is asked about: a trace's autocast is the host's."""
    del device_type
    return bool(_autocast_enabled("cpu"))


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


@contextlib.contextmanager
def _cuda_functions() -> Iterator[None]:
    """Replaces the few functions whose CUDA form allocates otherwise than the host processor's.

    They are replaced by name: a TorchFunctionMode is not active where checkpointing runs a forward again.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(functional, "dropout", _dropout))
        attention = _without_dropout(functional.scaled_dot_product_attention)
        stack.enter_context(mock.patch.object(functional, "scaled_dot_product_attention", attention))
        for module, name in _FLOAT32_UNDER_AUTOCAST:
            stack.enter_context(mock.patch.object(module, name, _upcasting(getattr(module, name))))
        yield


def _dropout(values: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    del inplace
    return torch.native_dropout(values, p, True)[0] if training and p > 0 else values


def _without_dropout(attention: Callable[..., Any]) -> Callable[..., Any]:
    """CUDA's kernels draw attention dropout inside; the host processor's would build the matrix of scores for it."""

    def wrapped(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return attention(query, key, value, *args, **(kwargs | {"dropout_p": 0.0}))

    return wrapped


# Of CUDA's functions that autocast runs in float32 (torch's documentation of amp, recalled), those that the host
# processor's list lacks and that models call on 16-bit tensors.
_FLOAT32_UNDER_AUTOCAST = (
    (functional, "layer_norm"),
    (functional, "softmax"),
    (functional, "log_softmax"),
    (torch, "softmax"),
    (torch, "pow"),
)


def _upcasting(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not _autocast_enabled("cpu"):
            return function(*args, **kwargs)
        upcast_kwargs = {name: _upcast(value) for name, value in kwargs.items()}
        return function(*(_upcast(value) for value in args), **upcast_kwargs)

    return wrapped


def _upcast(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value
