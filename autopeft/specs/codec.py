"""Turns the dataclasses of this package into plain JSON data and back, checked."""

from __future__ import annotations

from typing import Any, TypeVar

from autopeft.errors import InvalidInputError

SCHEMA_VERSION = 1
"""Version of verdict.json and the other files that hold these types; plan.json has its own."""

T = TypeVar("T")

# msgspec is imported where it is used: the tracing core runs where only the training stack is installed.


def to_dict(record: Any) -> dict[str, Any]:
    """Returns a dataclass as JSON data: dicts, lists, texts, numbers, booleans and None."""
    import msgspec

    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record))
    return plain


def to_json(record: Any) -> str:
    """Returns a dataclass, or JSON data, as indented JSON text that ends in a newline."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n"


def from_dict(content: Any, record_type: type[T], where: str) -> T:
    """Returns JSON data as a dataclass; ``where`` names its origin in errors.

    Raises:
        InvalidInputError: if a field is missing or has the wrong type (the text holds its JSON path).
    """
    import msgspec

    try:
        return msgspec.convert(content, record_type)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"{where}: {error}") from error


def from_json(text: str | bytes, record_type: type[T], where: str) -> T:
    """Returns JSON text as a dataclass; ``where`` names its origin in errors.

    Raises:
        InvalidInputError: if the text is no JSON or does not fit the type.
    """
    import msgspec

    try:
        return from_dict(msgspec.json.decode(text), record_type, where)
    except msgspec.DecodeError as error:
        raise InvalidInputError(f"{where} is not valid JSON: {error}") from error
