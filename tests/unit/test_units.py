"""Sizes and durations are read as people write them, and printed as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.errors import InvalidInputError
from autopeft.units import format_count, format_duration, format_gib, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("16GiB", 17_179_869_184),  # 16 * 2^30
        ("24GB", 24_000_000_000),  # 24 * 10^9
        ("512 MiB", 536_870_912),
        ("1.5gib", 1_610_612_736),
        ("8589934592", 8_589_934_592),
        ("1TiB", 1_099_511_627_776),
        ("3000kb", 3_000_000),
    ],
)
def test_gib_is_a_power_of_two_and_gb_a_power_of_ten(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "16 gibi", "-4GiB", "1e9", "16GiB 4", "nan", "0", "0GiB", "0.1b"])
def test_what_is_no_positive_size_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(InvalidInputError, match="memory size") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "meant"), [("16", "16GiB"), ("24.5 kb", "24.5GiB"), ("1048575", "1048575GiB")])
def test_a_size_below_one_mib_is_taken_for_a_forgotten_unit(text: str, meant: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"is only \d+ bytes; did you mean {re.escape(meant)}\?") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("30m", 1800), ("1h30m", 5400), ("2d", 172_800), ("90", 90), ("0.5h", 1800), (" 8M ", 480)],
)
def test_durations_add_up(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "m", "1h 30m", "-5m", "0", "0s", "inf", "1w"])
def test_what_is_no_positive_duration_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(InvalidInputError, match="duration") as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@settings(deadline=None)
@given(st.integers(min_value=2**20, max_value=2**50))
def test_a_number_without_a_unit_is_bytes(size_bytes: int) -> None:
    assert parse_bytes(str(size_bytes)) == size_bytes


@settings(deadline=None)
@given(st.integers(min_value=1024, max_value=4096), st.sampled_from(["KiB", "MiB", "GiB"]))
def test_case_and_spaces_do_not_change_a_size(count: int, unit: str) -> None:
    assert parse_bytes(f"{count}{unit}") == parse_bytes(f"  {count} {unit.upper()} ")


@settings(deadline=None)
@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_the_parts_of_a_duration_are_summed(days: int, hours: int, minutes: int, seconds: int) -> None:
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == expected


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(2**30, "1.00 GiB"), (5 * 2**28, "1.25 GiB"), (12 * 2**20, "12 MiB"), (0, "0 MiB"), (-(2**31), "-2.00 GiB")],
)
def test_sizes_are_printed_in_gib_or_mib(size_bytes: int, text: str) -> None:
    assert format_gib(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.26, "4.3s"), (42, "42s"), (59.7, "1m 00s"), (485, "8m 05s"), (12_000, "3h 20m"), (187_200, "2d 04h")],
)
def test_durations_are_printed_with_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@settings(deadline=None)
@given(st.floats(min_value=10, max_value=1e7))
def test_a_printed_duration_is_off_by_less_than_its_smaller_unit(seconds: float) -> None:
    printed = parse_duration(format_duration(seconds).replace(" ", ""))
    unit = 3600 if seconds >= 86_400 else 60 if seconds >= 3600 else 1
    assert abs(printed - seconds) <= unit + 0.5


@pytest.mark.parametrize(
    ("count", "text"), [(950, "950"), (12_300, "12.3K"), (134_515_008, "135M"), (8_030_261_248, "8.03B"), (0, "0")]
)
def test_counts_are_printed_in_three_digits(count: float, text: str) -> None:
    assert format_count(count) == text
