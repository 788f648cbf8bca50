"""Reads the rows of data files one by one, keeping line numbers, in constant memory.

Two kinds of trouble are told apart. One row that cannot be read is a ``BadRow``, and reading goes on behind it; a file
whose structure is broken (a header, a JSON list, a Parquet file) raises, for no row of it can be trusted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import IO, Any

from autopeft.errors import DataError
from autopeft.profiling._files import known_kind, open_data, unreadable
from autopeft.profiling._json_rows import json_line_rows, json_list_rows
from autopeft.profiling._rows import BadRow, Row, strictly

_LONGEST_CSV_FIELD = 2**31 - 1  # the csv module's own default, 131,072 characters, refuses long documents
_BATCH_ROWS = 1024


def iter_rows(files: Iterable[str]) -> Iterator[Row]:
    """Yields the rows of the files in order; blank lines are skipped but counted.

    Raises:
        DataError: at the first broken row, naming its file and line.
    """
    return strictly(read_rows(files))


def read_rows(files: Iterable[str]) -> Iterator[Row | BadRow]:
    """Yields the rows of the files in order, broken ones too; blank lines are skipped but counted.

    Raises:
        DataError: if a file cannot be read, or its structure is broken.
    """
    for file in files:
        read = _READERS[known_kind(file)]
        try:
            yield from read(file)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}:{_undecodable_line(file)} is not UTF-8 text; save the file as UTF-8") from error
        except OSError as error:
            raise unreadable(file, error) from error


def _read_json_lines(file: str) -> Iterator[Row | BadRow]:
    with open_data(file) as stream:
        yield from json_line_rows(stream, file)


def _read_json(file: str) -> Iterator[Row | BadRow]:
    with open_data(file) as stream:
        yield from json_list_rows(stream, file)


def _open_text(file: str, newline: str | None) -> IO[str]:
    return io.TextIOWrapper(open_data(file), encoding="utf-8-sig", newline=newline)


def _read_csv(file: str, delimiter: str = ",") -> Iterator[Row | BadRow]:
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    with _open_text(file, newline="") as stream:
        header: list[str] | None = None
        for line, cells in _csv_records(stream, delimiter):
            if header is None:
                header = _csv_header(cells, f"{file}:{line}")
            elif isinstance(cells, _OpenQuoteError):
                raise DataError(f"{file}:{line} {cells}")
            elif isinstance(cells, csv.Error):
                yield BadRow(file, line, f" is not valid CSV: {cells}")
            elif len(cells) != len(header):
                counts = f" has {len(cells)} fields, but the header names {len(header)}"
                yield BadRow(file, line, f"{counts}; quote fields that hold {delimiter!r}")
            else:
                yield Row(file, line, dict(zip(header, cells, strict=True)))


class _OpenQuoteError(csv.Error):
    """A record whose quote is not closed: all lines behind it are taken for its text."""

    def __init__(self, lost_lines: int) -> None:
        super().__init__(
            f"opens a quote that is never closed, so that the {lost_lines} lines behind it would be lost; close it, or "
            "write a quote that is part of a text twice inside a quoted field"
        )


def _csv_records(stream: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Yields the line where each record begins, and its cells or what is wrong with it; blank lines are skipped."""
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lost = reader.line_num - start
            yield start, error if "end of data" not in str(error) or not lost else _OpenQuoteError(lost)
            continue
        if cells:
            yield start, cells


def _csv_header(cells: list[str] | csv.Error, where: str) -> list[str]:
    if isinstance(cells, csv.Error):
        raise DataError(f"{where} is not valid CSV: {cells}; the first line must name the columns")
    names = [cell.strip() for cell in cells]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or "" in names:
        problem = f"names {repeated[0]!r} twice" if repeated and repeated[0] else "has a column without a name"
        raise DataError(f"{where}: the header {problem}; the first line must name every column once")
    return names


def _read_tsv(file: str) -> Iterator[Row | BadRow]:
    return _read_csv(file, delimiter="\t")


def _read_text(file: str) -> Iterator[Row]:
    """Yields paragraphs where a blank line stands between texts, and lines otherwise."""
    with _open_text(file, newline=None) as stream:
        paragraphs = _paragraphs(stream)
        several = next(paragraphs, None) is not None and next(paragraphs, None) is not None
    with _open_text(file, newline=None) as stream:
        lines = ((number, line.strip()) for number, line in enumerate(stream, start=1) if line.strip())
        for number, text in _paragraphs(stream) if several else lines:
            yield Row(file, number, {"text": text})


def _paragraphs(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    number = 0
    for number, line in enumerate(lines, start=1):
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield number - len(block), "\n".join(block)
            block = []
    if block:
        yield number + 1 - len(block), "\n".join(block)


def _read_parquet(file: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from _rows_of_batches(table.iter_batches(_BATCH_ROWS), file)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is no readable Parquet file: {_first_line(error)}") from error


def _read_arrow(file: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc

    try:
        # Mapped, so that a large batch costs address space alone.
        with pyarrow.memory_map(file) as stream:
            # A Feather file starts with this magic; the cache files of the datasets library are bare streams.
            if stream.read(6) == b"ARROW1":
                table = pyarrow.ipc.open_file(stream)
                batches = (table.get_batch(index) for index in range(table.num_record_batches))
            else:
                stream.seek(0)
                batches = iter(pyarrow.ipc.open_stream(stream))
            yield from _rows_of_batches(batches, file)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is no readable Arrow or Feather (version 2) file: {_first_line(error)}") from error


def _rows_of_batches(batches: Iterable[Any], file: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for begin in range(0, batch.num_rows, _BATCH_ROWS):
            for values in batch.slice(begin, _BATCH_ROWS).to_pylist():
                number += 1
                yield Row(file, number, values, "row")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _undecodable_line(file: str) -> int:
    with closing(open_data(file)) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


_READERS: dict[str, Callable[[str], Iterator[Row | BadRow]]] = {
    "jsonl": _read_json_lines,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "txt": _read_text,
}
