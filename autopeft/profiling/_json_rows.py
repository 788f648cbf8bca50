"""Reads JSON: one object a line, or one list of objects, decoded piece by piece."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO, Any, NoReturn

import msgspec

from autopeft.errors import DataError
from autopeft.profiling._rows import BadRow, Row

LARGEST_JSON_OBJECT_BYTES = 2**29
"""Of a file that is an object around a ``data`` list, which is read whole; a list is not bounded."""
_PIECE_BYTES = 2**20
_NO_JSON_NUMBER = re.compile(rb"[:,\[]\s*-?(NaN|Infinity)\b")
_WHITE_SPACE = " \t\r\n"
_LONGEST_TOKEN = 32
"""Characters within which an unfinished number or word may still end."""


def json_line_rows(lines: Iterable[bytes], file: str, first_number: int = 1) -> Iterator[Row | BadRow]:
    """Yields the rows of JSON lines; blank ones are skipped but counted.

    Args:
        lines: with or without their line ends.
        file: where they are from.
        first_number: 1-based line of the first.

    Raises:
        DataError: if the file is UTF-16.
    """
    decode = msgspec.json.Decoder().decode
    for number, line in enumerate(lines, start=first_number):
        content = _without_byte_order_mark(line, file) if number == 1 else line
        if content.isspace() or not content:
            continue
        try:
            values = decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            yield BadRow(file, number, _broken_line(number, content, error))
            continue
        yield Row(file, number, values) if isinstance(values, dict) else BadRow(file, number, _no_object(values))


def _broken_line(number: int, content: bytes, error: Exception) -> str:
    listed = number == 1 and content.lstrip().startswith(b"[")
    hint = "the file seems to be one JSON list: name it .json" if listed else "every line must be one JSON object"
    if "invalid character" in str(error) and _NO_JSON_NUMBER.search(content):
        hint = "JSON has no NaN and no Infinity: write null, or leave the field out"
    return f" is not valid JSON: {_json_problem(error)}; {hint}"


def _json_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return str(error).removeprefix("JSON is malformed: ")


def _without_byte_order_mark(content: bytes, file: str) -> bytes:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}:1 is UTF-16 text; save the file as UTF-8")
    return content.removeprefix(b"\xef\xbb\xbf")


def _no_object(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return f" holds {names.get(type(value), 'null')}; a row must be a JSON object with named fields"


def json_list_rows(stream: IO[bytes], file: str) -> Iterator[Row | BadRow]:
    """Yields the objects of one JSON list, each as soon as it is read; or of an object's ``data`` list, read whole.

    Raises:
        DataError: if the file is neither, or broken.
    """
    start = _without_byte_order_mark(stream.read(_PIECE_BYTES), file)
    values = _list_items(start, stream, file) if start.lstrip().startswith(b"[") else _data_items(start, stream, file)
    for number, item in enumerate(values, start=1):
        if isinstance(item, dict):
            yield Row(file, number, item, "row")
        else:
            yield BadRow(file, number, _no_object(item), "row")


def _data_items(start: bytes, stream: IO[bytes], file: str) -> list[Any]:
    content = start + stream.read(LARGEST_JSON_OBJECT_BYTES)
    if not content.strip():
        return []
    if len(content) > LARGEST_JSON_OBJECT_BYTES:
        raise DataError(
            f"{file} is one JSON object of more than {LARGEST_JSON_OBJECT_BYTES // 2**20} MiB, which cannot be read in "
            "pieces; store its rows as a JSON list, or one object a line (.jsonl)"
        )
    try:
        whole = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken_object(file, content, error) from error
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
        raise DataError(f'{file} must hold a JSON list of objects, or an object {{"data": [...]}} with such a list')
    items: list[Any] = whole["data"]
    return items


def _broken_object(file: str, content: bytes, error: Exception) -> DataError:
    found = re.search(r"\(byte (\d+)\)", str(error))
    line = content.count(b"\n", 0, int(found[1])) + 1 if found else content.rstrip().count(b"\n") + 1
    hint = "; one object a line? Name it .jsonl" if "trailing characters" in str(error) else ""
    return DataError(f"{file}:{line} is not valid JSON: {_json_problem(error)}{hint}")


def _list_items(start: bytes, stream: IO[bytes], file: str) -> Iterator[Any]:
    return _ListReader(start, stream, file).items()


class _ListReader:
    """Decodes the elements of a list from a window of the text that moves along."""

    def __init__(self, start: bytes, stream: IO[bytes], file: str) -> None:
        self._stream = stream
        self._file = file
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text = self._utf8.decode(start)
        self._position = 0
        self._line = 1
        self._ended = False
        self._decode = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode

    def items(self) -> Iterator[Any]:
        self._skip_over("[")
        if self._next_character() != "]":
            yield self._item()
            while self._next_character() == ",":
                self._position += 1
                yield self._item()
        self._skip_over("]")
        if self._next_character():
            raise self._broken("trailing characters after the list")

    def _item(self) -> Any:
        self._next_character()
        while True:
            try:
                item, end = self._decode(self._text, self._position)
            except RecursionError as error:
                raise self._broken("it is nested too deeply") from error
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error) or not self._read_on():
                    problem = f"{error.msg[0].lower()}{error.msg[1:]}".removesuffix(" starting at")
                    raise self._broken(problem, error.pos) from error
                continue
            except ValueError as error:
                raise self._broken(str(error)) from error
            # A number at the end of the window may go on behind it.
            if end < len(self._text) or not self._read_on():
                self._check_surrogates(end)
                self._position = end
                return item

    def _check_surrogates(self, end: int) -> None:
        """Refuses half a surrogate pair, which Python's decoder lets pass and no tokenizer takes."""
        if self._text.find("\\u", self._position, end) < 0:
            return
        try:
            msgspec.json.decode(self._text[self._position : end])
        except msgspec.DecodeError as error:
            raise self._broken(_json_problem(error)) from error

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_TOKEN

    def _skip_over(self, wanted: str) -> None:
        found = self._next_character()
        if found != wanted:
            shown = f"{found!r}" if found else "the end of the file"
            raise self._broken(f"{wanted!r} or ',' expected, found {shown}" if wanted == "]" else f"no {wanted!r}")
        self._position += 1

    def _next_character(self) -> str:
        """Returns the next character that is not white space, without taking it; empty at the end."""
        while True:
            rest = len(self._text)
            while self._position < rest and self._text[self._position] in _WHITE_SPACE:
                self._position += 1
            if self._position < rest:
                return self._text[self._position]
            if not self._read_on():
                return ""

    def _read_on(self) -> bool:
        """Moves the window; returns whether there was more."""
        if self._ended:
            return False
        piece = self._stream.read(max(_PIECE_BYTES, len(self._text) - self._position))
        self._ended = not piece
        self._line += self._text.count("\n", 0, self._position)
        self._text = self._text[self._position :] + self._utf8.decode(piece, final=self._ended)
        self._position = 0
        return not self._ended

    def _broken(self, problem: str, position: int | None = None) -> DataError:
        line = self._line + self._text.count("\n", 0, self._position if position is None else position)
        return DataError(f"{self._file}:{line} is not valid JSON: {problem}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
