import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import InvalidInputError
from autopeft.recommend import advise
from autopeft.recommend.advice import advised_batch, advised_epochs, advised_rank, lower_ranks, rank_choices
from autopeft.specs import Distribution, PlanInputs, TruncationPoint

INPUTS = PlanInputs(model="m", data="d")
RANKS = Distribution(type="categorical", choices=(4, 8, 16, 32, 64), default=16, effect="capacity")


def point(max_length, lost):
    return TruncationPoint(max_length=max_length, rows_truncated_share=lost, supervised_tokens_lost_share=lost)


def test_max_length_is_the_smallest_power_of_two_that_loses_at_most_half_a_percent(small_model, make_data):
    table = (point(256, 0.2), point(512, 0.0051), point(768, 0.0049), point(1024, 0.005), point(2048, 0.0))
    advice = advise(small_model, make_data(truncation=table, max_tokens=2000), INPUTS)
    assert advice.max_length == 1024
    assert "cuts 0.5% of the supervised tokens" in advice.reasons[0].text


def test_a_length_below_every_counted_one_is_said_to_lose_more_than_that(small_model, make_data):
    advice = advise(
        small_model, make_data(truncation=(point(128, 0.9),)), PlanInputs(model="m", data="d", max_length=16)
    )
    assert "cuts more than 90.0% of the supervised tokens" in advice.reasons[0].text


@pytest.mark.parametrize(("batch", "is_told"), [(76, True), (75, False)])
def test_an_effective_batch_above_the_rows_that_are_trained_on_is_told(small_model, make_data, batch, is_told):
    advice = advise(small_model, make_data(100), PlanInputs(model="m", data="d", effective_batch_size=batch))
    assert ("only 75 rows are trained on" in advice.reasons[2].text) is is_told


def test_without_a_truncation_table_the_longest_row_decides(small_model, make_data):
    assert advise(small_model, make_data(truncation=(), max_tokens=300), INPUTS).max_length == 512


def test_the_context_of_the_model_caps_the_length_and_says_so(small_model, make_data):
    advice = advise(small_model, make_data(truncation=(), max_tokens=20_000), INPUTS)
    assert advice.max_length == 8192
    assert "context" in advice.reasons[0].text


def test_a_length_that_was_asked_for_is_taken(small_model, make_data):
    assert advise(small_model, make_data(), PlanInputs(model="m", data="d", max_length=100)).max_length == 100


@pytest.mark.parametrize("wanted", [0, -5, 8193])
def test_an_impossible_length_is_an_error_that_says_what_is_possible(small_model, make_data, wanted):
    with pytest.raises(InvalidInputError, match=f"max_length {wanted} is not possible.*1 to 8192"):
        advise(small_model, make_data(), PlanInputs(model="m", data="d", max_length=wanted))


def test_memory_is_priced_for_the_longest_row_where_all_were_counted(small_model, make_data):
    assert advise(small_model, make_data(max_tokens=601, truncation=()), INPUTS).sequence_length == 608


@pytest.mark.parametrize("changes", [{"sampled_examples": 100}, {"token_counts_source": "characters"}])
def test_memory_is_priced_for_the_limit_where_a_longer_row_may_exist(small_model, make_data, changes):
    advice = advise(small_model, make_data(max_tokens=601, truncation=(), **changes), INPUTS)
    assert advice.sequence_length == advice.max_length == 1024


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [
        # 10 % (at most 256) choose and 15 % (at most 1,000) test; each epoch ends with a step of its own.
        (999, 8, 3, 282),  # 999 - 100 - 150 = 749 rows, 3 * ceil(93.6)
        (1_000, 16, 2, 94),  # 750 rows, 2 * ceil(46.9)
        (9_999, 16, 2, 1_094),  # 9999 - 256 - 1000 = 8743 rows, 2 * ceil(546.4)
        (10_000, 32, 1, 274),  # 8744 rows, ceil(273.25)
    ],
)
def test_batch_epochs_and_steps_follow_from_the_rows(small_model, make_data, rows, batch, epochs, steps):
    advice = advise(small_model, make_data(rows), INPUTS)
    assert (advice.effective_batch_size, advice.epochs, advice.steps) == (batch, epochs, steps)


def test_a_short_training_warms_up_longer(small_model, make_data):
    assert advise(small_model, make_data(100), INPUTS).warmup_ratio == 0.1
    assert advise(small_model, make_data(10_000), INPUTS).warmup_ratio == 0.05


def test_an_effective_batch_below_one_is_an_error(small_model, make_data):
    with pytest.raises(InvalidInputError, match="at least 1, not 0"):
        advise(small_model, make_data(), PlanInputs(model="m", data="d", effective_batch_size=0))


@given(rows=st.integers(1, 10**7), parameters=st.integers(1, 10**7))
def test_twice_the_data_never_lowers_the_rank(make_data, rows, parameters):
    ranks = [advised_rank(RANKS, make_data(n), lambda r: r * parameters)[0] for n in (rows, 2 * rows)]
    assert ranks[0] <= ranks[1]


@given(rows=st.integers(1, 10**6), more=st.integers(0, 10**6))
def test_more_rows_never_raise_the_epochs_and_never_lower_the_batch(rows, more):
    assert advised_epochs(rows + more) <= advised_epochs(rows)
    assert advised_batch(rows + more, None)[0] >= advised_batch(rows, None)[0]


def test_each_choice_says_what_it_rests_on(small_model, make_data):
    chosen = {claim.about: claim.basis for claim in advise(small_model, make_data(), INPUTS).reasons}
    assert chosen == {
        "max_length": "computed",
        "sequence_length": "computed",
        "effective_batch_size": "judgement",
        "epochs": "judgement",
    }
    wanted = advise(small_model, make_data(), PlanInputs(model="m", data="d", max_length=64, effective_batch_size=4))
    asked = {claim.about for claim in wanted.reasons if claim.basis == "asked"}
    assert asked == {"max_length", "effective_batch_size"}


def test_little_data_takes_one_rank_below_the_default(make_data):
    assert advised_rank(RANKS, make_data(500), lambda r: r)[0] == 8


def test_the_rank_rises_until_the_adapter_holds_what_the_data_carry(make_data):
    # 300 * 0.5 * 100,000 = 15 million supervised tokens, a bit each; 2 bits a parameter: 7.5 million parameters.
    rank, claim = advised_rank(RANKS, make_data(100_000), lambda r: 300_000 * r)
    assert rank == 32
    assert "9,600,000 trainable parameters for 15,000,000 supervised tokens" in claim.text


def test_a_range_of_ranks_is_walked_in_powers_of_two():
    ranks = Distribution(type="int", low=3, high=40, default=12, effect="capacity")
    assert rank_choices(ranks) == (4, 8, 12, 16, 32)
    assert lower_ranks(ranks, 12) == (8, 4)
