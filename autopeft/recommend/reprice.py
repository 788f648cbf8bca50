"""Prices a plan again for the device that is really there."""

from __future__ import annotations

from dataclasses import replace

from autopeft.errors import NothingFitsError
from autopeft.memory.reference import REFERENCE_VERSIONS
from autopeft.recommend.candidates import CandidateFactory, Pricer
from autopeft.recommend.pareto import mark_front
from autopeft.recommend.ranking import order, recommend
from autopeft.recommend.shortage import shortage_text
from autopeft.specs import Candidate, HardwareProfile, RankedCandidate, Recommendation, RejectedCandidate
from autopeft.units import format_gib


def reprice(plan: Recommendation, hardware: HardwareProfile) -> Recommendation:
    """Returns the plan's inputs recommended anew for ``hardware``, with a note of what changed.

    What no longer fits moves to ``rejected``. A plan for the same hardware comes back as it is.

    Raises:
        NothingFitsError: if nothing fits the present device.
    """
    if plan.hardware == hardware:
        return plan
    renewed = recommend(hardware, plan.model, plan.data, plan.inputs, seed=plan.seed)
    return replace(renewed, notes=(_note(plan, renewed), *renewed.notes), versions=dict(REFERENCE_VERSIONS))


def price_best(plan: Recommendation, count: int, price: Pricer) -> Recommendation:
    """Returns the plan with its best ``count`` candidates priced by ``price`` (a trace) and ranked again.

    Raises:
        NothingFitsError: if no candidate is left.
    """
    factory, careful = CandidateFactory.from_plan(plan), CandidateFactory.from_plan(plan, price)
    answers = [factory.rank(entry.candidate, careful.estimate(entry.candidate)) for entry in plan.candidates[:count]]
    kept = [entry for entry in answers if isinstance(entry, RankedCandidate)]
    rejected = [entry for entry in answers if isinstance(entry, RejectedCandidate)]
    candidates = mark_front(sorted([*kept, *plan.candidates[count:]], key=order))
    if not candidates:
        raise NothingFitsError(shortage_text(factory, [*rejected, *plan.rejected]))
    return replace(plan, candidates=candidates, rejected=(*rejected, *plan.rejected))


def _note(plan: Recommendation, renewed: Recommendation) -> str:
    old, new = plan.hardware.device, renewed.hardware.device
    before, after = _by_variant(plan.candidates), _by_variant(renewed.candidates)
    changes = [
        f"{name} no longer fits" if name not in after else _settings(name, before[name], after[name]) for name in before
    ]
    changes += [f"{name} is possible now" for name in after if name not in before]
    changed = "; ".join(change for change in changes if change) or "no setting changed"
    return (
        f"the plan was made for {old.name} with {format_gib(old.free_memory_bytes)} free and was priced again for "
        f"{new.name} with {format_gib(new.free_memory_bytes)} free: {changed}"
    )


def _by_variant(candidates: tuple[RankedCandidate, ...]) -> dict[str, Candidate]:
    return {f"{entry.candidate.method} ({entry.candidate.quantization})": entry.candidate for entry in candidates}


def _settings(name: str, before: Candidate, after: Candidate) -> str:
    fields = ("r", "target_modules", "dtype", "per_device_batch_size", "activation_checkpointing")
    changed = [field for field in fields if getattr(before, field) != getattr(after, field)]
    parts = [f"{field} {getattr(before, field)} -> {getattr(after, field)}" for field in changed]
    return f"{name}: {', '.join(parts)}" if parts else ""
