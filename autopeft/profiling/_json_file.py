"""Reads JSON files that somebody else wrote: bounded in size and depth, and without NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from autopeft.errors import ModelError

MAX_BYTES = 64_000_000
"""The index of a model of 100,000 tensors takes 15 MB, a tokenizer_config.json some; a config.json a few kB."""


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON file that must hold an object.

    Raises:
        ModelError: naming the file and the line, if it is too large, too deep, no JSON object, or holds NaN or
            Infinity, which are not JSON.
    """
    try:
        content = json.loads(_text(path), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}, line {error.lineno} is not valid JSON: {error.msg}") from error
    except _NoNumberError as error:
        raise ModelError(f"{path} holds {error}, which is no number; correct it") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply to be read") from error
    except ValueError as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} holds a number that cannot be read: {str(error).partition(';')[0]}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"{path} has {size:,} bytes; such a file has at most {MAX_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


class _NoNumberError(Exception):
    """NaN or Infinity stood where a number should."""


def _refuse(name: str) -> NoReturn:
    raise _NoNumberError(name)
