"""Says what is missing where no candidate fits, and what would help."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.memory.storage import quantization_problem
from autopeft.recommend.candidates import CandidateFactory
from autopeft.recommend.devices import one_device_hint
from autopeft.recommend.rejections import grouped_lines
from autopeft.specs import MemoryEstimate, RejectedCandidate
from autopeft.units import format_gib

SHORT_LENGTH = 256


def shortage_text(factory: CandidateFactory, rejected: Sequence[RejectedCandidate]) -> str:
    """Returns one message: the smallest estimate, what it lacks and what would help, with numbers."""
    device = factory.hardware.device
    priced = [entry for entry in rejected if entry.required_bytes is not None]
    slow = [entry for entry in rejected if entry.predicted_seconds is not None]
    if slow:
        fastest = min(slow, key=lambda entry: (entry.predicted_seconds or 0.0, entry.method))
        return (
            f"nothing that fits is within the limits: the fastest, {fastest.method} (base {fastest.variant}), "
            f"{fastest.reason}; raise the limit, train on fewer rows, or take a faster device"
        )
    if not priced:
        reasons = grouped_lines((entry.method, entry.variant, entry.reason) for entry in rejected)
        return f"no method is left to train {factory.model.id} on {device.name}: {'; '.join(reasons)}"
    least = min(priced, key=lambda entry: (entry.required_bytes or 0, entry.method))
    required = least.required_bytes or 0
    return (
        f"nothing fits: training {factory.model.id} takes at least {format_gib(required)} ({required} bytes: "
        f"{least.method}, base {least.variant}, batch 1, activation checkpointing, rows of "
        f"{factory.advice.sequence_length} tokens), "
        f"available are {format_gib(factory.available_bytes)} ({factory.available_bytes} bytes)"
        f"{one_device_hint(factory.hardware)}, "
        f"{format_gib(required - factory.available_bytes)} too little. "
        f"What would help: {'; '.join(_remedies(factory, least))}"
    )


def _remedies(factory: CandidateFactory, least: RejectedCandidate) -> list[str]:
    required = least.required_bytes or 0
    free = factory.hardware.device.free_memory_bytes
    budget = f"a budget of {format_gib(required)} or more"
    if required > free:
        budget = f"a device with {format_gib(required)} free ({factory.hardware.device.name} has {format_gib(free)})"
    elif factory.inputs.budget_memory_bytes is not None:
        budget = f"--budget-memory {required} (free are {format_gib(free)})"
    remedies = [budget]
    smallest = _variants(factory, least.method).get(least.variant)
    if smallest is not None:
        remedies += _smaller_model(factory, smallest)
    if quantization_problem("nf4", factory.model, factory.hardware.device) and not factory.model.stored_quantization:
        remedies.append("a device that supports nf4, which stores the base in about 4.1 bits a weight")
    return remedies + _shorter_rows(factory, least)


def _variants(factory: CandidateFactory, method: str) -> dict[str, MemoryEstimate]:
    """Returns the smallest estimate of each storage of the base that would work with enough memory."""
    found = {name: factory.variant(method, name).smallest for name in factory.drafts.quantizations(method)}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _smaller_model(factory: CandidateFactory, smallest: MemoryEstimate) -> list[str]:
    """Scales the whole peak with the parameters: activations shrink too, though not in proportion."""
    share = (factory.available_bytes - smallest.overhead_bytes) / smallest.peak_memory_bytes
    if share <= 0:
        return []
    return [f"a model of at most about {share * factory.model.parameter_count / 1e9:.2g} B parameters"]


def _shorter_rows(factory: CandidateFactory, least: RejectedCandidate) -> list[str]:
    if factory.inputs.max_length is None or factory.advice.sequence_length <= SHORT_LENGTH:
        return []
    shorter = factory.with_rows_of(SHORT_LENGTH)
    required = min(estimate.required_bytes for estimate in _variants(shorter, least.method).values())
    fits = "fits" if required <= factory.available_bytes else "is still too much"
    return [f"--max-length {SHORT_LENGTH}, which takes {format_gib(required)} and {fits}"]
