"""Rows of every layout become the same kind of example; rows of none are an error that tells what to do."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from autopeft.errors import DataError, UnknownNameError
from autopeft.profiling._formats import detect_format
from autopeft.profiling._rows import Row
from autopeft.profiling.dataset import Example, iter_rows, read_examples
from autopeft.specs.data import DataFormat

EXCHANGE = (("user", "Q"), ("assistant", "A"))
TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SYSTEM = ("system", "S")

# name -> (row, format, messages, context_turns, turn_separator)
LAYOUTS: dict[str, tuple[dict[str, Any], str, tuple[tuple[str, str], ...], int, str]] = {
    "chat": ({"messages": TURNS}, "messages", EXCHANGE, 0, "\n"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"},
        "sharegpt",
        (SYSTEM, *EXCHANGE),
        0,
        "\n",
    ),
    "texts": ({"prompt": "Q", "completion": "A", "answer": "x"}, "prompt_completion", EXCHANGE, 1, ""),
    "message lists": ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion", EXCHANGE, 1, "\n"),
    "mixed sides": ({"prompt": TURNS[:1], "completion": "A"}, "prompt_completion", EXCHANGE, 1, "\n"),
    "alpaca": (
        {"instruction": "I", "input": "Q", "output": "A"},
        "alpaca",
        (("user", "I\n\nQ"), ("assistant", "A")),
        1,
        "\n",
    ),
    "alpaca without input": ({"instruction": "Q", "input": "", "output": "A"}, "alpaca", EXCHANGE, 1, "\n"),
    "alpaca with null input": ({"instruction": "Q", "input": None, "output": "A"}, "alpaca", EXCHANGE, 1, "\n"),
    "response": ({"prompt": "Q", "response": "A"}, "prompt_completion", EXCHANGE, 1, ""),
    "dolly": (
        {"instruction": "I", "context": "Q", "response": "A", "category": "qa"},
        "alpaca",
        (("user", "I\n\nQ"), ("assistant", "A")),
        1,
        "\n",
    ),
    "question": ({"question": "Q", "answer": "A", "system": "S"}, "question_answer", (SYSTEM, *EXCHANGE), 2, "\n"),
}


def write(folder: Path, *rows: dict[str, Any]) -> str:
    """Writes rows as JSON lines and returns the file."""
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(file: str, columns: dict[str, str] | None = None) -> tuple[str, list[Example]]:
    """Returns the format that is found and the examples."""
    data_format, found = detect_format([next(iter_rows([file]))], columns)
    return data_format, read_examples([file], data_format, found)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_messages(tmp_path: Path, name: str) -> None:
    row, expected_format, messages, context_turns, separator = LAYOUTS[name]
    file = write(tmp_path, row)
    assert read(file) == (
        expected_format,
        [Example(file=file, line=1, messages=messages, context_turns=context_turns, turn_separator=separator)],
    )


@pytest.mark.parametrize(("label", "expected"), [("spam", "spam"), (1, "1"), (1.0, "1"), (True, "true"), ("", "")])
def test_labels_become_text(tmp_path: Path, label: Any, expected: str) -> None:
    file = write(tmp_path, {"text": "T", "label": label})
    assert read(file) == ("classification", [Example(file=file, line=1, text="T", label=expected)])


def test_text_alone_is_text(tmp_path: Path) -> None:
    file = write(tmp_path, {"text": "T", "source": "web"})
    assert read(file) == ("text", [Example(file=file, line=1, text="T")])


@pytest.mark.parametrize("names", [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")])
def test_text_pairs_have_both_texts_and_a_label(tmp_path: Path, names: tuple[str, str]) -> None:
    file = write(tmp_path, {names[0]: "A", names[1]: "B", "label": 0})
    assert read(file) == ("text_pair", [Example(file=file, line=1, text="A", text_pair="B", label="0")])


PREFERENCES: dict[str, tuple[dict[str, Any], tuple[tuple[str, str], ...], int]] = {
    "texts": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, EXCHANGE, 1),
    "message lists": (
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "B"}]},
        EXCHANGE,
        1,
    ),
    "whole conversations": (
        {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "B"}]},
        EXCHANGE,
        1,
    ),
}


@pytest.mark.parametrize("case", PREFERENCES)
def test_preference_data_is_recognized_and_the_chosen_answer_is_what_counts(tmp_path: Path, case: str) -> None:
    row, messages, context_turns = PREFERENCES[case]
    data_format, (example,) = read(write(tmp_path, row))
    assert (data_format, example.messages, example.context_turns) == ("preference", messages, context_turns)
    assert example.rejected is not None
    assert example.rejected.endswith("B")


def test_a_group_column_is_taken_only_where_it_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, {"question": "Q", "answer": "A", "group": "x", "template": 7})
    assert read(file)[1][0].group is None
    assert read(file, {"group": "template"})[1][0].group == "7"


def test_the_format_is_that_of_most_rows_and_the_most_special_one(tmp_path: Path) -> None:
    pair, text, labelled = {"question": "Q", "answer": "A"}, {"text": "T"}, {"text": "T", "label": "a"}
    for rows, expected in (([text, pair, pair], "question_answer"), ([text, labelled, labelled], "classification")):
        assert detect_format([Row("f", 1, row) for row in rows])[0] == expected


def test_every_format_of_the_contract_is_tested() -> None:
    formats = {layout[1] for layout in LAYOUTS.values()} | {"text", "classification", "text_pair", "preference"}
    assert formats == set(get_args(DataFormat))


def test_only_assistant_turns_after_the_context_are_supervised() -> None:
    turns = (SYSTEM, *EXCHANGE, *EXCHANGE)
    assert Example(file="f", line=1, messages=turns).supervised_turns == (2, 4)
    assert Example(file="f", line=1, messages=turns, context_turns=4).supervised_turns == (4,)


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    file = write(tmp_path, {"query": "Q", "reply": "A"})
    data_format, found = detect_format([next(iter_rows([file]))], {"prompt": "query", "completion": "reply"})
    assert (data_format, found) == ("prompt_completion", {"prompt": "query", "completion": "reply"})
    assert read_examples([file], data_format, found)[0].messages == EXCHANGE


def test_a_mapping_decides_between_two_possible_formats(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "Q", "completion": "A", "body": "T"})
    assert read(file)[0] == "prompt_completion"
    assert read(file, {"text": "body"})[0] == "text"


def test_an_optional_column_may_be_missing_in_the_first_row(tmp_path: Path) -> None:
    rows = ({"instruction": "I", "output": "A"}, {"instruction": "I", "input": "Q", "output": "A"})
    assert read(write(tmp_path, *rows))[1][1].messages[0] == ("user", "I\n\nQ")


def test_unrecognized_fields_are_an_error_that_shows_how_to_map_them(tmp_path: Path) -> None:
    file = write(tmp_path, {"query": "Q", "reply": "A"})
    with pytest.raises(DataError) as caught:
        read(file)
    text = str(caught.value)
    assert text.startswith(f"{file}:1: the fields 'query', 'reply' are no format that is understood. Understood are: ")
    assert (
        "prompt + completion/response; instruction + output/response (optional: input, system); question + answer"
        in text
    )
    assert text.endswith("for example: --column prompt=query --column completion=reply")


def test_a_suggested_mapping_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"for example: --column 'prompt=What is asked' --column 'completion=R&D'$"):
        read(write(tmp_path, {"What is asked": "a", "R&D": "b"}))


@pytest.mark.parametrize(
    ("name", "header", "hint"),
    [
        ("data.csv", "prompt;completion", "seems to be separated by ';': .csv means commas, .tsv tabs"),
        ("data.csv", "prompt\tcompletion", r"seems to be separated by '\\t': .csv means commas"),
        ("data.tsv", "prompt,completion", "seems to be separated by ','"),
        ("data.csv", "What is it?,A bird", "The first line of the file must name its columns"),
    ],
)
def test_a_table_that_is_not_understood_is_told_what_is_often_wrong(
    tmp_path: Path, name: str, header: str, hint: str
) -> None:
    file = tmp_path / name
    file.write_text(f"{header}\n{header}\n")
    with pytest.raises(DataError, match=hint):
        read(str(file))


def test_a_mapped_column_that_is_missing_is_an_error() -> None:
    with pytest.raises(DataError, match="f:1 has no field 'query' to take as 'prompt'; it has: 'question'"):
        detect_format([Row("f", 1, {"question": "Q"})], {"prompt": "query"})


def test_an_unknown_role_in_the_mapping_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown role in the column mapping 'promt'.* Did you mean 'prompt'"):
        detect_format([Row("f", 1, {"question": "Q"})], {"promt": "question"})


def test_an_unknown_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown data format 'chatml'"):
        read_examples([write(tmp_path, {"text": "T"})], "chatml", {})


CHAT = {"messages": TURNS}
PAIR = {"prompt": "Q", "completion": "A"}
UNFIT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another format": (PAIR, {"text": "T"}, "the row has no field 'prompt' (it has: 'text')"),
    "missing column": (PAIR, {"prompt": "Q"}, "the row has no field 'completion' (it has: 'prompt')"),
    "number as text": (PAIR, {"prompt": "Q", "completion": 5}, "'completion' must be text, not int 5"),
    "null as text": (PAIR, {"prompt": None, "completion": "A"}, "'prompt' must be text, not null"),
    "tool calls": (
        {"messages": TURNS},
        {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        "messages[1] has 'tool_calls', which are not read; write the calls into its content",
    ),
    "float label": ({"text": "T", "label": 1}, {"text": "T", "label": 0.5}, "'label' must be text or a whole number"),
    "no list": (CHAT, {"messages": "Q"}, "messages must be a non-empty list of messages, not 'Q'"),
    "empty list": (CHAT, {"messages": []}, "messages must be a non-empty list of messages, not []"),
    "no turn": (CHAT, {"messages": [TURNS[0], "A"]}, "messages[1] must be an object with role and content"),
    "unknown role": (CHAT, {"messages": [{"role": "usr", "content": "Q"}]}, "messages[0] has the unknown role 'usr'"),
    "content parts": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}]},
        "messages[0].content must be text, not list",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_rows_that_do_not_fit_are_one_error_that_names_the_first_and_counts_them(tmp_path: Path, case: str) -> None:
    good, bad, expected = UNFIT[case]
    file = write(tmp_path, good, bad, good, bad)
    with pytest.raises(DataError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}:2: {expected}")
    assert "; 2 of 4 rows cannot be read or do not fit the format" in str(caught.value)
