"""The compact histogram of row lengths: no row longer than its entry, short and longest lengths exact."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from autopeft.profiling.dataset import _histogram, profile_dataset


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=300))
def test_entries_stand_for_lengths_that_are_at_most_a_hundredth_shorter(lengths):
    found = {int(length): rows for length, rows in _histogram(Counter(lengths)).items()}
    assert list(found) == sorted(found)
    assert sum(found.values()) == len(lengths)
    assert max(found) == max(lengths)
    assert set(found) <= set(lengths)
    # Rows in order take the entries in order, as often as each counts.
    entries = [length for length, rows in found.items() for _ in range(rows)]
    assert all(length <= entry <= length / 0.99 for length, entry in zip(sorted(lengths), entries, strict=True))


@given(st.lists(st.integers(0, 100), min_size=1))
def test_lengths_of_up_to_a_hundred_tokens_are_exact(lengths):
    assert _histogram(Counter(lengths)) == {str(length): lengths.count(length) for length in sorted(set(lengths))}


def test_a_profile_counts_its_rows_by_length(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    texts = ["a" * 35, "a" * 70, "a" * 35]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    # 3.5 bytes a token, and one that ends the text.
    assert profile_dataset(str(file), model=None).length_histogram == {"11": 2, "21": 1}
