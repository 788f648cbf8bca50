"""Predicts which batch of an epoch sets the peak, where rows differ in length and batches are padded.

A batch takes the memory of its longest row, as often as it has rows. Which rows meet in a batch is the sampler's work:
exact probabilities for batches drawn without replacement, and the sampler itself run on a few seeds otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autopeft.errors import InvalidInputError
from autopeft.specs import BatchSampler, Candidate, DatasetProfile, EpochPeaks, MemoryEstimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Lengths = NDArray[np.int64]
    Shares = NDArray[np.float64]

Price = Callable[[int], MemoryEstimate]
"""Estimates one step whose rows all have so many tokens, padding included."""

QUANTILES = ("0.5", "0.9", "0.99")
MOST_EPOCHS = 32
SIMULATED_ROWS = 1_000_000
"""Simulated epochs are as many as have so many rows together, 1 to 32: shares of larger data vary less."""

ROUNDING = 1e-7
"""What the logarithms of factorials lose of a probability, for up to ten million rows."""
LONGEST_MEGA_BATCH = 50
"""Batches that transformers' LengthGroupedSampler sorts together at most; fewer where the data has less than four times
as many (``get_length_grouped_indices`` in transformers/trainer_pt_utils.py, 4.48 to 5.23)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How rows become batches.

    Attributes:
        sampler: which rows share a batch.
        per_device_batch_size: rows of one forward.
        gradient_accumulation_steps: forwards of an optimizer step; length-grouped rows are grouped over all of them.
        max_length: tokens that a row is truncated to.
        optimizer_steps: steps of the run, where it ends within the first epoch; None for whole epochs.
        seed: of simulated epochs.
    """

    sampler: BatchSampler = "random"
    per_device_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    max_length: int
    optimizer_steps: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class PaddedLengths:
    """The distribution of padded lengths.

    Attributes:
        lengths: those that occur in the data, ascending.
        batch_shares: share of an epoch's batches that are padded to each; sums to 1.
        largest_shares: probability that an epoch's longest batch is padded to each; sums to 1.
        batches: forwards of an epoch, or of the run where it ends earlier.
    """

    lengths: Lengths
    batch_shares: Shares
    largest_shares: Shares
    batches: int

    def batch_quantile(self, share: float) -> int:
        """Returns the shortest padded length that at least this share of the batches does not exceed."""
        return _quantile(self.lengths, self.batch_shares, share)

    def largest_quantile(self, share: float) -> int:
        """Returns the shortest padded length that at least this share of the epochs never exceeds."""
        return _quantile(self.lengths, self.largest_shares, share)


def padded_lengths(row_lengths: Sequence[int], batching: Batching) -> PaddedLengths:
    """Returns the distribution of padded lengths over the batches of an epoch.

    Drawn at random, the longest of b of n rows, of which K have at most L tokens, has at most L with probability
    C(K, b) / C(n, b) (hypergeometric); so has the longest of all rows that a shortened run draws. Exact, but for
    rounding. Other samplers are run, several epochs where they draw.

    Args:
        row_lengths: tokens of each row before truncation; their order counts for "sequential" alone.
        batching: how rows become batches.

    Raises:
        InvalidInputError: if there is no row, or a row or a setting of the batching is below 1.
    """
    import numpy as np

    _check(row_lengths, batching)
    rows = np.minimum(np.asarray(row_lengths, dtype=np.int64), batching.max_length)
    if batching.sampler == "random":
        return _drawn(rows, batching)
    # Sorting buckets leaves chance only the order of the batches, which whole epochs do not depend on.
    drawing = batching.sampler == "length_grouped" or (
        batching.sampler == "sorted_buckets" and batching.optimizer_steps is not None
    )
    generator = np.random.default_rng(batching.seed)
    epochs = [_longest_of_batches(rows, batching, generator) for _ in range(_epochs(len(rows)) if drawing else 1)]
    return _counted(np.unique(rows), [epoch[: _batches(len(rows), batching)] for epoch in epochs])


def epoch_peaks(
    row_lengths: Sequence[int], batching: Batching, price: Price, *, available_bytes: int | None = None
) -> EpochPeaks:
    """Returns what the batches of an epoch need, each priced at its padded length.

    The price is asked for at most about twenty lengths: those of the quantiles, and those that a bisection for the
    longest fitting one visits. A longer batch is taken to need no less than a shorter one.

    Args:
        row_lengths: tokens of each row before truncation.
        batching: how rows become batches.
        price: estimates one step at a padded length.
        available_bytes: what ``required_bytes`` is compared with.

    Raises:
        InvalidInputError: as ``padded_lengths``.
    """
    padded = padded_lengths(row_lengths, batching)
    chosen = {name: padded.batch_quantile(float(name)) for name in QUANTILES} | {
        "largest": padded.largest_quantile(0.5)
    }
    prices = {length: price(length) for length in set(chosen.values())}
    peaks = EpochPeaks(
        sampler=batching.sampler,
        batches=padded.batches,
        padded_lengths=chosen,
        peak_memory_bytes={name: prices[length].peak_memory_bytes for name, length in chosen.items()},
        required_bytes={name: prices[length].required_bytes for name, length in chosen.items()},
        assumptions=_assumptions(len(row_lengths), batching),
    )
    return peaks if available_bytes is None else _against(peaks, padded, price, available_bytes)


def epoch_peaks_of(
    data: DatasetProfile,
    candidate: Candidate,
    price: Price,
    *,
    sampler: BatchSampler = "length_grouped",
    available_bytes: int | None = None,
) -> EpochPeaks:
    """Returns what the batches of an epoch over a profiled data set need.

    Args:
        data: its length histogram stands for all rows; where tokens were counted on a sample, each counted row stands
            for several, and the longest row is added.
        candidate: gives batch, accumulation, max_length and packing.
        price: estimates one step of the candidate at a padded length.
        sampler: how rows come into batches; ``autopeft run`` trains with "length_grouped", transformers' and trl's
            default is "random".
        available_bytes: what ``required_bytes`` is compared with.

    Raises:
        InvalidInputError: for "sequential", since a profile does not know the order of the rows, and for a profile
            without lengths.
    """
    if sampler == "sequential":
        raise InvalidInputError(
            "the sampler 'sequential' needs the rows in their order, which a data profile does not hold; "
            "use random, length_grouped or sorted_buckets"
        )
    batching = Batching(
        sampler=sampler,
        per_device_batch_size=candidate.per_device_batch_size,
        gradient_accumulation_steps=candidate.gradient_accumulation_steps,
        max_length=candidate.max_length,
    )
    rows = _packed_rows(data, candidate.max_length) if candidate.packing else row_lengths_of(data)
    peaks = epoch_peaks(rows, batching, price, available_bytes=available_bytes)
    return replace(peaks, assumptions=(*_data_assumptions(data, candidate), *peaks.assumptions))


def row_lengths_of(data: DatasetProfile) -> list[int]:
    """Returns as many lengths as the data has rows, ascending, in the proportions of the counted rows.

    Raises:
        InvalidInputError: if the profile holds no lengths (one made by autopeft 0.1.0).
    """
    if not data.length_histogram:
        raise InvalidInputError(
            f"the profile of {data.source} holds no length histogram, since an older autopeft made it; profile it again"
        )
    lengths = sorted((int(length), count) for length, count in data.length_histogram.items())
    counted = sum(count for _, count in lengths)
    rows: list[int] = []
    seen = 0
    for length, count in lengths:
        seen += count
        rows += [length] * (round(seen * data.example_count / counted) - len(rows))
    # The longest row was counted even where the sample does not hold it.
    rows[-1] = max(rows[-1], data.max_tokens)
    # Training leaves empty rows out.
    return [length for length in rows if length]


def _packed_rows(data: DatasetProfile, max_length: int) -> list[int]:
    return [max_length] * max(1, data.total_tokens // max_length)


def _check(row_lengths: Sequence[int], batching: Batching) -> None:
    if not len(row_lengths):
        raise InvalidInputError("there is no row, so no batch; give the lengths of at least one row")
    shortest = min(row_lengths)
    if shortest < 1:
        raise InvalidInputError(f"a row has {shortest} tokens; rows have at least 1, so leave empty ones out")
    settings = ("per_device_batch_size", "gradient_accumulation_steps", "max_length", "optimizer_steps")
    for name in settings:
        value = getattr(batching, name)
        if value is not None and value < 1:
            raise InvalidInputError(f"{name} must be at least 1, not {value}")


def _batches(rows: int, batching: Batching) -> int:
    """Returns the forwards of an epoch, or of the run if that is shorter."""
    epoch = -(-rows // batching.per_device_batch_size)
    if batching.optimizer_steps is None:
        return epoch
    return min(epoch, batching.optimizer_steps * batching.gradient_accumulation_steps)


def _epochs(rows: int) -> int:
    return min(MOST_EPOCHS, max(1, SIMULATED_ROWS // rows))


def _drawn(rows: Lengths, batching: Batching) -> PaddedLengths:
    """Returns the exact distribution for rows drawn without replacement; the last batch may have fewer rows."""
    import numpy as np

    lengths, counts = np.unique(rows, return_counts=True)
    up_to = np.cumsum(counts)
    batch, batches = batching.per_device_batch_size, _batches(len(rows), batching)
    drawn = min(len(rows), batches * batch)
    full, rest = divmod(drawn, batch)
    sizes = ((batch, full), (rest, min(rest, 1)))
    below = np.sum([count * _all_among(up_to, size) for size, count in sizes if count], axis=0)
    largest = _all_among(up_to, drawn)
    return PaddedLengths(lengths, np.diff(below / batches, prepend=0.0), np.diff(largest, prepend=0.0), batches)


def _all_among(up_to: Lengths, drawn: int) -> Shares:
    """Returns, for each count K of ``up_to``, the probability that all drawn of its last entry's rows are among K.

    C(K, drawn) / C(n, drawn) = K! (n - drawn)! / ((K - drawn)! n!), in logarithms.
    """
    import numpy as np

    rows = int(up_to[-1])
    constant = math.lgamma(rows - drawn + 1) - math.lgamma(rows + 1)
    logs = [
        math.lgamma(k + 1) - math.lgamma(k - drawn + 1) + constant if k >= drawn else -math.inf for k in up_to.tolist()
    ]
    logs[-1] = 0.0
    return np.exp(logs)


def _longest_of_batches(rows: Lengths, batching: Batching, generator: np.random.Generator) -> Lengths:
    """Returns the padded length of every batch of one epoch, in order."""
    import numpy as np

    match batching.sampler:
        case "length_grouped":
            step = batching.per_device_batch_size * batching.gradient_accumulation_steps
            return _longest_of_slices(_length_grouped(rows, step, generator), batching.per_device_batch_size)
        case "sorted_buckets":
            longest = _longest_of_slices(np.sort(rows)[::-1], batching.per_device_batch_size)
            return generator.permutation(longest)
        case _:
            return _longest_of_slices(rows, batching.per_device_batch_size)


def _length_grouped(rows: Lengths, batch: int, generator: np.random.Generator) -> Lengths:
    """Returns the rows in the order of transformers' LengthGroupedSampler.

    Shuffled, cut into mega-batches, each sorted by falling length; the longest row of all then changes places with the
    first, so that a run that does not fit fails at once.
    """
    import numpy as np

    shuffled = generator.permutation(rows)
    size = batch * max(1, min(len(rows) // (4 * batch), LONGEST_MEGA_BATCH))
    starts = range(0, len(rows), size)
    ordered = np.concatenate([np.sort(shuffled[start : start + size])[::-1] for start in starts])
    longest = max(starts, key=lambda start: ordered[start])
    ordered[[0, longest]] = ordered[[longest, 0]]
    return ordered


def _longest_of_slices(rows: Lengths, batch: int) -> Lengths:
    import numpy as np

    return np.maximum.reduceat(rows, np.arange(0, len(rows), batch))


def _counted(lengths: Lengths, epochs: Sequence[Lengths]) -> PaddedLengths:
    """Returns the distribution that the simulated epochs show."""
    import numpy as np

    def shares(values: Lengths) -> Shares:
        return np.bincount(np.searchsorted(lengths, values), minlength=len(lengths)) / len(values)

    largest = np.array([epoch.max() for epoch in epochs])
    return PaddedLengths(lengths, shares(np.concatenate(epochs)), shares(largest), len(epochs[0]))


def _quantile(lengths: Lengths, shares: Shares, share: float) -> int:
    """Returns the nearest-rank quantile."""
    import numpy as np

    reached = np.cumsum(shares) >= share - ROUNDING
    return int(lengths[int(np.argmax(reached))])


def _against(peaks: EpochPeaks, padded: PaddedLengths, price: Price, available_bytes: int) -> EpochPeaks:
    """Returns the peaks compared with a limit; the longest length that fits is found by bisection."""
    fitting, over = 0, len(padded.lengths)
    while fitting < over:
        middle = (fitting + over) // 2
        if price(int(padded.lengths[middle])).required_bytes <= available_bytes:
            fitting = middle + 1
        else:
            over = middle
    return replace(
        peaks,
        available_bytes=available_bytes,
        longest_fitting_length=int(padded.lengths[fitting - 1]) if fitting else None,
        share_over_limit=_within_one(padded.batch_shares[fitting:].sum()),
        probability_over_limit=_within_one(padded.largest_shares[fitting:].sum()),
    )


def _within_one(share: float) -> float:
    return min(1.0, max(0.0, float(share)))


def _assumptions(rows: int, batching: Batching) -> tuple[str, ...]:
    notes = ["a batch is padded to its longest row"]
    if rows % batching.per_device_batch_size:
        notes.append("the last batch, which has fewer rows, is priced as a full one")
    if batching.sampler == "length_grouped":
        notes.append(f"shares are those of {_epochs(rows)} simulated epochs, seed {batching.seed}")
    return tuple(notes)


def _data_assumptions(data: DatasetProfile, candidate: Candidate) -> tuple[str, ...]:
    if candidate.packing:
        return (f"packed rows are full: {candidate.max_length} tokens each",)
    notes = []
    if data.sampled_examples < data.example_count:
        notes.append(
            f"{data.sampled_examples:,} counted rows stand for {data.example_count:,}, and so do their lengths"
        )
    if data.token_counts_source == "characters":
        notes.append("lengths are estimated from characters, since no tokenizer was at hand")
    return tuple(notes)
