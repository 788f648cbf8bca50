"""Files that survive a kill at any moment: whole JSON files, lines that are only ever added, one lock."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import IO, Any

import msgspec

from autopeft.errors import RunFolderError
from autopeft.specs import to_json

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file that is either the old one or the new one, never half of it."""
    write_text(path, to_json(content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file that is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        RunFolderError: naming the file, if it cannot be read or parsed.
    """
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise RunFolderError(f"{path} is not valid JSON: {error}") from error


def append_line(path: Path, record: Any) -> None:
    """Adds one JSON line with one write and waits until it is on disk; a half-written last line is closed first."""
    line = msgspec.json.encode(record) + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if _ends_within_a_line(descriptor):
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise RunFolderError(f"no space left on the disk of {path}; free some and continue with --resume")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file of JSON lines; what a kill left half-written is passed over.

    Raises:
        RunFolderError: naming the file and the line that is no record.
    """
    if not path.exists():
        return []
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    records = (_parse(line, f"{path}, line {number}") for number, line in lines if line)
    return [record for record in records if record is not None]


def drop_half_line(path: Path) -> None:
    """Cuts off what follows the last line end: a reader that does not know half-written lines comes next."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def lock_file(path: Path, owner: str) -> IO[bytes]:
    """Locks a file until the returned handle is closed or the process ends.

    Raises:
        RunFolderError: if another process holds it; ``owner`` says what that is.
    """
    handle = open(path, "ab")  # noqa: SIM115 - the lock lives as long as the handle
    if sys.platform == "win32":
        logger.warning("this system has no file locks; do not start two runs in %s", path.parent)
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise RunFolderError(
            f"{owner} is in use by another autopeft process; wait for it, or give another --output"
        ) from None
    return handle


def _ends_within_a_line(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return False
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) != b"\n"


def _parse(line: bytes, where: str) -> dict[str, Any] | None:
    try:
        content = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        # A line cut within a character is no text at all, and is told as such; but it does not end as a record does.
        if line.startswith(b"{") and ("truncated" in str(error) or not line.endswith(b"}")):
            return None
        raise RunFolderError(f"{where} is no JSON object ({error}); the file was changed by something else") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{where} is no JSON object; the file was changed by something else")
    return content
