"""Prices a candidate by the closed form, or by a trace where the closed form does not know the model."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from operator import attrgetter

from autopeft.errors import MissingExtraError
from autopeft.memory.closed_form import (
    UnsupportedArchitectureError,
    UnsupportedMethodError,
    covers,
    estimate_memory,
    unknown_step,
)
from autopeft.memory.storage import priced_as_stored
from autopeft.specs import Candidate, Device, MemoryEstimate, ModelSpec

WITHOUT_MEMORY = frozenset(
    {"learning_rate", "scheduler", "warmup_ratio", "weight_decay", "max_grad_norm", "lora_alpha"}
)
"""Fields of a candidate that decide nothing about memory: candidates that differ in them only are traced once."""

_MEMORY_FIELDS = attrgetter(
    *(each.name for each in fields(Candidate) if each.name not in WITHOUT_MEMORY and each.name != "options")
)


def price_memory(
    candidate: Candidate, model: ModelSpec, device: Device | None, *, sequence_length: int
) -> MemoryEstimate:
    """Returns the predicted memory and time of one training step.

    Args:
        candidate: what is trained.
        model: its base model; one that the closed form does not know is traced, as is a method that it does not know:
            half a second for each candidate that differs in anything that takes memory.
        device: what trains; None means an unnamed CUDA device of unknown speed.
        sequence_length: tokens of a row, padding included.

    Raises:
        UnsupportedArchitectureError: if the closed form does not know the model and the training stack, which tracing
            takes, is not installed.
        UnsupportedMethodError: likewise for the method.
    """
    candidate, remark = priced_as_stored(candidate, model)
    estimate = _priced(_Request(candidate, model, device, sequence_length))
    return estimate if remark is None else replace(estimate, assumptions=(*estimate.assumptions, remark))


def memory_key(candidate: Candidate) -> tuple[object, ...]:
    """Returns what decides a candidate's memory and time: equal for candidates that differ in nothing of it."""
    return _MEMORY_FIELDS(candidate), tuple(sorted(candidate.options.items()))


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """A trace as a cache's key, equal to another where all that takes memory is."""

    candidate: Candidate
    model: ModelSpec
    device: Device | None
    sequence_length: int

    def _key(self) -> tuple[object, ...]:
        device = self.device and (self.device.name, self.device.kind, self.device.free_memory_bytes)
        return id(self.model), device, self.sequence_length, memory_key(self.candidate)

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Request) and self._key() == other._key()


def _priced(request: _Request) -> MemoryEstimate:
    of_model = covers(request.model)
    reason = of_model or unknown_step(request.candidate.method)
    if reason is None:
        return estimate_memory(
            request.candidate, request.model, request.device, sequence_length=request.sequence_length
        )
    try:
        estimate = _traced(request)
    except MissingExtraError as error:
        if of_model is None:
            raise UnsupportedMethodError(request.candidate.method) from error
        raise UnsupportedArchitectureError(request.model, of_model) from error
    return replace(estimate, assumptions=(f"traced, since {reason}", *estimate.assumptions))


@functools.lru_cache(maxsize=1024)
def _traced(request: _Request) -> MemoryEstimate:
    from autopeft.memory.trace import trace_memory

    return trace_memory(request.candidate, request.model, request.device, sequence_length=request.sequence_length)
