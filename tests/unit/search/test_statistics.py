"""The intervals hold what they promise: checked by simulation, with the simulation's own error in the bounds."""

from __future__ import annotations

import numpy as np
import pytest

from autopeft.search import statistics
from autopeft.search.statistics import fewest_rows, paired_comparison, student_quantile
from autopeft.specs import Scores


def _scores(losses: np.ndarray, tokens: np.ndarray) -> Scores:
    return Scores(
        eval_loss=float(losses.sum() / tokens.sum()),
        losses=tuple(map(float, losses)),
        supervised_tokens=tuple(map(int, tokens)),
        seconds=0.0,
    )


def _equal_models(generator: np.random.Generator, rows: int, count: int = 2) -> list[Scores]:
    """Models of one true quality, on rows of very different lengths, as real data have them."""
    tokens = generator.geometric(1 / 40, rows) + 1
    hardness = generator.normal(1.5, 0.5, rows)
    return [_scores(tokens * (hardness + generator.normal(0, 0.1, rows)), tokens) for _ in range(count)]


@pytest.fixture
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 2000)


@pytest.mark.usefixtures("_fewer_resamples")
@pytest.mark.parametrize("rows", [40, 200])
def test_the_interval_of_equal_models_covers_zero_95_times_in_100(rows):
    generator = np.random.default_rng(rows)
    count = 500
    covered = sum(
        not paired_comparison(("a", "b"), *_equal_models(generator, rows), seed=trial).significant
        for trial in range(count)
    )
    # 95 % of 500 is 475 with a standard deviation of 4.9; 2 % are granted to the bootstrap with few rows.
    assert 455 <= covered <= 490


@pytest.mark.usefixtures("_fewer_resamples")
def test_with_five_equal_methods_a_difference_is_declared_in_at_most_5_of_100_searches():
    generator = np.random.default_rng(5)
    count = 200
    declared = 0
    for search in range(count):
        first, *others = _equal_models(generator, 100, count=5)
        compare = (paired_comparison(("a", "b"), first, other, comparisons=4, seed=search) for other in others)
        declared += any(comparison.significant for comparison in compare)
    # At most 5 % is 10 of 200, plus two standard deviations of the simulation (3.1 each).
    assert declared <= 16


@pytest.mark.usefixtures("_fewer_resamples")
@pytest.mark.parametrize(("rows", "comparisons"), [(2, 1), (3, 1), (5, 1), (7, 5)])
def test_so_few_rows_that_signs_alone_cannot_tell_never_show_a_difference(rows, comparisons):
    # Sign test: 2 * 0.5**5 = 0.0625 > 0.05, and 2 * 0.5**7 = 0.0156 > 0.05 / 5.
    generator = np.random.default_rng(rows)
    found = [
        paired_comparison(("a", "b"), *_equal_models(generator, rows), comparisons=comparisons, seed=trial)
        for trial in range(200)
    ]
    assert any(comparison.low > 0 or comparison.high < 0 for comparison in found)
    assert not any(comparison.significant for comparison in found)


@pytest.mark.parametrize(("comparisons", "rows"), [(1, 6), (2, 7), (5, 8), (6, 8)])
def test_the_fewest_rows_are_those_of_the_sign_test(comparisons, rows):
    assert fewest_rows(comparisons) == rows
    # All rows better by as much: the clearest difference that so many rows can show.
    worse, better = (_scores(np.full(rows, loss), np.ones(rows)) for loss in (2.0, 1.0))
    assert paired_comparison(("b", "w"), better, worse, comparisons=comparisons).significant
    worse, better = (_scores(np.full(rows - 1, loss), np.ones(rows - 1)) for loss in (2.0, 1.0))
    assert not paired_comparison(("b", "w"), better, worse, comparisons=comparisons).significant


def test_a_true_difference_of_three_standard_errors_is_found():
    generator = np.random.default_rng(3)
    tokens = np.full(200, 30)
    base = generator.normal(1.5, 0.5, 200)
    better = _scores(tokens * (base - 0.03 + generator.normal(0, 0.1, 200)), tokens)
    worse = _scores(tokens * (base + generator.normal(0, 0.1, 200)), tokens)
    found = paired_comparison(("new", "old"), better, worse)
    # True difference -0.03, standard error 0.1 * sqrt(2 / 200) = 0.01.
    assert found.significant
    assert found.low < -0.03 < found.high < 0
    assert (found.left, found.right) == ("new", "old")


def test_the_difference_is_the_difference_of_the_two_losses():
    left = _scores(np.array([3.0, 8.0, 1.0]), np.array([2, 5, 1]))
    right = _scores(np.array([4.0, 6.0, 1.5]), np.array([2, 5, 1]))
    # (12 - 11.5) / 8 tokens.
    assert paired_comparison(("a", "b"), left, right).difference == pytest.approx(0.0625)


def test_more_comparisons_widen_the_interval_and_a_seed_repeats_it():
    first, second = _equal_models(np.random.default_rng(1), 80)
    one = paired_comparison(("a", "b"), first, second, seed=4)
    five = paired_comparison(("a", "b"), first, second, comparisons=5, seed=4)
    assert five.low < one.low < one.high < five.high
    assert one == paired_comparison(("a", "b"), first, second, seed=4)


def test_a_model_against_itself_has_no_difference():
    first, _ = _equal_models(np.random.default_rng(1), 50)
    found = paired_comparison(("a", "a"), first, first)
    assert (found.low, found.difference, found.high, found.significant) == (0.0, 0.0, 0.0, False)


def test_scores_of_different_rows_cannot_be_compared():
    left = _scores(np.array([1.0, 2.0]), np.array([1, 2]))
    right = _scores(np.array([1.0, 2.0]), np.array([2, 1]))
    with pytest.raises(ValueError, match="different rows"):
        paired_comparison(("a", "b"), left, right)
    one = _scores(np.array([1.0]), np.array([1]))
    with pytest.raises(ValueError, match="at least two rows"):
        paired_comparison(("a", "b"), one, one)


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    # Any table of Student's t: two-sided 95 % and 99 %.
    [(0.975, 5, 2.571), (0.975, 10, 2.228), (0.975, 30, 2.042), (0.995, 10, 3.169), (0.995, 60, 2.660)],
)
def test_student_quantiles_are_those_of_the_table(probability, freedom, expected):
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=0.005)
