"""Which batch sets the peak: probabilities against simulation, samplers against transformers' own."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import InvalidInputError
from autopeft.memory import batch_peaks
from autopeft.memory.batch_peaks import Batching, epoch_peaks, epoch_peaks_of, padded_lengths, row_lengths_of
from autopeft.memory.closed_form import estimate_memory
from autopeft.specs import BatchSampler, Candidate, DatasetProfile, MemoryEstimate, from_json, to_json

SAMPLERS: tuple[BatchSampler, ...] = get_args(BatchSampler)
ROWS = st.lists(st.integers(1, 3000), min_size=1, max_size=120)


def batching(sampler: BatchSampler = "random", batch: int = 4, **changes) -> Batching:
    return Batching(**{"sampler": sampler, "per_device_batch_size": batch, "max_length": 10_000} | changes)


def shares(padded: batch_peaks.PaddedLengths, name: str = "batch_shares") -> dict[int, float]:
    return dict(zip(padded.lengths.tolist(), getattr(padded, name).tolist(), strict=True))


def price_of(length: int) -> MemoryEstimate:
    """A step that takes 1,000 bytes and 10 a token, and 500 beside the tensors."""
    peak = 1000 + 10 * length
    return MemoryEstimate(
        peak_memory_bytes=peak, peak_reserved_bytes=peak, overhead_bytes=500, required_bytes=peak + 500,
        components={}, phases={}, trainable_parameters=0, seconds_per_step=None, source="closed_form",
        relative_error=0.0,
    )  # fmt: skip


def profile(**changes) -> DatasetProfile:
    fields = {
        "source": "rows.jsonl", "files": ("rows.jsonl",), "content_hash": "0" * 64, "format": "text", "columns": {},
        "task": "continued_pretraining", "example_count": 40, "total_characters": 40_000,
        "token_counts_source": "tokenizer.json", "sampled_examples": 4, "mean_tokens": 100.0, "max_tokens": 400,
        "token_quantiles": {"0.5": 100}, "length_histogram": {"50": 1, "100": 2, "300": 1}, "total_tokens": 5500,
        "supervised_ratio": 1.0,
    }  # fmt: skip
    return DatasetProfile(**fields | changes)


def test_two_of_four_rows_are_padded_as_the_hypergeometric_distribution_says():
    # Of the 6 pairs of rows 1, 2, 3, 4 the longest is 2 in one, 3 in two, 4 in three.
    assert shares(padded_lengths([3, 1, 4, 2], batching(batch=2))) == pytest.approx(
        {1: 0, 2: 1 / 6, 3: 2 / 6, 4: 3 / 6}
    )


def test_random_shares_equal_a_brute_force_simulation_with_its_smaller_last_batch():
    chance = random.Random(0)
    rows = [chance.choice((10, 20, 30, 500)) if place % 7 else 900 for place in range(46)]
    seen: Counter[int] = Counter()
    for _ in range(4000):
        chance.shuffle(rows)
        seen.update(max(rows[start : start + 4]) for start in range(0, len(rows), 4))
    found = shares(padded_lengths(rows, batching(batch=4)))
    simulated = {length: seen[length] / sum(seen.values()) for length in found}
    # 48,000 batches: three standard deviations are below 0.007.
    assert found == pytest.approx(simulated, abs=0.007)


def test_a_run_of_few_steps_meets_the_longest_row_only_sometimes():
    # 3 optimizer steps of 2 forwards of 2 rows draw 12 of 60 rows: 1 in 5 runs draws the longest.
    rows = [100] * 59 + [2000]
    short = batching(batch=2, gradient_accumulation_steps=2, optimizer_steps=3)
    found = padded_lengths(rows, short)
    assert found.batches == 6
    assert shares(found, "largest_shares") == pytest.approx({100: 0.8, 2000: 0.2})
    assert (found.largest_quantile(0.79), found.largest_quantile(0.81)) == (100, 2000)


@settings(deadline=None)
@given(ROWS, st.integers(1, 16), st.sampled_from(SAMPLERS))
def test_a_whole_epoch_holds_the_longest_row_whatever_the_sampler(rows, batch, sampler):
    found = padded_lengths(rows, batching(sampler, batch))
    assert found.largest_quantile(1e-6) == found.largest_quantile(1.0) == max(rows)
    assert found.batches == math.ceil(len(rows) / batch)
    assert found.batch_shares.sum() == pytest.approx(1)
    assert found.batch_shares.min() >= 0
    # The longest row lies in at least one batch.
    assert found.batch_shares[-1] >= 1 / found.batches - 1e-9


@settings(deadline=None)
@given(ROWS, st.integers(1, 12))
def test_larger_random_batches_are_stochastically_longer(rows, batch):
    # Only whole batches are compared: a rest of few rows is shorter.
    rows = rows * (batch * (batch + 1))
    small, large = (padded_lengths(rows, batching(batch=size)) for size in (batch, batch + 1))
    assert (np.cumsum(large.batch_shares) <= np.cumsum(small.batch_shares) + 1e-6).all()


@settings(deadline=None)
@given(ROWS, st.integers(1, 12), st.integers(1, 3000))
def test_truncation_cuts_the_distribution_and_moves_no_probability_below_it(rows, batch, limit):
    whole, cut = (
        padded_lengths(rows, batching(batch=batch)),
        padded_lengths(rows, batching(batch=batch, max_length=limit)),
    )
    below = {length: share for length, share in shares(whole).items() if length < limit}
    assert {length: share for length, share in shares(cut).items() if length < limit} == pytest.approx(below)
    assert cut.lengths.max() <= limit


@settings(deadline=None)
@given(ROWS, st.integers(1, 12))
def test_sorted_buckets_pad_least_and_their_longest_batch_is_the_longest_rows(rows, batch):
    sorted_, drawn = (padded_lengths(rows, batching(name, batch)) for name in ("sorted_buckets", "random"))
    longest_first = sorted(rows, reverse=True)
    expected = Counter(longest_first[::batch])
    assert shares(sorted_) == pytest.approx({length: expected[length] / sorted_.batches for length in set(rows)})
    assert sorted_.lengths @ sorted_.batch_shares <= drawn.lengths @ drawn.batch_shares + 1e-6


def test_sequential_batches_are_those_of_the_rows_as_they_come():
    assert shares(padded_lengths([5, 1, 2, 3, 9], batching("sequential", 2))) == pytest.approx(
        {1: 0, 2: 0, 3: 1 / 3, 5: 1 / 3, 9: 1 / 3}
    )
    # A run of one step sees the first batch alone.
    assert padded_lengths([5, 1, 2, 3, 9], batching("sequential", 2, optimizer_steps=1)).largest_quantile(1.0) == 5


@pytest.mark.parametrize(("rows", "batch"), [(1000, 4), (3000, 8), (7, 4), (333, 5)])
def test_length_grouped_rows_come_in_the_order_of_transformers_own_sampler(rows, batch):
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = np.random.default_rng(1).permutation(np.arange(10, 10 + rows))

    class TorchShuffle:
        """Shuffles as the sampler does, by torch's generator."""

        def permutation(self, values):
            return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(3)).numpy()]

    theirs = LengthGroupedSampler(batch, lengths=lengths.tolist(), generator=torch.Generator().manual_seed(3))
    ours = batch_peaks._length_grouped(lengths, batch, TorchShuffle())
    assert ours.tolist() == [lengths[index] for index in theirs]


def test_grouping_by_length_lets_fewer_batches_take_the_longest_rows():
    chance = random.Random(5)
    rows = [chance.randint(50, 150) for _ in range(950)] + [2000] * 50
    grouped, drawn = (padded_lengths(rows, batching(name, 8)) for name in ("length_grouped", "random"))
    # 8 of 1,000 rows hold none of 50 long ones in about 0.95 ** 8 = 66 % of the batches.
    assert shares(drawn)[2000] == pytest.approx(1 - 0.66, abs=0.01)
    # Sorted in mega-batches of 31 batches, 50 long rows fill 7 batches, and one more in each mega-batch at most.
    assert 7 / 125 <= shares(grouped)[2000] <= 12 / 125


def test_accumulated_forwards_share_a_group_and_are_padded_each_by_itself():
    rows = list(range(1, 65))
    one, four = (
        padded_lengths(rows, batching("length_grouped", 2, gradient_accumulation_steps=steps)) for steps in (1, 4)
    )
    assert one.batches == four.batches == 32
    assert one.lengths @ one.batch_shares == pytest.approx(four.lengths @ four.batch_shares, rel=0.1)


def test_simulated_epochs_are_seeded():
    chance = random.Random(2)
    rows = [chance.randint(10, 400) for _ in range(300)]
    first, again, other = (padded_lengths(rows, batching("length_grouped", seed=seed)) for seed in (1, 1, 2))
    assert shares(first) == shares(again) != shares(other)


def test_large_data_is_simulated_fewer_times_since_its_shares_vary_less():
    chance = random.Random(2)
    rows = [chance.randint(10, 400) for _ in range(400_000)]
    found = epoch_peaks(rows, batching("length_grouped", 8), price_of)
    assert found.assumptions[-1] == "shares are those of 2 simulated epochs, seed 0"
    assert (found.batches, found.padded_lengths["largest"]) == (50_000, 400)


def test_peaks_are_priced_at_the_quantiles_and_compared_with_the_limit():
    rows = [100] * 90 + [400] * 9 + [1000]
    found = epoch_peaks(rows, batching(batch=1), price_of, available_bytes=5500)
    assert found.padded_lengths == {"0.5": 100, "0.9": 100, "0.99": 400, "largest": 1000}
    assert found.peak_memory_bytes == {"0.5": 2000, "0.9": 2000, "0.99": 5000, "largest": 11_000}
    assert found.required_bytes == {"0.5": 2500, "0.9": 2500, "0.99": 5500, "largest": 11_500}
    assert (found.longest_fitting_length, found.batches) == (400, 100)
    assert (found.share_over_limit, found.probability_over_limit) == pytest.approx((0.01, 1.0))


@settings(deadline=None)
@given(ROWS, st.integers(1, 8), st.sampled_from(SAMPLERS), st.integers(0, 40_000))
def test_the_share_over_a_limit_is_that_of_the_batches_longer_than_what_fits(rows, batch, sampler, available):
    padded = padded_lengths(rows, batching(sampler, batch))
    found = epoch_peaks(rows, batching(sampler, batch), price_of, available_bytes=available)
    over = sum(share for length, share in shares(padded).items() if 1500 + 10 * length > available)
    assert found.share_over_limit == pytest.approx(over, abs=1e-9)
    assert (found.probability_over_limit > 0.5) == (found.required_bytes["largest"] > available)
    assert (found.longest_fitting_length is None) == (1500 + 10 * min(rows) > available)


def test_the_price_is_asked_for_few_lengths():
    asked = []
    rows = list(range(1, 5001))
    epoch_peaks(rows, batching(), lambda length: (asked.append(length), price_of(length))[1], available_bytes=30_000)
    assert len(asked) <= 4 + math.ceil(math.log2(5001))


def test_a_real_estimate_grows_with_the_batch_that_sets_it(llama, make_candidate):
    candidate = make_candidate(per_device_batch_size=4)
    found = epoch_peaks_of(
        profile(), candidate, lambda length: estimate_memory(candidate, llama, None, sequence_length=length)
    )
    required = list(found.required_bytes.values())
    assert required == sorted(required)
    assert (
        found.required_bytes["largest"] == estimate_memory(candidate, llama, None, sequence_length=400).required_bytes
    )
    assert from_json(to_json(found), type(found), "peaks") == found


def test_counted_rows_stand_for_all_rows_and_the_longest_is_added():
    # 4 counted rows stand for 40; the longest, which the sample does not hold, takes the place of one.
    assert Counter(row_lengths_of(profile())) == {50: 10, 100: 20, 300: 9, 400: 1}


@settings(deadline=None)
@given(st.dictionaries(st.integers(1, 500), st.integers(1, 50), min_size=1), st.integers(0, 2000))
def test_extrapolated_rows_are_as_many_as_the_data_has(histogram, more):
    counted = sum(histogram.values())
    data = profile(
        length_histogram={str(length): rows for length, rows in histogram.items()},
        sampled_examples=counted, example_count=counted + more, max_tokens=max(histogram),
    )  # fmt: skip
    rows = row_lengths_of(data)
    assert len(rows) == counted + more
    assert max(rows) == max(histogram)
    if more == 0:
        assert Counter(rows) == histogram


def test_packed_rows_all_need_the_same(make_candidate):
    found = epoch_peaks_of(profile(), make_candidate(packing=True, max_length=512), price_of, sampler="random")
    # 5,500 tokens fill 10 rows of 512, two to a batch.
    assert (set(found.padded_lengths.values()), found.batches) == ({512}, 5)
    assert "packed rows are full: 512 tokens each" in found.assumptions


def test_what_the_figures_hold_for_is_said(make_candidate):
    candidate: Candidate = make_candidate(per_device_batch_size=3)
    found = epoch_peaks_of(replace(profile(), token_counts_source="characters"), candidate, price_of)
    assert found.assumptions == (
        "4 counted rows stand for 40, and so do their lengths",
        "lengths are estimated from characters, since no tokenizer was at hand",
        "a batch is padded to its longest row",
        "the last batch, which has fewer rows, is priced as a full one",
        "shares are those of 32 simulated epochs, seed 0",
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: padded_lengths([], batching()), "there is no row, so no batch"),
        (lambda: padded_lengths([3, 0], batching()), "a row has 0 tokens"),
        (lambda: padded_lengths([3], batching(batch=0)), "per_device_batch_size must be at least 1, not 0"),
        (lambda: padded_lengths([3], batching(max_length=0)), "max_length must be at least 1, not 0"),
        (lambda: row_lengths_of(profile(length_histogram={})), "holds no length histogram"),
    ],
)
def test_what_cannot_be_a_batch_is_refused(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_a_profile_cannot_say_what_sequential_batches_hold(make_candidate):
    with pytest.raises(InvalidInputError, match="'sequential' needs the rows in their order"):
        epoch_peaks_of(profile(), make_candidate(), price_of, sampler="sequential")
