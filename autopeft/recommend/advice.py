"""What the data and the model decide for every candidate alike: length, effective batch, steps, warm-up, rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from autopeft.errors import InvalidInputError
from autopeft.specs import Claim, DatasetProfile, Distribution, ModelSpec, OptionValue, PlanInputs, TruncationPoint

SMALL_ROWS = 1_000
MEDIUM_ROWS = 10_000
"""Where effective batch and epochs change; habits of the field, not fitted."""

MAX_SUPERVISED_LOSS = 0.005
CHOOSE_SHARE, CHOOSE_LIMIT = 0.10, 256
TEST_SHARE, TEST_LIMIT = 0.15, 1_000
"""Share of the rows that choose and that test, and how many at most; the others are trained on."""

LENGTH_MULTIPLE = 8
SHORT_TRAINING_STEPS = 100
BITS_PER_PARAMETER = 2.0
BITS_PER_TOKEN = 1.0
"""What an adapter can store and what one supervised token carries, at most (arXiv 2404.05405, recalled, unverified, and
"LoRA Without Regret", which uses both as rules of thumb)."""

WITHOUT_REGRET = "LoRA Without Regret (lora_without_regret in profiles/evidence/sources.yaml)"
TRUNCATION_TABLE = "your data's truncation table: autopeft data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What is the same for all candidates of one plan.

    Attributes:
        sequence_length: tokens of a row that memory and time are computed for.
        epochs: passes over the training rows.
        training_rows: rows that are trained on.
        steps: optimizer steps of one full training.
        reasons: one claim for each choice.
    """

    max_length: int
    sequence_length: int
    effective_batch_size: int
    epochs: int
    training_rows: int
    steps: int
    warmup_ratio: float
    reasons: tuple[Claim, ...]


def advise(model: ModelSpec, data: DatasetProfile, inputs: PlanInputs) -> Advice:
    """Returns what data and model decide for every candidate.

    Raises:
        InvalidInputError: if a length or batch size that was asked for is not possible.
    """
    max_length, length_reason = advised_max_length(model, data, inputs.max_length)
    sequence_length, sequence_reason = priced_length(data, max_length)
    sizes = advised_split_sizes(data.example_count)
    training_rows = max(1, data.example_count - sizes.choose_rows - sizes.test_rows)
    batch, batch_reason = advised_batch(data.example_count, inputs.effective_batch_size)
    if batch > training_rows:
        short = f"{batch_reason.text}; only {training_rows} rows are trained on, so that an epoch is one smaller step"
        batch_reason = replace(batch_reason, text=f"{short}, and time and memory are overstated")
    epochs = advised_epochs(data.example_count)
    steps = epochs * steps_per_epoch(training_rows, batch)
    warmup = 0.1 if steps < SHORT_TRAINING_STEPS else 0.05
    steps_claim = _judged(
        "epochs",
        f"{epochs} epoch{'s' if epochs > 1 else ''} over {training_rows} training rows (of "
        f"{data.example_count}; the others choose and test) are {steps} steps, {warmup:.0%} of them warm-up",
    )
    return Advice(
        max_length=max_length,
        sequence_length=sequence_length,
        effective_batch_size=batch,
        epochs=epochs,
        training_rows=training_rows,
        steps=steps,
        warmup_ratio=warmup,
        reasons=(length_reason, sequence_reason, batch_reason, steps_claim),
    )


def _judged(about: str, text: str, source: str | None = None) -> Claim:
    return Claim(about=about, text=text, basis="judgement", source=source)


def _computed(about: str, text: str, source: str | None = None) -> Claim:
    return Claim(about=about, text=text, basis="computed", source=source)


def _asked(about: str, text: str) -> Claim:
    return Claim(about=about, text=text, basis="asked")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSizes:
    """Rows held out for choosing and for the final figures."""

    choose_rows: int
    test_rows: int


def advised_split_sizes(rows: int) -> SplitSizes:
    """Returns how many of so many rows are held out where time is no limit; the search holds out the same."""
    return SplitSizes(
        choose_rows=max(2, min(round(CHOOSE_SHARE * rows), CHOOSE_LIMIT)),
        test_rows=max(2, min(round(TEST_SHARE * rows), TEST_LIMIT)),
    )


def advised_epochs(rows: int) -> int:
    """Returns the epochs of a full training, by all rows of the data set; the search trains as many."""
    return 3 if rows < SMALL_ROWS else 2 if rows < MEDIUM_ROWS else 1


def steps_per_epoch(training_rows: int, effective_batch_size: int) -> int:
    """Returns the optimizer steps over the training rows; the last one of an epoch may have fewer rows."""
    return max(1, math.ceil(training_rows / effective_batch_size))


def advised_max_length(model: ModelSpec, data: DatasetProfile, wanted: int | None) -> tuple[int, Claim]:
    """Returns ``max_length`` and why.

    The smallest power of two that loses at most half a percent of the supervised tokens, capped by the context.

    Raises:
        InvalidInputError: if ``wanted`` is not positive or longer than the model's context.
    """
    context = model.context_length
    if wanted is not None:
        if wanted < 1 or (context is not None and wanted > context):
            raise InvalidInputError(
                f"max_length {wanted} is not possible: {model.id} takes 1 to {context} tokens; give one of these"
            )
        return wanted, _asked("max_length", f"max_length {wanted} was asked for{_loses(data, wanted)}")
    length = _lossless_length(data)
    if context is not None and length > context:
        text = f"max_length {context}: the model's context ends there{_loses(data, context)}"
        return context, _computed("max_length", text, TRUNCATION_TABLE)
    text = f"max_length {length}: the smallest power of two that keeps 99.5 % of the supervised tokens"
    return length, _computed("max_length", text + _loses(data, length), TRUNCATION_TABLE)


def _lossless_length(data: DatasetProfile) -> int:
    covering = _power_of_two(data.max_tokens)
    enough = [
        point.max_length
        for point in data.truncation
        if point.supervised_tokens_lost_share <= MAX_SUPERVISED_LOSS
        and point.max_length == _power_of_two(point.max_length)
    ]
    return min([covering, *enough])


def _power_of_two(count: int) -> int:
    """Returns the smallest power of two that is not below ``count``."""
    return 1 << max(0, count - 1).bit_length()


def _loses(data: DatasetProfile, max_length: int) -> str:
    if max_length >= data.max_tokens:
        return f" (the longest counted row has {data.max_tokens})"
    known = [point for point in data.truncation if point.max_length <= max_length]
    if not known and data.truncation:
        least = min(data.truncation, key=lambda point: point.max_length)
        return f" (cuts more than {_cut(least)}, which are lost at {least.max_length} already)"
    if not known:
        return f" (the longest counted row has {data.max_tokens}; how much is cut was not counted)"
    nearest = max(known, key=lambda point: point.max_length)
    most = "" if nearest.max_length == max_length else "at most "
    return f" (cuts {most}{_cut(nearest)})"


def _cut(point: TruncationPoint) -> str:
    lost, rows = point.supervised_tokens_lost_share, point.rows_truncated_share
    return f"{lost:.1%} of the supervised tokens, in {rows:.1%} of the rows"


def priced_length(data: DatasetProfile, max_length: int) -> tuple[int, Claim]:
    """Returns the tokens of a row that memory is computed for, and why.

    The longest row decides, since the worst batch sets the peak. Where only a sample was counted, or lengths are
    estimated from characters, a longer row may exist: then it is ``max_length`` itself.
    """
    if data.token_counts_source == "characters" or data.sampled_examples < data.example_count:
        reason = "the limit, since not every row was counted with the tokenizer"
        text = f"memory is computed for rows of {max_length} tokens, {reason}"
        return max_length, _computed("sequence_length", text)
    longest = math.ceil(data.max_tokens / LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    length = max(1, min(max_length, longest))
    text = (
        f"memory is computed for rows of {length} tokens: the longest row (rounded to {LENGTH_MULTIPLE}) or the limit"
    )
    return length, _computed("sequence_length", text)


def advised_batch(rows: int, wanted: int | None) -> tuple[int, Claim]:
    """Returns the effective batch size and why: asked for, or 8 below 1,000 rows, 16 below 10,000, else 32.

    Raises:
        InvalidInputError: if ``wanted`` is not positive.
    """
    if wanted is not None:
        if wanted < 1:
            raise InvalidInputError(f"the effective batch size must be at least 1, not {wanted}")
        return wanted, _asked("effective_batch_size", f"effective batch {wanted} was asked for")
    batch = 8 if rows < SMALL_ROWS else 16 if rows < MEDIUM_ROWS else 32
    text = f"effective batch {batch}: {rows} rows, small enough to leave many steps (LoRA loses on large batches)"
    return batch, _judged("effective_batch_size", text, WITHOUT_REGRET)


def advised_rank(
    distribution: Distribution, data: DatasetProfile, parameters_at: Callable[[int], int]
) -> tuple[int, Claim]:
    """Returns the rank to start with and why; more data never lowers it.

    One choice below the space's default under 1,000 rows; above, raised until the adapter could store what the
    supervised tokens carry, at 2 bits a parameter and 1 bit a token.

    Args:
        distribution: of r.
        data: its size decides.
        parameters_at: trainable parameters at a rank.
    """
    choices = rank_choices(distribution)
    default = int(distribution.default)
    index = max(i for i, choice in enumerate(choices) if choice <= max(default, choices[0]))
    if data.example_count < SMALL_ROWS:
        rank = choices[max(0, index - 1)]
        reason = f"fewer than {SMALL_ROWS} rows need little capacity (default {default})"
        return rank, _judged("r", f"r {rank}: {reason}", WITHOUT_REGRET)
    tokens = data.total_tokens * data.supervised_ratio
    while index + 1 < len(choices) and parameters_at(choices[index]) * BITS_PER_PARAMETER < tokens * BITS_PER_TOKEN:
        index += 1
    rank = choices[index]
    size = f"{parameters_at(rank):,} trainable parameters for {tokens:,.0f} supervised tokens"
    text = f"r {rank}: {size} (counting {BITS_PER_PARAMETER:g} bits a parameter, {BITS_PER_TOKEN:g} a token)"
    return rank, _judged("r", text, WITHOUT_REGRET)


def rank_choices(distribution: Distribution) -> tuple[int, ...]:
    """Returns the ranks that a space allows, rising: its choices, or the powers of two of its range and its default."""
    if distribution.type == "categorical":
        return tuple(sorted(int(choice) for choice in distribution.choices))
    assert distribution.low is not None
    assert distribution.high is not None
    powers = {2**k for k in range(31) if distribution.low <= 2**k <= distribution.high}
    return tuple(sorted(powers | {int(distribution.default)}))


def lower_ranks(distribution: Distribution, rank: OptionValue) -> tuple[int, ...]:
    """Returns the ranks of a space below ``rank``, falling."""
    return tuple(choice for choice in reversed(rank_choices(distribution)) if choice < int(rank))
