"""Shortens the rows where nothing fits at the advised length: the last resort, after storage, batch and rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from autopeft.recommend.advice import Advice, advise
from autopeft.specs import Claim, DatasetProfile, Recommendation

SHORTEST_LENGTH = 128
MOST_LOST_SHARE = 0.5
"""Of the supervised tokens: what trains on less than half of them is another data set."""


def shorter_lengths(data: DatasetProfile, advice: Advice) -> Iterator[int]:
    """Yields powers of two below the advised length, falling, as long as half of the supervised tokens are kept."""
    length = SHORTEST_LENGTH
    while 2 * length < advice.sequence_length:
        length *= 2
    while length >= SHORTEST_LENGTH and length < advice.sequence_length:
        if (_lost_share(data, length) or 0.0) > MOST_LOST_SHARE:
            return
        yield length
        length //= 2


def shortened(advice: Advice, data: DatasetProfile, length: int) -> Advice:
    """Returns the advice with rows truncated to ``length``, and the claims that say why and what it costs."""
    lost = _lost_share(data, length)
    loses = "how much is lost was not counted" if lost is None else f"which loses {lost:.1%} of the supervised tokens"
    text = f"max_length {length} in place of {advice.max_length}: nothing fits with longer rows; {loses}"
    claims = {
        "max_length": Claim(about="max_length", text=text, basis="computed"),
        "sequence_length": Claim(
            about="sequence_length", text=f"memory is computed for rows of {length} tokens, the limit", basis="computed"
        ),
    }
    reasons = tuple(claims.get(claim.about, claim) for claim in advice.reasons)
    return replace(advice, max_length=length, sequence_length=length, reasons=reasons)


def advice_of(plan: Recommendation) -> Advice:
    """Returns what a plan decided for all of its candidates alike."""
    advice = advise(plan.model, plan.data, plan.inputs)
    return advice if plan.shortened_length is None else shortened(advice, plan.data, plan.shortened_length)


def _lost_share(data: DatasetProfile, length: int) -> float | None:
    """Returns what a length cuts of the supervised tokens, at most; None where no length up to it was counted."""
    known = [point for point in data.truncation if point.max_length <= length]
    return max(known, key=lambda point: point.max_length).supervised_tokens_lost_share if known else None
