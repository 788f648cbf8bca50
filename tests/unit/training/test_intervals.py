"""Intervals against published values and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.training.intervals import macro_f1_of_rows, mean_of_rows, mean_of_tokens, share_of_rows
from autopeft.training.metrics import macro_f1


def test_wilsons_interval_agrees_with_its_formula() -> None:
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = 0.94, n = 100, z = 1.96: 0.8752, 0.9722.
    score = share_of_rows("accuracy", [1.0] * 94 + [0.0] * 6)
    assert (score.value, score.interval) == (0.94, "wilson")
    assert (score.low, score.high) == pytest.approx((0.8752, 0.9722), abs=1e-4)


def test_a_perfect_share_of_few_rows_is_not_certain() -> None:
    score = share_of_rows("accuracy", [1.0] * 10)
    assert score.high == 1.0
    assert score.low == pytest.approx(1 / (1 + 1.96**2 / 10), abs=1e-3)


def test_the_bootstrap_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    score = mean_of_rows("chrf", values.tolist(), seed=1)
    half = 1.96 * values.std() / 20
    assert (score.low, score.high) == pytest.approx((score.value - half, score.value + half), abs=0.03)


def test_a_mean_over_tokens_weighs_rows_by_their_tokens() -> None:
    score = mean_of_tokens("loss", [1.0, 30.0] * 8, [1, 10] * 8, seed=0)
    assert score.value == pytest.approx(31 / 11)
    assert score.low is not None
    assert score.high is not None
    assert 1.0 <= score.low < 31 / 11 < score.high <= 3.0


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.1, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
def test_a_mean_of_few_rows_claims_no_interval(values: list[float]) -> None:
    score = mean_of_rows("chrf", values, seed=0)
    assert (score.low, score.high, score.interval) == (None, None, "too few rows for an interval")


def test_the_interval_of_eight_rows_covers_their_mean_as_often_as_it_says() -> None:
    # Eight rows of a normal distribution; the plain percentile interval covers 0 in 0.895 of 200 such draws.
    draws = np.random.default_rng(3).normal(0.0, 1.0, (150, 8)).tolist()
    scores = [mean_of_rows("x", values, seed) for seed, values in enumerate(draws)]
    covered = [
        score for score in scores if score.low is not None and score.high is not None and score.low < 0 < score.high
    ]
    # 95 % of 150 is 142.5 with a standard deviation of 2.7.
    assert len(covered) >= 135


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).normal(0.0, 1.0, 50).tolist()
    first, again, other = (mean_of_rows("x", values, seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_rows_that_score_alike_claim_no_interval() -> None:
    score = mean_of_rows("x", [0.1] * 20, seed=0)
    assert score.value == pytest.approx(0.1)
    assert (score.low, score.high, score.interval) == (None, None, "no interval: the rows score alike")


@given(pairs=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=12))
@settings(max_examples=20)
def test_the_resampled_macro_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    predictions, references = (list(each) for each in zip(*pairs, strict=True))
    score = macro_f1_of_rows(predictions, references, seed=0)
    assert score.value == pytest.approx(macro_f1(predictions, references))
    assert score.low is None or score.high is None or 0.0 <= score.low < score.high <= 1.0
