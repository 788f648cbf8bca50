from dataclasses import replace

import pytest

from autopeft.errors import NothingFitsError
from autopeft.recommend import CandidateFactory, recommend
from autopeft.recommend.shortening import advice_of
from autopeft.specs import PlanInputs, Recommendation, TruncationPoint, from_json, to_json

GIB = 2**30
INPUTS = PlanInputs(model="m", data="d", methods=("lora",))


def curve(*lost):
    """A truncation table for 512, 1024, 2048 and 4096 tokens that loses these shares of the supervised tokens."""
    lengths = (512, 1024, 2048, 4096)
    return tuple(
        TruncationPoint(max_length=length, rows_truncated_share=share, supervised_tokens_lost_share=share)
        for length, share in zip(lengths, lost, strict=True)
    )


@pytest.fixture
def long_data(make_data):
    return make_data(max_tokens=4000, truncation=curve(0.4, 0.2, 0.05, 0.0))


@pytest.fixture
def plan(large_model, long_data, make_hardware):
    """Llama-3-8B on 8 GiB, where 4096 tokens do not fit."""
    return recommend(make_hardware(8 * GIB), large_model, long_data, INPUTS, seed=0)


def test_where_nothing_fits_rows_are_cut_and_the_claim_says_what_that_loses(plan):
    first = plan.candidates[0]
    assert plan.shortened_length == first.candidate.max_length == 2048
    texts = {claim.about: claim.text for claim in first.reasons}
    assert texts["max_length"] == (
        "max_length 2048 in place of 4096: nothing fits with longer rows; which loses 5.0% of the supervised tokens"
    )
    assert texts["sequence_length"].startswith("memory is computed for rows of 2048 tokens")


def test_cut_rows_cost_two_points_for_each_halving(plan):
    # From 4000 tokens to 2048 is a little less than a half.
    assert plan.candidates[0].score_terms["length"] == pytest.approx(-2.0, abs=0.1)


def test_a_plan_with_cut_rows_is_read_back_with_the_same_candidates(plan):
    read = Recommendation.from_dict(from_json(to_json(plan.to_dict()), dict, "plan"))
    assert read == plan
    factory = CandidateFactory.from_plan(read)
    for entry in read.candidates:
        assert factory.candidate("lora", factory.values_of(entry.candidate)) == entry.candidate
    assert advice_of(read).sequence_length == 2048


def test_rows_are_not_cut_where_that_loses_more_than_half_of_what_is_learnt(large_model, make_data, make_hardware):
    data = make_data(max_tokens=4000, truncation=curve(0.9, 0.8, 0.6, 0.0))
    with pytest.raises(NothingFitsError, match="rows of 4000 tokens"):
        recommend(make_hardware(8 * GIB), large_model, data, INPUTS, seed=0)


def test_a_length_that_was_asked_for_is_kept(large_model, long_data, make_hardware):
    with pytest.raises(NothingFitsError, match="rows of 4000 tokens"):
        recommend(make_hardware(8 * GIB), large_model, long_data, replace(INPUTS, max_length=4096), seed=0)


def test_a_limit_on_time_is_not_met_by_cutting_rows(large_model, long_data, make_hardware):
    with pytest.raises(NothingFitsError, match="--max-time allows"):
        recommend(make_hardware(), large_model, long_data, replace(INPUTS, max_seconds=1.0), seed=0)


def test_more_memory_never_worsens_the_best_score_where_rows_are_cut(large_model, long_data, make_hardware):
    scores = []
    for tenth in range(66, 100, 3):
        try:
            plan = recommend(make_hardware(tenth * GIB // 10), large_model, long_data, INPUTS, seed=0)
        except NothingFitsError:
            continue
        scores.append((plan.candidates[0].score, plan.candidates[0].candidate.max_length))
    assert {length for _, length in scores} >= {1024, 2048, 4096}
    assert scores == sorted(scores)
