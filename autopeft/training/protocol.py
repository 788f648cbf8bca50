"""The lines that the parent and its worker exchange: one JSON object a line, on the worker's stdin and stdout."""

from __future__ import annotations

from typing import IO, Any

import msgspec

from autopeft.specs import to_dict

OOM_EXIT = 77
"""Exit code of a worker that ends itself because a device ran out of memory and may be left in a bad state."""


def write_message(stream: IO[bytes], kind: str, **content: Any) -> None:
    """Writes one message and flushes it; dataclasses become JSON objects."""
    plain = {key: _plain(value) for key, value in content.items()}
    stream.write(msgspec.json.encode({"kind": kind, **plain}) + b"\n")
    stream.flush()


def read_message(line: bytes) -> dict[str, Any]:
    """Returns the message of one line."""
    message: dict[str, Any] = msgspec.json.decode(line)
    return message


def _plain(value: Any) -> Any:
    return to_dict(value) if hasattr(value, "__dataclass_fields__") else value
