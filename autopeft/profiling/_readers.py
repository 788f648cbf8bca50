"""Finds the files of a data set and reads their rows, keeping line numbers for errors."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from autopeft.errors import DataError
from autopeft.profiling._split_names import divide_files, split_of

_LONGEST_CSV_FIELD = 2**31 - 1  # the csv module's own default, 131,072 characters, refuses long documents


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in its file.

    Attributes:
        file: path as it was given.
        number: 1-based line of the file where it has lines, otherwise the row's position.
        values: column -> value.
        unit: what ``number`` counts.
    """

    file: str
    number: int
    values: dict[str, Any]
    unit: Literal["line", "row"] = "line"

    @property
    def where(self) -> str:
        """The row's place for an error message: ``data.jsonl:7``, or ``data.parquet, row 7``."""
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file}, row {self.number}"


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """The data files behind a source.

    Attributes:
        used: the files to read, in order.
        left_out: files of the same folder that are held out by their names.
        doubtful: files among those used that are named like held-out data.
        folder: the folder that was searched; empty without one.
    """

    used: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    folder: str = ""


def list_files(source: str) -> tuple[str, ...]:
    """Returns the data files that ``find_files`` uses."""
    return find_files(source).used


def find_files(source: str) -> FoundFiles:
    """Returns the data files behind ``source``: a file, a folder (its data files, sorted) or a hub data set id.

    A folder is searched with its subfolders, hidden ones left out, and must hold one kind of data file. Where names
    tell train files from held-out ones, only the train files are used.

    Raises:
        DataError: if there is no such file, folder or hub data set, or nothing readable in it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _files_of_folder(path)
    if path.is_file():
        _reader_of(str(path))
        return FoundFiles((str(path),))
    if not _may_be_hub_id(source):
        raise DataError(
            f"no data file or folder {source!r}; looked in {Path.cwd()}. "
            "Give an existing file or folder, or a hub data set id of the form 'organisation/name'"
        )
    from autopeft.profiling._hub import download_dataset

    return FoundFiles(download_dataset(source))


def hash_files(files: Iterable[str]) -> str:
    """Returns the SHA-256 of the files' bytes, one after the other, as hex; names do not enter it."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from error
    return digest.hexdigest()


def iter_rows(files: Iterable[str]) -> Iterator[Row]:
    """Yields the rows of the files in order; blank lines are skipped but counted.

    Raises:
        DataError: at the first broken row, naming its file and line.
    """
    for file in files:
        read = _reader_of(file)
        try:
            yield from read(file)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}:{_undecodable_line(file)} is not UTF-8 text; save the file as UTF-8") from error
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error


def data_suffixes() -> tuple[str, ...]:
    """Returns the file name endings that can be read."""
    return tuple(_READERS)


def kind_of(file: str) -> str | None:
    """Returns the kind of data file that a name's ending stands for ("jsonl", "csv", ...); None if it is none."""
    return _KINDS.get(Path(file).suffix.lower())


def _may_be_hub_id(source: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None and kind_of(source) is None


def _files_of_folder(folder: Path) -> FoundFiles:
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = (path for path in inside if not any(part.startswith(".") for part in path.parts))
    names, left_out = divide_files(sorted(str(path) for path in visible if kind_of(str(path))))
    kinds: dict[str, str] = {}
    for name in names:
        kinds.setdefault(str(kind_of(name)), name)
    if not names:
        raise DataError(f"folder {str(folder)!r} holds no data file; readable are {', '.join(_READERS)}")
    if len(kinds) > 1:
        found = ", ".join(f"{kind} ({name})" for kind, name in sorted(kinds.items()))
        raise DataError(
            f"folder {str(folder)!r} mixes kinds of data files: {found}; name one file, or a folder of one kind"
        )
    # By a name alone, without train files beside it, a held-out file may be all there is to train on.
    doubtful = [name for name in names if split_of(name) == "held-out"]
    used, unused, unsure = (tuple(str(folder / name) for name in some) for some in (names, left_out, doubtful))
    return FoundFiles(used, unused, unsure, str(folder))


def _read_json_lines(file: str) -> Iterator[Row]:
    decode = msgspec.json.Decoder().decode
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            content = _without_byte_order_mark(line, file) if number == 1 else line
            if content.isspace() or not content:
                continue
            try:
                values = decode(content)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise _broken_json_line(file, number, content, error) from error
            yield Row(file, number, _as_object(values, f"{file}:{number}"))


def _broken_json_line(file: str, number: int, content: bytes, error: Exception) -> DataError:
    listed = number == 1 and content.lstrip().startswith(b"[")
    hint = "the file seems to be one JSON list: name it .json" if listed else "every line must be one JSON object"
    return DataError(f"{file}:{number} is not valid JSON: {_json_problem(error)}; {hint}")


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


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    names = {list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    raise DataError(f"{where} holds {names.get(type(value), 'null')}; a row must be a JSON object with named fields")


def _read_json(file: str) -> Iterator[Row]:
    with open(file, "rb") as stream:
        content = _without_byte_order_mark(stream.read(), file)
    if not content.strip():
        return
    try:
        rows = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken_json(file, content, error) from error
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    if not isinstance(rows, list):
        raise DataError(f'{file} must hold a JSON list of objects, or an object {{"data": [...]}} with such a list')
    for number, values in enumerate(rows, start=1):
        yield Row(file, number, _as_object(values, f"{file}, row {number}"), "row")


def _broken_json(file: str, content: bytes, error: Exception) -> DataError:
    place = re.search(r"\(byte (\d+)\)", str(error))
    line = content.count(b"\n", 0, int(place[1])) + 1 if place else content.rstrip().count(b"\n") + 1
    hint = "; one object a line? Name it .jsonl" if "trailing characters" in str(error) else ""
    return DataError(f"{file}:{line} is not valid JSON: {_json_problem(error)}{hint}")


def _read_csv(file: str, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    with open(file, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        start = 1
        for cells in _csv_records(reader, file):
            line, start = start, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _csv_header(cells, f"{file}:{line}")
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{file}:{line} has {len(cells)} fields, but the header names {len(header)}; "
                    f"quote fields that hold {delimiter!r}"
                )
            yield Row(file, line, dict(zip(header, cells, strict=True)))


def _csv_records(reader: Any, file: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num} is not valid CSV: {error}") from error


def _csv_header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or "" in names:
        problem = f"names {repeated[0]!r} twice" if repeated and repeated[0] else "has a column without a name"
        raise DataError(f"{where}: the header {problem}; the first line must name every column once")
    return names


def _read_tsv(file: str) -> Iterator[Row]:
    return _read_csv(file, delimiter="\t")


def _read_text(file: str) -> Iterator[Row]:
    """Yields paragraphs where a blank line stands between texts, and lines otherwise."""
    with open(file, encoding="utf-8-sig") as stream:
        lines = stream.read().split("\n")
    blocks = _paragraphs(lines)
    if len(blocks) < 2:
        blocks = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    for number, text in blocks:
        yield Row(file, number, {"text": text})


def _paragraphs(lines: list[str]) -> list[tuple[int, str]]:
    blocks: list[tuple[int, str]] = []
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line.rstrip())
        elif block:
            blocks.append((number - len(block), "\n".join(block)))
            block = []
    return blocks


def _read_parquet(file: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from _rows_of_batches(table.iter_batches(), file)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is no readable Parquet file: {_first_line(error)}") from error


def _read_arrow(file: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.OSFile(file) as stream:
            # A Feather file starts with this magic; the cache files of the datasets library are bare streams.
            if stream.read(6) == b"ARROW1":
                table = pyarrow.ipc.open_file(file)
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
        for values in batch.to_pylist():
            number += 1
            yield Row(file, number, values, "row")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _undecodable_line(file: str) -> int:
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _reader_of(file: str) -> Callable[[str], Iterator[Row]]:
    suffix = Path(file).suffix.lower()
    if suffix not in _READERS:
        raise DataError(f"cannot read {file!r}: its ending {suffix!r} is not known; readable are {', '.join(_READERS)}")
    return _READERS[suffix]


_READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".txt": _read_text,
}
_KINDS = {suffix: suffix[1:] for suffix in _READERS} | {".ndjson": "jsonl", ".feather": "arrow"}
