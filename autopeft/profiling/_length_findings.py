"""Findings about lengths in tokens: what limits cut, what padding costs, how much of the data the loss counts on."""

from __future__ import annotations

from autopeft.profiling._tokens import UTF8_BYTES_PER_TOKEN
from autopeft.profiling.scan.scanner import TOO_LONG
from autopeft.profiling.scan.survey import Survey
from autopeft.specs.data import DatasetProfile, Finding, PaddingPoint

PADDING_BATCH_SIZE = 8
"""The batch size that padding is judged at."""
MUCH_PADDING = 0.3
"""Share of padding, at random, from which on it is worth a word."""
WORTH_GROUPING = 0.01
"""Share of the positions that grouping must save to be advised; of a batch or two of rows it saves nothing."""
FEW_SUPERVISED = 0.1
"""Share of supervised tokens below which most of the compute goes into prompts."""


def length_findings(survey: Survey, profile: DatasetProfile) -> tuple[Finding | None, ...]:
    """Returns the findings about lengths."""
    return (
        _longer_than_context(survey),
        _labels_cut(survey, profile),
        _padding(profile),
        _few_supervised(survey, profile),
        _lengths_estimated(survey, profile),
    )


def _longer_than_context(survey: Survey) -> Finding | None:
    model, noted = survey.source.model, survey.facts.noted.get(TOO_LONG)
    if model is None or noted is None:
        return None
    counted = survey.facts.lengths.rows
    where = "rows" if survey.every_token else "counted rows (and the longest ones)"
    return Finding(
        code=TOO_LONG,
        severity="warning",
        message=f"{noted.count:,} of {counted:,} {where} are longer than the {model.context_length} tokens that "
        f"{model.id} reads",
        count=noted.count,
        examples=tuple(noted.shown),
        advice="split these rows, or accept that their ends are cut off",
    )


def _labels_cut(survey: Survey, profile: DatasetProfile) -> Finding | None:
    """Tells of the longest limit at which rows lose all their labels, if that is the context itself."""
    lengths = survey.facts.lengths
    model = survey.source.model
    limit = model.context_length if model else None
    if limit is None or limit not in lengths.limits:
        return None
    emptied = lengths.emptied[lengths.limits.index(limit)]
    if not emptied:
        return None
    point = next(point for point in profile.truncation if point.max_length == limit)
    return Finding(
        code="labels-cut-off",
        severity="warning",
        message=f"{emptied:,} of {lengths.rows:,} counted rows keep no supervised token within {limit} tokens, the "
        f"model's context; {point.supervised_tokens_lost_share:.1%} of all supervised tokens are lost there",
        count=emptied,
        advice="a training drops these rows: shorten their prompts, or take a model that reads more",
    )


def _padding(profile: DatasetProfile) -> Finding | None:
    point = next((each for each in profile.padding if each.per_device_batch_size == PADDING_BATCH_SIZE), None)
    if point is None or point.random_padding_share < MUCH_PADDING:
        return None
    grouped, packed = _saved(point.grouped_padding_share, point), _saved(0.0, point)
    pack = f"pack them ({packed:.0%} fewer)"
    return Finding(
        code="padding-waste",
        severity="info",
        message=f"in batches of {PADDING_BATCH_SIZE} random rows {point.random_padding_share:.0%} of the positions are "
        f"padding; grouped by length, as a run trains, {point.grouped_padding_share:.0%}; packed, none",
        count=profile.example_count,
        advice=f"group rows by length, which computes {grouped:.0%} fewer positions than random batches, or {pack}"
        if grouped > WORTH_GROUPING
        else f"there are too few rows to group by length; {pack}",
    )


def _saved(share: float, point: PaddingPoint) -> float:
    """Returns the share of positions saved against random batches where only ``share`` of them are padding."""
    return 1 - (1 - point.random_padding_share) / (1 - share)


def _few_supervised(survey: Survey, profile: DatasetProfile) -> Finding | None:
    if profile.supervised_ratio >= FEW_SUPERVISED or not survey.facts.lengths.supervised:
        return None
    return Finding(
        code="few-supervised-tokens",
        severity="info",
        message=f"the loss counts on {profile.supervised_ratio:.1%} of the tokens; the others are read as prompts",
        count=profile.example_count,
        advice="count supervised tokens, not rows, when judging whether the data is enough; shorten what all prompts "
        "have in common",
    )


def _lengths_estimated(survey: Survey, profile: DatasetProfile) -> Finding | None:
    if profile.token_counts_source != "characters":
        return None
    return Finding(
        code="lengths-estimated",
        severity="info",
        message=f"token counts are estimated from the texts at {UTF8_BYTES_PER_TOKEN} UTF-8 bytes a token",
        count=survey.rows,
        advice="name a local model folder that holds a tokenizer.json for exact counts",
    )
