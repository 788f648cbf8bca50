"""Splits an effective batch into forwards that fit, and decides on activation checkpointing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from autopeft.specs import Candidate, MemoryEstimate

Price = Callable[[Candidate], MemoryEstimate]

SAME_MEMORY = 0.01


def divisors(count: int) -> tuple[int, ...]:
    """Returns the divisors of ``count``, falling."""
    small = [n for n in range(1, math.isqrt(count) + 1) if count % n == 0]
    return tuple(sorted({*small, *(count // n for n in small)}, reverse=True))


def solve_batch(candidate: Candidate, effective_batch_size: int, available_bytes: int, price: Price) -> Candidate:
    """Returns the candidate with batch, accumulation and checkpointing set.

    The product of batch and accumulation is the effective batch exactly. Taken is the largest batch that fits without
    checkpointing, with the estimate's stated error to spare; else the largest with it; else batch 1 with it, which then
    does not fit. Where the first needs several forwards, the second is taken if its predicted time is lower: a
    quantized base is dequantized in every forward, so many small forwards can cost more than recomputing activations.
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


def leanest_batch(candidate: Candidate, effective_batch_size: int, price: Price) -> Candidate:
    """Returns the candidate in the form that needs the least memory, whatever is available.

    Of forms within ``SAME_MEMORY`` of the least, the fastest: where weights or the optimizer set the peak, a larger
    batch costs no memory.
    """
    forms = [
        _split(candidate, effective_batch_size, batch, checkpointing=checkpointing)
        for batch in divisors(effective_batch_size)
        for checkpointing in (False, True)
    ]
    priced = [(price(form), form) for form in forms]
    least = min(estimate.required_bytes for estimate, _ in priced)
    lean = [pair for pair in priced if pair[0].required_bytes <= (1 + SAME_MEMORY) * least]
    return min(lean, key=lambda pair: (pair[0].seconds_per_step or 0.0, pair[0].required_bytes))[1]


def _largest(
    candidate: Candidate, effective_batch_size: int, available_bytes: int, price: Price, *, checkpointing: bool
) -> tuple[Candidate, MemoryEstimate] | None:
    """Returns the largest batch that fits; None if batch 1 does not.

    Between the accumulating splits memory grows with the batch, so they are searched by halving. The whole batch stands
    apart: without accumulation no gradients are held during the forward.
    """

    def tried(batch: int) -> tuple[Candidate, MemoryEstimate] | None:
        split = _split(candidate, effective_batch_size, batch, checkpointing=checkpointing)
        estimate = price(split)
        return (split, estimate) if safe_bytes(split, estimate) <= available_bytes else None

    whole, *smaller = divisors(effective_batch_size)
    found = tried(whole)
    if found is not None or not smaller:
        return found
    found = tried(1)
    first, last = 0, len(smaller) - 1
    while found is not None and first < last:
        middle = (first + last) // 2
        better = tried(smaller[middle])
        found, first, last = (found, middle + 1, last) if better is None else (better, first, middle)
    return found


def safe_bytes(candidate: Candidate, estimate: MemoryEstimate) -> int:
    """Returns what a batch must have free to be chosen: the estimate's stated error on top, but for the smallest.

    A batch that fits only if the estimate is exact runs out of memory half of the time; batch 1 has no alternative.
    """
    if candidate.per_device_batch_size == 1:
        return estimate.required_bytes
    return estimate.required_bytes + math.ceil(estimate.relative_error * estimate.peak_memory_bytes)


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
