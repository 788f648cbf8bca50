"""Finds the files of a data set, opens them and hashes them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from autopeft.errors import DataError
from autopeft.profiling._split_names import divide_files, split_of

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "txt",
}
"""Ending -> kind of data file."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Ending of a compressed file -> pyarrow's name for it; after the ending of a kind in ``COMPRESSIBLE``."""
COMPRESSIBLE = ("jsonl", "json", "csv", "tsv", "txt")
"""Parquet and Arrow files compress their columns themselves."""
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
"""What compressed files begin with (RFC 1952 and RFC 8878)."""
_BLOCK_BYTES = 2**20


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
        known_kind(str(path))
        return FoundFiles((str(path),))
    if not _may_be_hub_id(source):
        raise DataError(
            f"no data file or folder {source!r}; looked in {Path.cwd()}.{_about_patterns(source)} "
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
                while block := stream.read(_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise unreadable(file, error) from error
    return digest.hexdigest()


def hash_and_count(
    files: Sequence[str], offsets: Sequence[Sequence[int]]
) -> tuple[str, dict[tuple[int, int], int], int]:
    """Returns the files' hash, the line ends before some places, and the lines of all files; each is read once.

    Args:
        files: text files.
        offsets: for each file the places, in bytes, ascending.
    """
    digest = hashlib.sha256()
    before: dict[tuple[int, int], int] = {}
    lines = 0
    for index, file in enumerate(files):
        in_file, last = 0, b""
        with open(file, "rb") as stream:
            for offset in [*offsets[index], None]:
                for block in _read_up_to(stream, offset):
                    digest.update(block)
                    in_file += block.count(b"\n")
                    last = block
                if offset is not None:
                    before[index, offset] = in_file
        lines += in_file + bool(last and not last.endswith(b"\n"))
    return digest.hexdigest(), before, lines


def _read_up_to(stream: IO[bytes], offset: int | None) -> Iterator[bytes]:
    """Yields what stands before a place, or all that is left."""
    while True:
        left = _BLOCK_BYTES if offset is None else min(_BLOCK_BYTES, offset - stream.tell())
        block = stream.read(left)
        if not block:
            return
        yield block


def data_suffixes() -> tuple[str, ...]:
    """Returns the file name endings that can be read, those of compressed files aside."""
    return tuple(KINDS)


def kind_of(file: str) -> str | None:
    """Returns the kind of data file that a name's ending stands for ("jsonl", "csv", ...); None if it is none."""
    path = Path(file)
    compressed = path.suffix.lower() in COMPRESSIONS
    kind = KINDS.get((path.with_suffix("") if compressed else path).suffix.lower())
    return None if compressed and kind not in COMPRESSIBLE else kind


def known_kind(file: str) -> str:
    """Returns the kind of a data file.

    Raises:
        DataError: if its ending is not known.
    """
    kind = kind_of(file)
    if kind is None:
        ending = Path(file).suffix.lower()
        problem = f"its ending {ending!r} is not known" if ending else "its name has no ending to tell its kind by"
        raise DataError(f"cannot read {file!r}: {problem}; readable are {_readable()}")
    return kind


def open_data(file: str) -> IO[bytes]:
    """Opens a text file of data for reading, decompressed.

    Raises:
        DataError: if its name says other than its first bytes whether it is compressed.
        OSError: if it cannot be opened.
    """
    ending = Path(file).suffix.lower()
    compression = COMPRESSIONS.get(ending)
    _check_compression(file, ending)
    if compression is None:
        return open(file, "rb")
    import io

    import pyarrow

    stream = pyarrow.input_stream(file, compression=compression)
    # pyarrow's streams lack readinto and line iteration at speed; the buffer brings both.
    return cast("IO[bytes]", io.BufferedReader(stream, _BLOCK_BYTES))


def unreadable(file: str, error: OSError) -> DataError:
    """Returns what is told of a file that could not be read; pyarrow's errors of compressed files have no strerror."""
    damaged = "" if error.strerror else "; the file is damaged or cut off: copy or download it again"
    return DataError(f"cannot read {file}: {error.strerror or error}{damaged}")


def _check_compression(file: str, ending: str) -> None:
    with open(file, "rb") as stream:
        start = stream.read(4)
    found = next((each for each, magic in _MAGIC.items() if start.startswith(magic)), None)
    if not start or found == (ending if ending in COMPRESSIONS else None):
        return
    if found is not None:
        raise DataError(f"{file} is compressed with {COMPRESSIONS[found]}: let its name end in {found}")
    raise DataError(
        f"{file} is not compressed with {COMPRESSIONS[ending]}, as its ending says: leave {ending!r} out of its name"
    )


def _about_patterns(source: str) -> str:
    return " Patterns are not expanded: give the folder." if set(source) & set("*?[") else ""


def _readable() -> str:
    endings = " and ".join(COMPRESSIONS)
    return f"{', '.join(KINDS)}, and {', '.join(COMPRESSIBLE)} compressed as {endings}"


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
        raise DataError(f"folder {str(folder)!r} holds no data file; readable are {_readable()}")
    if len(kinds) > 1:
        found = ", ".join(f"{kind} ({name})" for kind, name in sorted(kinds.items()))
        raise DataError(
            f"folder {str(folder)!r} mixes kinds of data files: {found}; name one file, or a folder of one kind"
        )
    # By a name alone, without train files beside it, a held-out file may be all there is to train on.
    doubtful = [name for name in names if split_of(name) == "held-out"]
    used, unused, unsure = (tuple(str(folder / name) for name in some) for some in (names, left_out, doubtful))
    return FoundFiles(used, unused, unsure, str(folder))
