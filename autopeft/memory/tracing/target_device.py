"""Lets fake tensors on the host processor take the ways that the target device would take."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from autopeft.memory.tracing.attention import flash_attention, fused_attention
from autopeft.memory.tracing.costs import KernelLedger
from autopeft.specs.hardware import DeviceKind

_autocast_enabled = torch.is_autocast_enabled


@contextlib.contextmanager
def kernels_of(kind: DeviceKind, ledger: KernelLedger) -> Iterator[None]:
    """Within it, python-level calls allocate what they would on a device of this kind.

    A host processor is traced as it is. Every other kind is taken for CUDA: fused dropout that keeps one byte an
    element, fused attention with its working memory, bitsandbytes' int8 product, Triton kernels in trl's head, and
    CUDA's list of functions that autocast runs in float32.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_flash_attention_stand_in(ledger))
        if kind != "cpu":
            stack.enter_context(_triton_kernels())
            stack.enter_context(_int8_product())
            # Without an argument it answers for CUDA, which peft's quantized layers ask about.
            stack.enter_context(mock.patch.object(torch, "is_autocast_enabled", _host_autocast_enabled))
            stack.enter_context(_cuda_functions(ledger))
        yield


@contextlib.contextmanager
def _triton_kernels() -> Iterator[None]:
    try:
        from trl.kernels import chunked_logprob
    except ImportError:  # an older trl, or none: its head has no kernels of its own
        yield
        return
    with (
        mock.patch.object(chunked_logprob, "_forward_tile", _nothing),
        mock.patch.object(chunked_logprob, "_backward_tile", _nothing),
        mock.patch.object(chunked_logprob, "_addmm_fp32", _nothing),
    ):
        yield


@contextlib.contextmanager
def _int8_product() -> Iterator[None]:
    try:
        import bitsandbytes
    except ImportError:
        yield
        return
    with mock.patch.object(bitsandbytes, "matmul", _int8_matmul), _quiet("bitsandbytes.autograd._functions"):
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


_CALLERS = ("modeling_", "flash_attention")
"""Modules of transformers that call the flash_attn package, by the beginning of their names."""


@contextlib.contextmanager
def _flash_attention_stand_in(ledger: KernelLedger) -> Iterator[None]:
    """Answers for the flash_attn package, which need not be there to trace what it keeps."""
    stand_in = flash_attention(ledger)
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.") and name.rpartition(".")[2].startswith(_CALLERS):
                stack.enter_context(mock.patch.object(module, "_flash_attention_forward", stand_in, create=True))
        yield


@contextlib.contextmanager
def _cuda_functions(ledger: KernelLedger) -> Iterator[None]:
    """Replaces the few functions whose CUDA form allocates otherwise than the host processor's.

    They are replaced by name: a TorchFunctionMode is not active where checkpointing runs a forward again.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(functional, "dropout", _dropout))
        stack.enter_context(mock.patch.object(functional, "scaled_dot_product_attention", fused_attention(ledger)))
        for module, name in _FLOAT32_UNDER_AUTOCAST:
            stack.enter_context(mock.patch.object(module, name, _upcasting(getattr(module, name))))
        yield


@contextlib.contextmanager
def denominators_apart(wanted: bool) -> Iterator[None]:
    """Lets a foreach update divide by tensors of their own instead of by the square roots that it has made."""
    if not wanted:
        yield
        return
    divide = torch._foreach_addcdiv_

    def dividing(params: Any, averages: Any, roots: Any, *args: Any) -> None:
        divide(params, averages, torch._foreach_add(roots, 0.0), *args)

    with mock.patch.object(torch, "_foreach_addcdiv_", dividing):
        yield


def _dropout(values: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    del inplace
    return torch.native_dropout(values, p, True)[0] if training and p > 0 else values


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
