"""Token rows: what truncation takes is counted, and splits too small to compare on are refused."""

import pytest

from autopeft.errors import DataError
from autopeft.profiling.encoding import EncodedRow
from autopeft.training.data import _token_data

SPLITS = {"train": (0, 1, 2), "choose": (3, 4), "test": (5, 6)}


def encoded(prompt: int, answer: int) -> EncodedRow:
    """Returns a row of so many prompt tokens, then so many supervised ones."""
    return EncodedRow(tuple(range(prompt + answer)), ((prompt, prompt + answer),))


def test_cut_rows_and_lost_tokens_are_counted_dropped_rows_included() -> None:
    rows = [encoded(4, 4), encoded(4, 7), encoded(12, 5), *[encoded(2, 2)] * 4]
    data = _token_data(rows, SPLITS, 8)
    # Row 1 loses 3 of its 7 answer tokens, row 2 all 5.
    assert (data.truncated_rows, data.lost_supervised_tokens, data.dropped_rows) == (2, 8, 1)
    assert [row.row for row in data.splits["train"]] == [0, 1]


def test_the_first_token_is_never_predicted_and_so_never_lost() -> None:
    # Ten tokens, all supervised: nine are predicted, seven of them within eight tokens.
    data = _token_data([encoded(0, 10), *[encoded(2, 2)] * 6], SPLITS, 8)
    assert data.lost_supervised_tokens == 2
    assert data.splits["train"][0].supervised_tokens == 7


def test_rows_that_fit_lose_nothing() -> None:
    data = _token_data([encoded(4, 4)] * 7, SPLITS, 8)
    assert (data.truncated_rows, data.lost_supervised_tokens, data.dropped_rows) == (0, 0, 0)


@pytest.mark.parametrize(("split", "row"), [("choose", 3), ("test", 6)])
def test_a_held_out_split_of_one_row_is_refused_with_what_to_do(split: str, row: int) -> None:
    rows = [encoded(4, 4)] * 7
    rows[row] = encoded(20, 4)
    message = rf"the {split} split keeps 1 of 2 rows .* max_length 8, but needs at least 2; raise max_length"
    with pytest.raises(DataError, match=message):
        _token_data(rows, SPLITS, 8)


def test_one_row_to_train_on_is_enough() -> None:
    rows = [encoded(20, 4), encoded(20, 4), *[encoded(4, 4)] * 5]
    assert len(_token_data(rows, SPLITS, 8).splits["train"]) == 1
    rows[2] = encoded(20, 4)
    with pytest.raises(DataError, match=r"the train split keeps 0 of 3 rows .* needs at least 1"):
        _token_data(rows, SPLITS, 8)
