"""Findings about rows that repeat or resemble others, within the data and across its split."""

from __future__ import annotations

from pathlib import Path

from autopeft.profiling._rows import SHOWN_ROWS
from autopeft.profiling.scan.copies import find_shared
from autopeft.profiling.scan.facts import Facts
from autopeft.profiling.scan.neighbours import (
    LARGEST_SAMPLE,
    NEAR_SIMILARITY,
    Resemblance,
    lowest,
    near_among,
    near_duplicates,
    template_rows,
    templates_among,
)
from autopeft.profiling.scan.survey import Survey
from autopeft.specs.data import DatasetProfile, Finding

NEAR_SHARE = 0.01
"""Share of near duplicates from which on it is worth a word."""
TEMPLATE_SHARE = 0.1
"""Share of rows that share a template from which on it is worth a word."""

Place = tuple[str, int]


def resemblance_findings(survey: Survey, profile: DatasetProfile) -> tuple[Finding | None, ...]:
    """Returns the findings about copies, near duplicates, templates and leakage."""
    found = [_exact_duplicates(survey, profile), _near_duplicates(survey), _templates(survey, profile)]
    if survey.held_out is not None:
        found += _leakage(survey, survey.held_out)
    return tuple(found)


def _exact_duplicates(survey: Survey, profile: DatasetProfile) -> Finding | None:
    if not profile.duplicate_count:
        return None
    numbers = survey.facts.numbers
    return Finding(
        code="exact-duplicates",
        severity="warning",
        message=f"{profile.duplicate_count:,} of {survey.facts.rows:,} rows {_read(survey)}are exact copies of an "
        "earlier row",
        count=profile.duplicate_count,
        examples=tuple(
            f"{_where(numbers.place(copy))} repeats {_where(numbers.place(original))}"
            for copy, original in survey.copies.first
        ),
        advice="remove the copies; until then each stays on one side of the splits, so that none flatters a score",
    )


def _read(survey: Survey) -> str:
    return "" if survey.every_row else "of the sample "


def _near_duplicates(survey: Survey) -> Finding | None:
    rows = [row for row in survey.compared if row.signature]
    if not rows:
        return None
    found = near_duplicates(rows, SHOWN_ROWS)
    if not found.count or found.count < NEAR_SHARE * found.rows:
        return None
    return Finding(
        code="near-duplicates",
        severity="warning",
        message=f"{found.count:,} of {found.rows:,} {_share(found, survey)} nearly repeat another row (similarity of "
        f"{NEAR_SIMILARITY:g} or more, exact copies aside)",
        count=found.count,
        examples=_pairs(found, "resembles"),
        advice="a random split puts such rows on both sides and flatters the score; remove them, or name a column that "
        "keeps them together: --column group=COLUMN",
    )


def _share(found: Resemblance, survey: Survey) -> str:
    if found.rows >= survey.rows:
        return f"rows ({found.count / found.rows:.1%})"
    low, high = found.interval()
    return (
        f"sampled rows ({found.count / found.rows:.1%}, 95 % interval {low:.1%} to {high:.1%}; among all rows more, "
        "since a sample misses neighbours)"
    )


def _templates(survey: Survey, profile: DatasetProfile) -> Finding | None:
    found = template_rows(survey.compared, SHOWN_ROWS)
    if not found.count or found.count < TEMPLATE_SHARE * found.rows:
        return None
    kept = (
        "a run keeps the rows of one template on one side of its splits; what differs in other words too is not "
        "recognized, so name the column that tells the template if there is one: --column group=COLUMN"
        if profile.split_by == "template"
        else "a random split tests on templates it was trained on; name a column that tells them: --column group=COLUMN"
    )
    return Finding(
        code="template-rows",
        severity="warning",
        message=f"the prompts of {found.count:,} of {found.rows:,} {_looked_at(survey)} differ from another's in "
        "numbers and names alone",
        count=found.count,
        examples=_pairs(found, "is like"),
        advice=kept,
    )


def _looked_at(survey: Survey) -> str:
    return "rows" if len(survey.compared) == survey.rows else "sampled rows"


def _leakage(survey: Survey, held_out: Facts) -> list[Finding | None]:
    compared = lowest(held_out.similar, LARGEST_SAMPLE)
    sampled = len(survey.compared) < survey.rows or len(compared) < held_out.rows
    return [
        _leaked_copies(survey, held_out),
        _leaked("near-leakage", near_among(compared, survey.compared, SHOWN_ROWS), "nearly repeat a row", sampled),
        _leaked(
            "template-leakage",
            templates_among(compared, survey.compared, SHOWN_ROWS),
            "differ in numbers and names alone from a row",
            sampled,
        ),
    ]


def _leaked_copies(survey: Survey, held_out: Facts) -> Finding | None:
    shared = find_shared(held_out.hashes, survey.facts.hashes, SHOWN_ROWS)
    if not shared.count:
        return None
    there, here = held_out.numbers, survey.facts.numbers
    return Finding(
        code="exact-leakage",
        severity="warning",
        message=f"{shared.count:,} of {held_out.rows:,} held-out rows are exact copies of rows to train on",
        count=shared.count,
        examples=tuple(
            f"{_where(there.place(one))} repeats {_where(here.place(other))}" for one, other in shared.first
        ),
        advice="remove them from the train files, or a score on the held-out rows says nothing",
    )


def _leaked(code: str, found: Resemblance, what: str, sampled: bool) -> Finding | None:
    if not found.count:
        return None
    least, held_out = ("at least ", "sampled held-out rows") if sampled else ("", "held-out rows")
    return Finding(
        code=code,
        severity="warning",
        message=f"{least}{found.count:,} of {found.rows:,} {held_out} {what} to train on",
        count=found.count,
        examples=_pairs(found, "is like"),
        advice="hold out whole groups of such rows, or a score on the held-out rows says little about new ones",
    )


def _pairs(found: Resemblance, verb: str) -> tuple[str, ...]:
    return tuple(f"{_where(one.place)} {verb} {_where(other.place)}" for one, other in found.first)


def _where(place: Place) -> str:
    return f"{Path(place[0]).name}:{place[1]}"
