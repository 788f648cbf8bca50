"""How many rows a stated time allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.training.pacing import TARGET_SECONDS, affordable_rows


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        (0.5, 128),
        (6.0, 32),  # 84 s are left: 4 * 84 / 6 = 56
        (23.0, 8),  # 67 s are left: 4 * 67 / 23 = 11.7
        (31.0, None),  # 59 s are left, and 8 rows would take 62
    ],
)
def test_a_slow_machine_scores_fewer_rows(seconds: float, rows: int | None) -> None:
    assert affordable_rows(4, seconds, seconds, 128) == rows


@given(rows=st.integers(1, 128), last=st.floats(0.001, 200.0), before=st.floats(0.0, 200.0))
def test_what_is_asked_for_next_fits_into_the_time(rows: int, last: float, before: float) -> None:
    found = affordable_rows(rows, last, before + last, 128)
    if found is not None:
        assert rows < found <= 128
        assert before + last + last * found / rows <= TARGET_SECONDS * (1 + 1e-9)
