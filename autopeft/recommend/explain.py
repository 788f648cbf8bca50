"""Says why a plan's first candidate is the first, and why the rejected ones are out."""

from __future__ import annotations

from autopeft.recommend.objectives import MEANINGS
from autopeft.recommend.sensitivity import Change, answers, label
from autopeft.specs import (
    ExplainedRejection,
    PlanExplanation,
    RankedCandidate,
    Recommendation,
    RejectedCandidate,
    TermComparison,
)
from autopeft.units import format_duration, format_gib

CLOSE_POINTS = 0.5
"""No term of the score is known to better than this; a smaller lead means nothing."""


def explain_plan(plan: Recommendation, changes: tuple[Change, ...]) -> PlanExplanation:
    """Returns why the first candidate is the first, what ``changes`` would make of it, and why others are out."""
    first, second = plan.candidates[0], runner_up(plan)
    terms = () if second is None else compared_terms(first, second)
    return PlanExplanation(
        first=label(first.candidate),
        second=None if second is None else label(second.candidate),
        lead=None if second is None else round(first.score - second.score, 4),
        terms=terms,
        summary=_summary(plan, second, terms),
        changes=answers(plan, changes),
        rejected=tuple(_explained(plan, entry) for entry in plan.rejected),
    )


def runner_up(plan: Recommendation) -> RankedCandidate | None:
    """Returns the best candidate of another method than the first one's; None if there is none."""
    first = plan.candidates[0].candidate.method
    return next((entry for entry in plan.candidates if entry.candidate.method != first), None)


def compared_terms(first: RankedCandidate, second: RankedCandidate) -> tuple[TermComparison, ...]:
    """Returns the terms in which two scores differ, the one that speaks most for the first at the front."""
    names = dict.fromkeys([*first.score_terms, *second.score_terms])
    terms = [_term(name, first.score_terms.get(name, 0.0), second.score_terms.get(name, 0.0)) for name in names]
    return tuple(sorted((term for term in terms if term.difference), key=lambda term: -term.difference))


def _term(name: str, first: float, second: float) -> TermComparison:
    return TermComparison(term=name, first=first, second=second, difference=round(first - second, 4))


def _summary(
    plan: Recommendation, second: RankedCandidate | None, terms: tuple[TermComparison, ...]
) -> tuple[str, ...]:
    first = plan.candidates[0]
    objective = plan.inputs.objective
    lines = [f"the objective is {objective}: {MEANINGS[objective]}"]
    if second is None:
        return (*lines, f"no other method than {first.candidate.method} is left")
    lead = first.score - second.score
    ahead = f"{label(first.candidate)} is {lead:.2f} points ahead of {label(second.candidate)}"
    if not terms:
        return (*lines, f"{ahead}: their terms are equal, and the cheaper one stands first")
    speaking = [f"{term.term} {term.difference:+.2f}" for term in terms]
    lines.append(f"{ahead}: {', '.join(speaking)}")
    if lead < CLOSE_POINTS:
        lines.append(f"a lead below {CLOSE_POINTS:g} points means nothing: `autopeft run` decides between them")
    return tuple(lines)


def _explained(plan: Recommendation, entry: RejectedCandidate) -> ExplainedRejection:
    return ExplainedRejection(
        method=entry.method, variant=entry.variant, reason=entry.reason, remedy=_remedy(plan, entry)
    )


def _remedy(plan: Recommendation, entry: RejectedCandidate) -> str:
    if entry.predicted_seconds is not None:
        return f"a limit that allows {format_duration(entry.predicted_seconds)}, or a faster device"
    if entry.required_bytes is not None:
        free = plan.hardware.device.free_memory_bytes
        if entry.required_bytes <= free:
            return f"a budget of {format_gib(entry.required_bytes)} ({format_gib(free)} are free)"
        return f"a device with {format_gib(entry.required_bytes)} free"
    if plan.inputs.methods and entry.method not in plan.inputs.methods:
        return f"--method {entry.method}"
    return ""
