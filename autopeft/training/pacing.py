"""How many rows a stated time allows, by the rows measured so far."""

from __future__ import annotations

TARGET_SECONDS = 90.0
"""For everything that is scored, where the user named no number of rows. A judgement: people wait a minute or two."""

FIRST_ROWS = 4
MOST_GENERATED_ROWS = 32
"""Rows answered by generation where the user named no number: what is right of all 32 is right of at least 0.89 of the
others (Wilson), and more would take most of the time."""


def affordable_rows(rows: int, last_seconds: float, spent_seconds: float, most: int) -> int | None:
    """Returns how many rows to score next, in the time that is left; None if at least twice as many would not fit.

    ``rows * 2^k <= rows * (TARGET_SECONDS - spent_seconds) / last_seconds``. Powers of two, so that two calls on one
    machine mostly agree. Known error: larger batches take less time a row, so that it asks for too few.

    Args:
        rows: that were scored last.
        last_seconds: that these took.
        spent_seconds: all that was spent so far.
        most: rows at most.
    """
    if rows >= most:
        return None
    left, found = TARGET_SECONDS - spent_seconds, rows
    while found < most and 2 * found * last_seconds <= rows * left:
        found *= 2
    return min(found, most) if found > rows else None


def pace_note(rows: int, generated: int, most: int) -> str:
    """Returns what to tell of the number of rows that the time allowed.

    Args:
        rows: that were scored.
        generated: the rows of them that were answered by generation.
        most: rows that were sampled.
    """
    answered = f", {generated} of them by generation" if generated else ""
    if rows == most:
        return f"{rows} rows were scored{answered}; --baseline-rows sets another number"
    return (
        f"{rows} of {most} sampled rows were scored{answered}: twice as many would not be done within "
        f"{TARGET_SECONDS:.0f} s here; --baseline-rows sets the number, whatever it takes"
    )
