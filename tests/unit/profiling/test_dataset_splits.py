"""Held-out rows stay unseen: properties of the splits."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autopeft.errors import DataError
from autopeft.profiling._splits import prompt_key
from autopeft.profiling.dataset import Example, read_examples, split_rows

few_words = st.text("ab ", max_size=4)
pairs = st.lists(st.tuples(few_words, few_words), min_size=1, max_size=40)


def example(prompt: str, completion: str) -> Example:
    """Returns a prompt and its completion as an example."""
    return Example(file="f", line=1, messages=(("user", prompt), ("assistant", completion)), context_turns=1)


def split_or_discard(examples: list[Example], choose: int, test: int, seed: int) -> dict[str, tuple[int, ...]]:
    """Returns the splits of a data set that can be split; hypothesis tries another one otherwise."""
    try:
        return split_rows(examples, choose_rows=choose, test_rows=test, seed=seed)
    except DataError:
        assume(False)
        raise


@given(pairs, st.integers(0, 8), st.integers(0, 8), st.integers())
def test_splits_hold_every_row_once_and_no_prompt_on_two_sides(
    rows: list[tuple[str, str]], choose: int, test: int, seed: int
) -> None:
    examples = [example(*row) for row in rows]
    splits = split_or_discard(examples, choose, test, seed)
    assert sorted(index for rows in splits.values() for index in rows) == list(range(len(examples)))
    assert len(splits["choose"]) <= choose
    assert len(splits["test"]) <= test
    sides = [{prompt_key(examples[index]) for index in rows} for rows in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


@given(pairs, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_change_who_is_held_out(
    rows: list[tuple[str, str]], seed: int, shuffler: random.Random
) -> None:
    shuffled = [*rows]
    shuffler.shuffle(shuffled)
    held_out = [
        sorted(order[index] for index in split_or_discard([example(*row) for row in order], 2, 2, seed)["test"])
        for order in (rows, shuffled)
    ]
    assert held_out[0] == held_out[1]


DISTINCT = [example(f"question {number}", "yes") for number in range(500)]


def test_distinct_rows_fill_the_held_out_splits_exactly() -> None:
    splits = split_rows(DISTINCT, choose_rows=64, test_rows=100, seed=0)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 336, "choose": 64, "test": 100}


def test_the_seed_decides_the_splits() -> None:
    first, again, other = (split_rows(DISTINCT, choose_rows=64, test_rows=100, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_held_out_rows_are_spread_over_the_whole_file() -> None:
    test = split_rows(DISTINCT, choose_rows=0, test_rows=100, seed=0)["test"]
    # Hypergeometric: 50 expected in the first half, standard deviation 4.5; five of them either way.
    assert 27 <= sum(index < 250 for index in test) <= 73


def test_case_and_white_space_do_not_make_another_prompt() -> None:
    assert prompt_key(example("What is\n it?", "A")) == prompt_key(example(" what IS it? ", "B"))
    assert prompt_key(Example(file="f", line=1, text="One  Two")) == prompt_key(
        Example(file="f", line=2, text="one two")
    )


def test_rows_without_a_prompt_are_told_apart_by_their_completion() -> None:
    assert prompt_key(example("", "A")) != prompt_key(example(" ", "B"))


def chat(*turns: str, system: str | None = None) -> Example:
    """Returns turns of user and assistant as an example; "!" begins with the assistant."""
    roles = ("assistant", "user") if turns[0].startswith("!") else ("user", "assistant")
    messages = tuple((roles[index % 2], turn) for index, turn in enumerate(turns))
    return Example(file="f", line=1, messages=((("system", system), *messages) if system else messages))


def test_the_prompt_of_a_chat_is_all_before_the_first_answer() -> None:
    assert prompt_key(chat("hi", "hello")) == prompt_key(chat("hi", "hello", "more", "no")) == "hi"


def test_a_chat_and_its_continuation_are_never_divided() -> None:
    begun = [chat(f"question {number}", "yes") for number in range(100)]
    continued = [chat(f"question {number}", "yes", "why?", "so") for number in range(100)]
    splits = split_rows([*begun, *continued], choose_rows=40, test_rows=40, seed=0)
    # Row n is continued by row n + 100.
    for rows in splits.values():
        assert {index % 100 for index in rows if index < 100} == {index % 100 for index in rows if index >= 100}


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_a_greeting_before_the_first_question_does_not_make_all_chats_one(system: str | None) -> None:
    first, second = (chat("!welcome", question, "yes", system=system) for question in ("who", "what"))
    assert prompt_key(first) != prompt_key(second)
    assert prompt_key(first) == prompt_key(chat("!welcome", "who", "yes", "why", "so", system=system))


def test_more_held_out_rows_than_there_are_is_an_error() -> None:
    with pytest.raises(DataError, match="10 rows cannot be split into train, 5 to choose by and 5 to test on"):
        split_rows(DISTINCT[:10], choose_rows=5, test_rows=5, seed=0)


def test_one_prompt_for_all_rows_is_an_error_that_says_why() -> None:
    rows = [example("Write a poem.", f"poem {number}") for number in range(50)]
    with pytest.raises(DataError, match="nothing is left for test and choose, as rows with the same prompt stay"):
        split_rows(rows, choose_rows=5, test_rows=5, seed=0)


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative, but are -1 and 5"):
        split_rows(DISTINCT, choose_rows=-1, test_rows=5, seed=0)


def test_rows_of_one_group_stay_on_one_side(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = ({"prompt": f"question {row}", "completion": "yes", "template": row % 50} for row in range(500))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = read_examples([str(file)], "prompt_completion", {"group": "template"})
    splits = split_rows(examples, choose_rows=100, test_rows=100, seed=0)
    sides = [{index % 50 for index in rows} for rows in splits.values()]
    assert list(map(len, splits.values())) == [300, 100, 100]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 50
