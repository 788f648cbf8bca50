"""Says why a plan's first candidate is the first, and why the rejected ones are out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopeft.methods import get_method
from autopeft.recommend.candidates import CandidateFactory
from autopeft.recommend.objectives import MEANINGS
from autopeft.recommend.sensitivity import Change, answers, label
from autopeft.recommend.sweep import Sweep, every_form, known_to_formulas, sweep
from autopeft.specs import (
    ExplainedRejection,
    Extreme,
    ModelSpec,
    PlanExplanation,
    RankedCandidate,
    Recommendation,
    RejectedCandidate,
    TermComparison,
)
from autopeft.units import format_duration, format_gib

SHOWN_POINTS = 0.005
CLOSE_POINTS = 0.5
"""No term of the score is known to better than this; a smaller lead means nothing."""


def explain_plan(plan: Recommendation, changes: tuple[Change, ...]) -> PlanExplanation:
    """Returns why the first candidate is the first, what ``changes`` would make of it, and why others are out."""
    first, second = plan.candidates[0], runner_up(plan)
    terms = () if second is None else compared_terms(first, second)
    factory = CandidateFactory.from_plan(plan)
    forms = sweep(factory, every_form(factory)) if known_to_formulas(factory) else None
    return PlanExplanation(
        first=label(first.candidate, plan.model),
        second=None if second is None else label(second.candidate, plan.model),
        lead=None if second is None else round(first.score - second.score, 4),
        terms=terms,
        summary=_summary(plan, second, terms),
        changes=answers(plan, changes),
        rejected=tuple(_explained(plan, entry) for entry in plan.rejected),
        forms=0 if forms is None else len(forms.candidates),
        on_front=0 if forms is None else len(forms.front()),
        forms_without=() if forms is None else _unpriced(plan),
        extremes=() if forms is None else _extremes(forms, plan.model),
    )


def _unpriced(plan: Recommendation) -> tuple[str, ...]:
    """Returns the plan's methods that only a trace prices, so that their forms are not among those compared."""
    methods = dict.fromkeys(ranked.candidate.method for ranked in plan.candidates)
    return tuple(method for method in methods if not get_method(method).closed_form)


def _extremes(forms: Sweep, model: ModelSpec) -> tuple[Extreme, ...]:
    """Returns the best of the forms that fit by each criterion; of equals the one with the best score."""
    order = forms.order
    if not len(order):
        return ()
    ascending = {"score": -forms.score, "quality": -forms.quality_points, "memory": forms.required_bytes}
    if not math.isnan(forms.seconds[order[0]]):
        ascending |= {"time": forms.seconds}
    return tuple(_extreme(forms, model, name, int(order[values[order].argmin()])) for name, values in ascending.items())


def _extreme(forms: Sweep, model: ModelSpec, criterion: str, place: int) -> Extreme:
    seconds = float(forms.seconds[place])
    return Extreme(
        criterion=criterion,
        form=label(forms.candidates[place], model),
        score=round(float(forms.score[place]), 4),
        quality_points=round(float(forms.quality_points[place]), 4),
        required_bytes=int(forms.required_bytes[place]),
        predicted_seconds=None if math.isnan(seconds) else seconds,
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


def visible_terms(terms: Sequence[TermComparison]) -> tuple[TermComparison, ...]:
    """Returns the terms whose difference is not nothing when it is rounded to a hundredth of a point."""
    return tuple(term for term in terms if abs(term.difference) >= SHOWN_POINTS)


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
    ahead = f"{label(first.candidate, plan.model)} is {lead:.2f} points ahead of {label(second.candidate, plan.model)}"
    visible = visible_terms(terms)
    if not visible:
        return (*lines, f"{ahead}: their terms are equal, and the cheaper one stands first")
    speaking = [f"{term.term} {term.difference:+.2f}" for term in visible]
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
