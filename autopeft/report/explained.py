"""The explanation of a plan for the terminal, 80 columns wide."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from autopeft.recommend.explain import visible_terms
from autopeft.recommend.rejections import grouped_lines
from autopeft.report.tables import bold, bullets, plain_table, plain_text
from autopeft.specs import ChangedAnswer, ExplainedRejection, PlanExplanation
from autopeft.units import GIB, format_duration


def explained_table(explanation: PlanExplanation) -> RenderableType:
    """Returns why the first is the first, what would change that, and why the rejected ones are out."""
    parts: list[RenderableType] = [bold("Why the first is the first"), bullets(explanation.summary), Text()]
    if explanation.terms:
        parts += [_terms(explanation), Text()]
    if explanation.extremes:
        parts += [bold("The best of all forms"), bullets([_priced(explanation)]), _extremes(explanation), Text()]
    parts += [bold("What would change the answer"), _changes(explanation.changes), Text()]
    if explanation.rejected:
        lines = grouped_lines((entry.method, entry.variant, _why(entry)) for entry in explanation.rejected)
        parts += [bold("Rejected"), bullets(lines)]
    return Group(*parts)


def _terms(explanation: PlanExplanation) -> RenderableType:
    table = plain_table(("points of", 14), ("first", 8), ("second", 8), ("for the first", 14))
    for term in visible_terms(explanation.terms):
        cells = (term.term, f"{term.first:+.2f}", f"{term.second:+.2f}", f"{term.difference:+.2f}")
        table.add_row(*map(plain_text, cells))
    return table


def _priced(explanation: PlanExplanation) -> str:
    without = f"; those of {', '.join(explanation.forms_without)} are left out" if explanation.forms_without else ""
    return (
        f"{explanation.forms:,} ranks, targets, batches and uses of checkpointing were priced, to the last byte, "
        f"where the plan keeps the estimate's error to spare; {explanation.on_front:,} of them fit and are beaten by "
        f"no other one in quality, memory and time{without}"
    )


def _extremes(explanation: PlanExplanation) -> RenderableType:
    table = plain_table(("best by", 7), ("form", 34), ("score", 6), ("quality", 7), ("GiB", 6), ("time", 8))
    for extreme in explanation.extremes:
        size = f"{extreme.required_bytes / GIB:.2f}"
        figures = (f"{extreme.score:+.2f}", f"{extreme.quality_points:+.2f}", size)
        seconds = extreme.predicted_seconds
        time = "unknown" if seconds is None else format_duration(seconds)
        table.add_row(*map(plain_text, (extreme.criterion, extreme.form, *figures, time)))
    return table


def _changes(changes: tuple[ChangedAnswer, ...]) -> RenderableType:
    table = plain_table(("if", 30), ("the first is then", 40), ("flips", 5))
    for change in changes:
        table.add_row(*map(plain_text, (change.change, change.first, "yes" if change.flips else "no")))
    return table


def _why(entry: ExplainedRejection) -> str:
    return f"{entry.reason}; what would let it in: {entry.remedy}" if entry.remedy else entry.reason
