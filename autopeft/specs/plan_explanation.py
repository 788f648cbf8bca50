"""Why a plan says what it says, and what would change its answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TermComparison:
    """One term of the score, in points.

    Attributes:
        term: its name in ``score_terms``.
        first, second: of the first candidate and of the best one of another method.
        difference: how much it speaks for the first.
    """

    term: str
    first: float
    second: float
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedAnswer:
    """What the plan would say if one thing were different.

    Attributes:
        change: what is different, in a few words.
        first: the first candidate then, in a few words; what is lacking, where nothing fits.
        flips: whether another method or storage of the base comes first, or nothing fits.
        differences: settings of the first candidate that change: "r 16 -> 8".
    """

    change: str
    first: str
    flips: bool
    differences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedRejection:
    """Why a method, or a variant of it, is out, and what would let it in; "" where nothing of the inputs would."""

    method: str
    variant: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extreme:
    """The best of all forms by one criterion.

    Attributes:
        criterion: "score", "quality", "memory" or "time".
        form: the candidate in a few words.
        score, quality_points: its points.
        required_bytes: what must be free.
        predicted_seconds: one full training; None where the device's speed is unknown.
    """

    criterion: str
    form: str
    score: float
    quality_points: float
    required_bytes: int
    predicted_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanExplanation:
    """The answer to "why this one, and what would change it".

    Attributes:
        first: the first candidate in a few words.
        second: the best candidate of another method; None where there is none.
        lead: points of score between them.
        terms: of the score, the one that speaks most for the first at the front.
        summary: sentences.
        changes: what was changed, and what came of it.
        rejected: every rejected method and variant.
        forms: how many forms (ranks, targets, batches, checkpointing of every method) were priced to find the
            extremes; 0 where only a trace can price the model.
        on_front: how many of them fit and are beaten by no other one in quality, memory and time.
        extremes: the best of them by each criterion.
        forms_without: methods of the plan whose forms are not among them, since only a trace prices their steps.
    """

    first: str
    second: str | None
    lead: float | None
    terms: tuple[TermComparison, ...]
    summary: tuple[str, ...]
    changes: tuple[ChangedAnswer, ...]
    rejected: tuple[ExplainedRejection, ...]
    forms: int = 0
    on_front: int = 0
    extremes: tuple[Extreme, ...] = ()
    forms_without: tuple[str, ...] = ()
