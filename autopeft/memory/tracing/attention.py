"""What CUDA's fused attention kernels keep and borrow, as torch.autograd functions without arithmetic.

Flash attention (Dao 2023, arXiv 2307.08691; the kernels in torch and in the flash_attn package allocate alike) keeps
query, key, value, output and one float32 a row and head. Its backward borrows a float32 accumulator of the query's
gradient, one float32 a row and head, and, where heads share keys, the keys' and values' gradients for every head.
The memory-efficient kernel, which torch takes for masks and for float32, keeps the mask as a bias as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autopeft.memory.tracing.costs import KernelLedger

ROW_MULTIPLE = 128
"""Rows that the backward's working memory is rounded up to (``mha_bwd`` in flash_api.cpp)."""

SIXTEEN_BIT = (torch.float16, torch.bfloat16)


class _Attention(torch.autograd.Function):  # type: ignore[misc]  # torch is not type-checked here
    """Query ``(rows, heads, length, width)``; key and value may have fewer heads."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any, ledger: KernelLedger) -> Any:
        output = torch.empty_like(query)
        if value.shape[-1] != query.shape[-1]:
            output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums, *([] if bias is None else [bias]))
        ctx.ledger = ledger
        _book(ledger, "forward", query, key, causal=bias is None)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        del gradient
        query, key, value, _, _, *bias = ctx.saved_tensors  # once: checkpointing unpacks by running the forward again
        wide = query.dtype in SIXTEEN_BIT
        rows = -(-query.shape[-2] // ROW_MULTIPLE) * ROW_MULTIPLE
        borrowed = [query.new_empty((*query.shape[:-2], rows), dtype=torch.float32)]
        if wide:
            width = -(-query.shape[-1] // 32) * 32
            borrowed.append(query.new_empty((*query.shape[:-2], rows, width), dtype=torch.float32))
        grads = [torch.empty_like(each) for each in (query, key, value)]
        if key.shape[1] != query.shape[1]:
            expanded = (key.shape[0], query.shape[1], *key.shape[2:])
            borrowed += [key.new_empty(expanded), value.new_empty((*expanded[:-1], value.shape[-1]))]
        _book(ctx.ledger, "backward", query, key, causal=not bias)
        del borrowed
        return (*grads, None, None)


def fused_attention(ledger: KernelLedger) -> Callable[..., Any]:
    """Returns a stand-in for ``torch.nn.functional.scaled_dot_product_attention`` as CUDA runs it."""

    def attend(query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        query, key, value = (_narrowed(each) for each in (query, key, value))
        bias = None if attn_mask is None else _bias(attn_mask, query)
        return _Attention.apply(query, key, value, bias, ledger)

    return attend


def flash_attention(ledger: KernelLedger) -> Callable[..., Any]:
    """Returns a stand-in for transformers' ``_flash_attention_forward``: ``(rows, length, heads, width)`` tensors."""

    def attend(query: Any, key: Any, value: Any, attention_mask: Any = None, *args: Any, **kwargs: Any) -> Any:
        del args
        target = kwargs.get("target_dtype")
        states = [each if target is None else each.to(target) for each in (query, key, value)]
        if attention_mask is not None:
            states = [_unpadded(each) for each in states]
        output = _Attention.apply(*(each.transpose(1, 2) for each in states), None, ledger).transpose(1, 2)
        return output if attention_mask is None else _unpadded(output)

    return attend


def _narrowed(states: Any) -> Any:
    """Autocast runs attention in 16 bits."""
    if torch.is_autocast_enabled("cpu") and states.dtype == torch.float32:
        return states.to(torch.get_autocast_dtype("cpu"))
    return states


def _bias(mask: Any, query: Any) -> Any:
    """Torch makes a bias of a mask of conditions before it calls the kernel."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=query.dtype)
    return mask.to(query.dtype)


class _Gathered(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, states: Any) -> Any:
        del ctx
        return states.new_empty(states.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        del ctx
        return gradient.new_empty(gradient.shape)


def _unpadded(states: Any) -> Any:
    """Rows are gathered without their padding before the kernel and spread again after it; at most all are there."""
    return _Gathered.apply(states)


def _book(ledger: KernelLedger, phase: str, query: Any, key: Any, *, causal: bool) -> None:
    """Books two products forward and five backward (flash recomputes the scores); half of them under a causal mask."""
    rows, heads, length, width = query.shape
    products = 2 if phase == "forward" else 5
    joined = rows == 1 and 0 < ledger.longest_row < length and length % ledger.longest_row == 0
    reach = ledger.longest_row if joined else key.shape[-2]
    flops = products * 2.0 * rows * heads * length * reach * width * (0.5 if causal else 1.0)
    element = query.element_size()
    moved = element * (2.0 * query.numel() + 2.0 * key.numel()) * (1 if phase == "forward" else 2)
    ledger.add("attention", str(query.dtype).removeprefix("torch."), flops, moved, 1 if phase == "forward" else 3)
