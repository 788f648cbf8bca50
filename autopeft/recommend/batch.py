"""Splits an effective batch into forwards that fit, and decides on activation checkpointing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from autopeft.specs import Candidate, MemoryEstimate

Price = Callable[[Candidate], MemoryEstimate]


def divisors(count: int) -> tuple[int, ...]:
    """Returns the divisors of ``count``, falling."""
    small = [n for n in range(1, math.isqrt(count) + 1) if count % n == 0]
    return tuple(sorted({*small, *(count // n for n in small)}, reverse=True))


def solve_batch(candidate: Candidate, effective_batch_size: int, available_bytes: int, price: Price) -> Candidate:
    """Returns the candidate with batch, accumulation and checkpointing set.

    The product of batch and accumulation is the effective batch exactly. Taken is the largest batch that fits without
    checkpointing; else the largest with it; else batch 1 with it, which then does not fit. Where the first needs
    several forwards, the second is taken if its predicted time is lower: a quantized base is dequantized in every
    forward, so many small forwards can cost more than recomputing activations.
    """
    whole = _split(candidate, effective_batch_size, effective_batch_size, checkpointing=False)
    plain = _largest(candidate, effective_batch_size, available_bytes, price, checkpointing=False)
    if plain is not None and plain[0] == whole:
        return whole
    recomputed = _largest(candidate, effective_batch_size, available_bytes, price, checkpointing=True)
    if plain is not None and (recomputed is None or not _faster(recomputed[1], plain[1])):
        return plain[0]
    if recomputed is not None:
        return recomputed[0]
    return _split(candidate, effective_batch_size, 1, checkpointing=True)


def _largest(
    candidate: Candidate, effective_batch_size: int, available_bytes: int, price: Price, *, checkpointing: bool
) -> tuple[Candidate, MemoryEstimate] | None:
    for batch in divisors(effective_batch_size):
        tried = _split(candidate, effective_batch_size, batch, checkpointing=checkpointing)
        estimate = price(tried)
        if estimate.required_bytes <= available_bytes:
            return tried, estimate
    return None


def _split(candidate: Candidate, effective_batch_size: int, batch: int, *, checkpointing: bool) -> Candidate:
    return replace(
        candidate,
        per_device_batch_size=batch,
        gradient_accumulation_steps=effective_batch_size // batch,
        activation_checkpointing=checkpointing,
    )


def _faster(estimate: MemoryEstimate, other: MemoryEstimate) -> bool:
    if estimate.seconds_per_step is None or other.seconds_per_step is None:
        return False
    return estimate.seconds_per_step < other.seconds_per_step
