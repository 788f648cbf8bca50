"""What the batches of an epoch need, where rows differ in length and every batch is padded to its longest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BatchSampler = Literal["random", "length_grouped", "sequential", "sorted_buckets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPeaks:
    """The distribution of a step's peak over the batches of an epoch.

    The dictionaries have the keys "0.5", "0.9", "0.99" (that share of the batches needs no more) and "largest" (the
    most that a batch of one epoch needs; where chance decides it, what half of all epochs do not exceed).

    Attributes:
        sampler: how rows come into batches: "random" draws without replacement, "length_grouped" is transformers'
            LengthGroupedSampler, "sequential" keeps the rows' order, "sorted_buckets" sorts all rows by length.
        batches: forwards of one epoch, or of the run where it ends earlier.
        padded_lengths: tokens that the rows of such a batch are padded to.
        peak_memory_bytes: maximum allocated in the step of such a batch.
        required_bytes: what must be free on the device for it.
        available_bytes: the limit that the next three are about; None without one.
        longest_fitting_length: the longest padded length in the data that fits the limit; None without a limit, and
            where none fits.
        share_over_limit: share of the batches that exceed the limit, 0 to 1; None without one.
        probability_over_limit: that an epoch has at least one such batch, 0 to 1; None without a limit.
        assumptions: what the figures hold for, one sentence each.
    """

    sampler: BatchSampler
    batches: int
    padded_lengths: dict[str, int]
    peak_memory_bytes: dict[str, int]
    required_bytes: dict[str, int]
    available_bytes: int | None = None
    longest_fitting_length: int | None = None
    share_over_limit: float | None = None
    probability_over_limit: float | None = None
    assumptions: tuple[str, ...] = ()
