"""Turns rows into normalized examples: the one place that knows how rows are laid out."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from autopeft.errors import DataError, UnknownNameError
from autopeft.profiling._example import Example, Message
from autopeft.profiling._files import known_kind
from autopeft.profiling._rows import BadRow, BadRows, Row
from autopeft.specs.data import DataFormat, OnBadRow

GROUP = "group"
"""The role, in a column mapping, of what rows share that must stay on one side of a split. Never taken by its name."""

_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_SIDES = ("prompt", "completion")


class _RowProblemError(ValueError):
    """What is wrong with one row."""


@dataclass(frozen=True, slots=True)
class _Fields:
    """A row's values by role."""

    values: Mapping[str, Any]
    columns: Mapping[str, str]

    def value(self, role: str) -> Any:
        column = self.columns[role]
        if column not in self.values:
            raise _RowProblemError(f"the row has no field {column!r} (it has: {_quoted(self.values)})")
        return self.values[column]

    def text(self, role: str) -> str:
        return _checked_text(self.value(role), repr(self.columns[role]))

    def has(self, role: str) -> bool:
        return self.values.get(self.columns[role]) is not None

    def optional_text(self, role: str) -> str:
        value = self.values.get(self.columns[role]) if role in self.columns else None
        return "" if value is None else _checked_text(value, repr(self.columns[role]))


@dataclass(frozen=True, slots=True)
class _RowFormat:
    """One layout of rows.

    Attributes:
        required: roles that a row needs.
        convert: makes an example's fields of a row's.
        optional: roles that it may have.
        other_names: role -> columns it also goes by; the role's own name comes first.
    """

    required: tuple[str, ...]
    convert: Callable[[_Fields], dict[str, Any]]
    optional: tuple[str, ...] = ()
    other_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def roles(self) -> tuple[str, ...]:
        return self.required + self.optional

    @property
    def description(self) -> str:
        extra = f" (optional: {', '.join(self.optional)})" if self.optional else ""
        return " + ".join("/".join((role, *self.other_names.get(role, ()))) for role in self.required) + extra

    def columns_in(self, values: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, str] | None:
        """Returns the column of each role that a row has; None if it lacks a required one."""
        found = {}
        for role in self.roles:
            names = (mapping[role],) if role in mapping else (role, *self.other_names.get(role, ()))
            column = next((name for name in names if name in values), None)
            if column is not None:
                found[role] = column
            elif role in self.required:
                return None
        return found


def detect_format(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> tuple[DataFormat, dict[str, str]]:
    """Returns the layout of a data set by its first rows, and the column of each role.

    The most special layout that more than half of them fit, else the one that most fit.

    Args:
        rows: the rows that are looked at; at least one.
        columns: role -> column, for rows that name their fields otherwise.

    Raises:
        DataError: if the fields fit no layout; the text says how to map them.
    """
    mapping = dict(columns or {})
    _check_mapping(mapping, rows)
    group = {GROUP: mapping.pop(GROUP)} if GROUP in mapping else {}
    best: tuple[int, DataFormat, dict[str, str]] | None = None
    for name, layout in _FORMATS.items():
        if not set(mapping) <= set(layout.roles):
            continue
        fitting = [found for row in rows if (found := layout.columns_in(row.values, mapping)) is not None]
        if fitting and (best is None or len(fitting) > best[0]):
            best = (len(fitting), name, fitting[0])
        if 2 * len(fitting) > len(rows):
            break
    if best is None:
        raise _unrecognized(rows[0], dict(columns or {}))
    return best[1], best[2] | group


class RowReader:
    """Turns the rows of one data set into examples."""

    def __init__(self, data_format: str, columns: Mapping[str, str]) -> None:
        """Prepares a reader.

        Args:
            data_format: as ``detect_format`` returns it.
            columns: as ``detect_format`` returns them; a role that is not named has a column of its own name.

        Raises:
            UnknownNameError: if there is no such format.
        """
        if data_format not in _FORMATS:
            raise UnknownNameError("data format", data_format, _FORMATS)
        self.data_format = data_format
        self.columns = dict(columns)
        self._layout = _FORMATS[self.data_format]
        self._group = columns.get(GROUP)
        # Optional roles may be missing in the first row, which the columns were found in.
        self._columns = {role: role for role in self._layout.roles} | dict(columns)
        self.needed = f"{data_format!r}, which needs {self._layout.description}"

    def example(self, row: Row) -> Example | BadRow:
        """Returns a row as an example, or what keeps it from being one."""
        try:
            fields = self._layout.convert(_Fields(row.values, self._columns))
            if self._group is not None:
                fields["group"] = _group_of(row.values, self._group)
        except _RowProblemError as problem:
            return BadRow(row.file, row.number, f": {problem}", row.unit)
        return Example(file=row.file, line=row.number, **fields)


@dataclass(frozen=True, slots=True)
class ReadRows:
    """The rows of a data set as examples, and those that were left out."""

    reader: RowReader
    examples: list[Example]
    left_out: BadRows


def examples_from_rows(rows: Iterable[Row | BadRow], reader: RowReader, on_bad_row: OnBadRow = "error") -> ReadRows:
    """Returns the rows as examples.

    Raises:
        DataError: if a row cannot be read or does not fit the layout and shall not be skipped, or no other is left; the
            text names the first one and how many there are.
    """
    examples: list[Example] = []
    left_out = BadRows()
    for row in rows:
        result = row if isinstance(row, BadRow) else reader.example(row)
        if isinstance(result, BadRow):
            left_out.add(result)
        else:
            examples.append(result)
    left_out.settle(len(examples), on_bad_row, reader.needed)
    return ReadRows(reader, examples, left_out)


def why_not_trained(data_format: DataFormat, source: str) -> str | None:
    """Returns why no training reads rows of this format as they are, and what to do; None if one does."""
    advice = _NOT_TRAINED.get(data_format)
    return f"{source} {advice}" if advice else None


def _check_mapping(mapping: Mapping[str, str], rows: Sequence[Row]) -> None:
    known = {GROUP, *(role for layout in _FORMATS.values() for role in layout.roles)}
    for role, column in mapping.items():
        if role not in known:
            raise UnknownNameError("role in the column mapping", role, known)
        if not any(column in row.values for row in rows):
            raise DataError(
                f"{rows[0].where} has no field {column!r} to take as {role!r}; it has: {_quoted(rows[0].values)}"
            )


def _unrecognized(first: Row, mapping: Mapping[str, str]) -> DataError:
    found = _quoted(first.values)
    mapped = f" with the mapping {', '.join(f'{role}={column}' for role, column in mapping.items())}" if mapping else ""
    names = [*list(first.values)[:2], "FIELD", "FIELD"][:2]
    example = " ".join(f"--column {shlex.quote(f'{role}={name}')}" for role, name in zip(_SIDES, names, strict=True))
    return DataError(
        f"{first.where}: the fields {found}{mapped} are no format that is understood. Understood are: "
        f"{'; '.join(layout.description for layout in _FORMATS.values())}. {_about_table(first)}"
        f"Map your columns, for example: {example}"
    )


def _about_table(first: Row) -> str:
    """Returns what is often wrong with a CSV or TSV file whose columns are not known."""
    if known_kind(first.file) not in ("csv", "tsv"):
        return ""
    names = list(first.values)
    separator = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
    if separator is not None:
        return f"The header seems to be separated by {separator!r}: .csv means commas, .tsv tabs. "
    return "The first line of the file must name its columns. "


def _group_of(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _RowProblemError(f"{column!r} must be text or a whole number to group by, not {_shortened(value)}")
    return str(value)


def _checked_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    found = "null" if value is None else f"{type(value).__name__} {_shortened(value)}"
    raise _RowProblemError(f"{name} must be text, not {found}")


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _RowProblemError(f"{name} must be a non-empty list of messages, not {_shortened(value)}")
    return tuple(_turn(item, f"{name}[{index}]") for index, item in enumerate(value))


def _turn(item: Any, name: str) -> Message:
    keys = ("from", "value") if isinstance(item, dict) and "from" in item else ("role", "content")
    if not isinstance(item, dict) or not all(key in item for key in keys):
        raise _RowProblemError(
            f"{name} must be an object with role and content (or from and value), not {_shortened(item)}"
        )
    if item.get("tool_calls"):
        raise _RowProblemError(
            f"{name} has 'tool_calls', which are not read; write the calls into its content as the template does"
        )
    role = _checked_text(item[keys[0]], f"{name}.{keys[0]}")
    if role not in _ROLES:
        raise _RowProblemError(f"{name} has the unknown role {role!r}; known: {', '.join(_ROLES)}")
    return _ROLES[role], _checked_text(item[keys[1]], f"{name}.{keys[1]}")


def _from_messages(fields: _Fields) -> dict[str, Any]:
    return {"messages": _turns(fields.value("messages"), "messages"), "turn_separator": "\n"}


def _from_sharegpt(fields: _Fields) -> dict[str, Any]:
    turns = _turns(fields.value("conversations"), "conversations")
    return {"messages": _with_system(fields, turns), "turn_separator": "\n"}


def _from_prompt_completion(fields: _Fields) -> dict[str, Any]:
    prompt, completion = fields.value("prompt"), fields.value("completion")
    raw = not isinstance(prompt, list) and not isinstance(completion, list)
    before = _side(fields, "prompt", "user")
    return {
        "messages": before + _side(fields, "completion", "assistant"),
        "context_turns": len(before),
        "turn_separator": "" if raw else "\n",
    }


def _side(fields: _Fields, name: str, role: str) -> tuple[Message, ...]:
    value = fields.value(name)
    return _turns(value, name) if isinstance(value, list) else ((role, fields.text(name)),)


def _from_alpaca(fields: _Fields) -> dict[str, Any]:
    extra = fields.optional_text("input")
    prompt = fields.text("instruction") + (f"\n\n{extra}" if extra else "")
    return _exchange(fields, prompt, fields.text("output"))


def _from_question_answer(fields: _Fields) -> dict[str, Any]:
    return _exchange(fields, fields.text("question"), fields.text("answer"))


def _exchange(fields: _Fields, prompt: str, completion: str) -> dict[str, Any]:
    turns = _with_system(fields, (("user", prompt), ("assistant", completion)))
    return {"messages": turns, "context_turns": len(turns) - 1, "turn_separator": "\n"}


def _with_system(fields: _Fields, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    system = fields.optional_text("system")
    return (("system", system), *turns) if system else turns


def _from_preference(fields: _Fields) -> dict[str, Any]:
    before = _side(fields, "prompt", "user") if fields.has("prompt") else ()
    chosen = _side(fields, "chosen", "assistant")
    rejected = _side(fields, "rejected", "assistant")
    return {
        "messages": before + chosen,
        # Without a prompt the sides are whole conversations, of which the last turn was chosen.
        "context_turns": len(before) or len(chosen) - 1,
        "turn_separator": "\n",
        "rejected": "\n".join(content for _, content in rejected),
    }


def _from_text_pair(fields: _Fields) -> dict[str, Any]:
    return {
        "text": fields.text("sentence1"),
        "text_pair": fields.text("sentence2"),
        "label": _label(fields),
    }


def _from_classification(fields: _Fields) -> dict[str, Any]:
    return {"text": fields.text("text"), "label": _label(fields)}


def _label(fields: _Fields) -> str:
    label = fields.value("label")
    if isinstance(label, bool):
        label = str(label).lower()
    if isinstance(label, float) and label.is_integer():  # pandas stores whole numbers so where some are missing
        label = int(label)
    if not isinstance(label, str | int):
        raise _RowProblemError(f"{fields.columns['label']!r} must be text or a whole number, not {_shortened(label)}")
    return str(label)


def _from_text(fields: _Fields) -> dict[str, Any]:
    return {"text": fields.text("text")}


_FORMATS: dict[DataFormat, _RowFormat] = {
    "messages": _RowFormat(("messages",), _from_messages),
    "sharegpt": _RowFormat(("conversations",), _from_sharegpt, ("system",)),
    "preference": _RowFormat(("chosen", "rejected"), _from_preference, ("prompt",)),
    "prompt_completion": _RowFormat(
        ("prompt", "completion"), _from_prompt_completion, other_names={"completion": ("response",)}
    ),
    "alpaca": _RowFormat(
        ("instruction", "output"),
        _from_alpaca,
        ("input", "system"),
        {"output": ("response",), "input": ("context",)},
    ),
    "question_answer": _RowFormat(("question", "answer"), _from_question_answer, ("system",)),
    "text_pair": _RowFormat(
        ("sentence1", "sentence2", "label"),
        _from_text_pair,
        other_names={
            "sentence1": ("premise", "text1", "question1"),
            "sentence2": ("hypothesis", "text2", "question2"),
        },
    ),
    "classification": _RowFormat(("text", "label"), _from_classification),
    "text": _RowFormat(("text",), _from_text),
}
assert set(_FORMATS) == set(get_args(DataFormat)), "every format of the contract has its layout"
_NOT_TRAINED: dict[DataFormat, str] = {
    "classification": "holds texts with labels, and a training would read the texts alone; let the label be the "
    "answer: --column prompt=TEXT_COLUMN --column completion=LABEL_COLUMN",
    "text_pair": "holds pairs of texts with labels, which no training here reads; write both texts into one column and "
    "let the label be the answer: --column prompt=TEXTS_COLUMN --column completion=LABEL_COLUMN",
    "preference": "prefers one answer to another, and no method here learns from the rejected one; train on the chosen "
    "answers (--column prompt=prompt --column completion=chosen) and go on with DPO in another tool: trl's DPOTrainer "
    "reads these rows as they are",
}
