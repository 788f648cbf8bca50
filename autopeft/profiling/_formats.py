"""Turns rows into normalized examples: the one place that knows how rows are laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from autopeft.errors import DataError, UnknownNameError
from autopeft.profiling._readers import Row
from autopeft.specs.data import DataFormat

Message = tuple[str, str]
"""``(role, content)``; the role is one of system, developer, user, assistant, tool."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training example, whatever its row looked like: either ``messages`` or ``text``.

    Attributes:
        file: where it comes from.
        line: 1-based line (or row, where the file has no lines).
        messages: the turns; empty for plain text and classification.
        context_turns: leading messages that are prompt whatever their role; the loss counts on later assistant ones.
        turn_separator: what stands between the turns' texts where no chat template is used: nothing for raw
            prompt and completion texts, whose author decides the white space, and a newline elsewhere.
        text: the text of plain text and classification; None for messages.
        label: the class; None except for classification.
    """

    file: str
    line: int
    messages: tuple[Message, ...] = ()
    context_turns: int = 0
    turn_separator: str = ""
    text: str | None = None
    label: str | None = None

    @property
    def supervised_turns(self) -> tuple[int, ...]:
        """Indices of the messages on which the loss counts."""
        turns = range(self.context_turns, len(self.messages))
        return tuple([turn for turn in turns if self.messages[turn][0] == "assistant"])

    @property
    def characters(self) -> int:
        """Characters of all its texts."""
        return len(self.text or "") + sum([len(content) for _, content in self.messages])

    @property
    def where(self) -> str:
        """Its place for a message: ``data.jsonl:7``."""
        return f"{self.file}:{self.line}"


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

    def optional_text(self, role: str) -> str:
        value = self.values.get(self.columns[role]) if role in self.columns else None
        return "" if value is None else _checked_text(value, repr(self.columns[role]))


@dataclass(frozen=True, slots=True)
class _RowFormat:
    """One layout of rows: the roles it needs, those it may have, and how they become an example's fields."""

    required: tuple[str, ...]
    convert: Callable[[_Fields], dict[str, Any]]
    optional: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        extra = f" (optional: {', '.join(self.optional)})" if self.optional else ""
        return " + ".join(self.required) + extra


def detect_format(first: Row, columns: Mapping[str, str] | None = None) -> tuple[DataFormat, dict[str, str]]:
    """Returns the layout of a data set by its first row, and the column of each role.

    Args:
        first: the row that is looked at.
        columns: role -> column, for rows that name their fields otherwise.

    Raises:
        DataError: if the fields fit no layout; the text says how to map them.
    """
    mapping = dict(columns or {})
    _check_mapping(mapping, first)
    for name, layout in _FORMATS.items():
        roles = layout.required + layout.optional
        found = {role: mapping.get(role, role) for role in roles if mapping.get(role, role) in first.values}
        if set(layout.required) <= set(found) and set(mapping) <= set(roles):
            return name, found
    raise _unrecognized(first, mapping)


def examples_from_rows(rows: Iterable[Row], data_format: str, columns: Mapping[str, str]) -> list[Example]:
    """Returns the rows as examples.

    Raises:
        DataError: if any row does not fit the layout; the text names the first one and how many there are.
    """
    if data_format not in _FORMATS:
        raise UnknownNameError("data format", data_format, _FORMATS)
    layout = _FORMATS[data_format]
    # Optional roles may be missing in the first row, which the columns were found in.
    roles = {role: role for role in layout.required + layout.optional} | dict(columns)
    examples: list[Example] = []
    problems = 0
    first_problem = ""
    for row in rows:
        try:
            fields = layout.convert(_Fields(row.values, roles))
            examples.append(Example(file=row.file, line=row.number, **fields))
        except _RowProblemError as problem:
            first_problem = first_problem or f"{row.where}: {problem}"
            problems += 1
    if problems:
        raise DataError(
            f"{first_problem}; {problems} of {problems + len(examples)} rows do not fit the format {data_format!r}, "
            f"which needs {layout.description}. Mend or remove them"
        )
    return examples


def _check_mapping(mapping: Mapping[str, str], first: Row) -> None:
    known = {role for layout in _FORMATS.values() for role in layout.required + layout.optional}
    for role, column in mapping.items():
        if role not in known:
            raise UnknownNameError("role in the column mapping", role, known)
        if column not in first.values:
            raise DataError(
                f"{first.where} has no field {column!r} to take as {role!r}; it has: {_quoted(first.values)}"
            )


def _unrecognized(first: Row, mapping: Mapping[str, str]) -> DataError:
    found = _quoted(first.values)
    mapped = f" with the mapping {', '.join(f'{role}={column}' for role, column in mapping.items())}" if mapping else ""
    names = [*list(first.values)[:2], "FIELD", "FIELD"][:2]
    return DataError(
        f"{first.where}: the fields {found}{mapped} are no format that is understood. Understood are: "
        f"{'; '.join(layout.description for layout in _FORMATS.values())}. "
        f"Map your columns, for example: --column prompt={names[0]} --column completion={names[1]}"
    )


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


def _from_classification(fields: _Fields) -> dict[str, Any]:
    label = fields.value("label")
    if isinstance(label, bool):
        label = str(label).lower()
    if not isinstance(label, str | int):
        raise _RowProblemError(f"{fields.columns['label']!r} must be text or a whole number, not {_shortened(label)}")
    return {"text": fields.text("text"), "label": str(label)}


def _from_text(fields: _Fields) -> dict[str, Any]:
    return {"text": fields.text("text")}


_FORMATS: dict[DataFormat, _RowFormat] = {
    "messages": _RowFormat(("messages",), _from_messages),
    "sharegpt": _RowFormat(("conversations",), _from_sharegpt, ("system",)),
    "prompt_completion": _RowFormat(("prompt", "completion"), _from_prompt_completion),
    "alpaca": _RowFormat(("instruction", "output"), _from_alpaca, ("input", "system")),
    "question_answer": _RowFormat(("question", "answer"), _from_question_answer, ("system",)),
    "classification": _RowFormat(("text", "label"), _from_classification),
    "text": _RowFormat(("text",), _from_text),
}
assert set(_FORMATS) == set(get_args(DataFormat)), "every format of the contract has its layout"
