"""Keeps traces on disk: the same question to the same libraries has the same answer."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.resources import cache_folder, plugin_folders

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parent.parent
_SOURCES = ("engine", "methods", "memory/tracing", "memory/allocator.py", "memory/_allocator_pools.py",
            "memory/_expansion.py", "memory/_shallow_runs.py", "memory/_static.py", "memory/overhead.py",
            "memory/ledger/heads.py", "specs/candidate.py", "specs/step_style.py")  # fmt: skip
"""What of our own code an answer depends on."""


def cache_key(request: TraceRequest, versions: Mapping[str, str]) -> str:
    """Returns the hash of everything that an answer depends on: request, library versions, our own code, plugins."""
    content = {"request": request.to_dict(), "versions": dict(versions), "code": tracing_code_hash()}
    if request.model_code:
        content["model_code"] = hashlib.sha256(Path(request.model_code).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def read(key: str) -> TraceAnswer | None:
    """Returns a kept answer; None if there is none, or a damaged one, which is then made again."""
    path = _path(key)
    try:
        return TraceAnswer.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the kept trace %s is damaged and made again: %s", path, error)
        return None


def write(key: str, answer: TraceAnswer) -> None:
    """Keeps an answer, whole or not at all; without a writable cache folder it is just not kept."""
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(answer.to_dict(), file)
        os.replace(file.name, path)
    except OSError as error:
        logger.info("the trace is not kept: %s", error)


def _path(key: str) -> Path:
    return cache_folder() / "traces" / f"{key}.json"


@functools.cache
def tracing_code_hash() -> str:
    """Returns the hash of our own code that an answer depends on, plugins' methods included."""
    files: list[Path] = []
    for name in _SOURCES:
        path = _PACKAGE / name
        files += sorted(path.glob("*.py")) if path.is_dir() else [path]
    for folder in plugin_folders():
        files += sorted((folder / "methods").glob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
