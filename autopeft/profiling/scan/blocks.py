"""Cuts data files into blocks of rows: small enough to hold, large enough to be worth a message to a worker."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import DataError
from autopeft.profiling._files import COMPRESSIONS, known_kind, open_data, unreadable
from autopeft.profiling._json_rows import json_line_rows
from autopeft.profiling._readers import read_rows
from autopeft.profiling._rows import BadRow, Row

BLOCK_BYTES = 2**20
"""Of JSON lines; other rows are counted by the length of their values."""
BLOCK_ROWS = 4096
SAMPLED_BLOCKS = 64
SAMPLED_BLOCK_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of one file, in order.

    Attributes:
        file: where they are from.
        file_index: its place among the files.
        first_number: number of the first line or row.
        lines: JSON lines as bytes; empty for other kinds.
        rows: the rows of other kinds.
        size_bytes: what reading it moved on in the files, for progress; not exact for compressed ones.
    """

    file: str
    file_index: int
    first_number: int
    lines: bytes = b""
    rows: tuple[Row | BadRow, ...] = ()
    size_bytes: int = 0

    def read(self) -> Iterator[Row | BadRow]:
        """Yields the rows."""
        if not self.lines:
            return iter(self.rows)
        return json_line_rows(io.BytesIO(self.lines), self.file, self.first_number)


def iter_blocks(files: Sequence[str]) -> Iterator[Block]:
    """Yields all rows of the files as blocks.

    Raises:
        DataError: if a file cannot be read, or its structure is broken.
    """
    for index, file in enumerate(files):
        yield from _blocks_of_lines(file, index) if known_kind(file) == "jsonl" else _blocks_of_rows(file, index)


def _blocks_of_lines(file: str, index: int) -> Iterator[Block]:
    number = 1
    try:
        with open_data(file) as stream:
            while piece := stream.read(BLOCK_BYTES):
                lines = piece if piece.endswith(b"\n") else piece + stream.readline()
                yield Block(file, index, number, lines=lines, size_bytes=len(lines))
                number += lines.count(b"\n")
    except OSError as error:
        raise unreadable(file, error) from error


def _blocks_of_rows(file: str, index: int) -> Iterator[Block]:
    held: list[Row | BadRow] = []
    size = 0
    for row in read_rows([file]):
        held.append(row)
        size += _size(row.values) if isinstance(row, Row) else 0
        if size >= BLOCK_BYTES or len(held) >= BLOCK_ROWS:
            yield Block(file, index, held[0].number, rows=tuple(held), size_bytes=size)
            held, size = [], 0
    if held:
        yield Block(file, index, held[0].number, rows=tuple(held), size_bytes=size)


def _size(values: dict[str, Any]) -> int:
    return sum([len(value) if isinstance(value, str) else len(repr(value)) for value in values.values()])


def total_bytes(files: Sequence[str]) -> int:
    """Returns the size of the files on disk.

    Raises:
        DataError: if one cannot be read.
    """
    try:
        return sum(os.stat(file).st_size for file in files)
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def can_be_sampled(files: Sequence[str]) -> bool:
    """Returns whether rows in the middle of the files can be found without reading what is before them."""
    return all(known_kind(file) == "jsonl" and Path(file).suffix.lower() not in COMPRESSIONS for file in files)


def sampled_blocks(files: Sequence[str], seed: int) -> list[Block]:
    """Returns the rows that begin in some places of JSON Lines files, drawn without replacement from the seed.

    The places are stretches of SAMPLED_BLOCK_BYTES on a fixed grid over all files, and each row begins in one of them,
    so every row is as likely to be drawn, whatever its length. ``first_number`` is not known here: it is the offset in
    bytes plus one.
    """
    places = [
        (index, offset)
        for index, file in enumerate(files)
        for offset in range(0, total_bytes([file]), SAMPLED_BLOCK_BYTES)
    ]
    chosen = sorted(random.Random(seed).sample(places, min(SAMPLED_BLOCKS, len(places))))
    return [_lines_from(files[index], index, offset) for index, offset in chosen]


def _lines_from(file: str, index: int, offset: int) -> Block:
    end = offset + SAMPLED_BLOCK_BYTES
    try:
        with open(file, "rb") as stream:
            begin = 0
            if offset:
                # The line that the place begins in began before, unless a line ends right there.
                stream.seek(offset - 1)
                stream.readline()
                begin = stream.tell()
            lines = stream.read(max(0, end - begin))
            if lines and not lines.endswith(b"\n"):
                lines += stream.readline()
    except OSError as error:
        raise unreadable(file, error) from error
    return Block(file, index, begin + 1, lines=lines, size_bytes=SAMPLED_BLOCK_BYTES)
