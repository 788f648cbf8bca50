"""Reads and writes plan.json."""

from __future__ import annotations

import json
from pathlib import Path

from autopeft.errors import InvalidInputError
from autopeft.specs import Recommendation, to_json


def write_plan(plan: Recommendation, path: str | Path) -> None:
    """Writes plan.json.

    Raises:
        InvalidInputError: if the file cannot be written.
    """
    try:
        Path(path).write_text(to_json(plan.to_dict()), encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror}") from error


def read_plan(path: str | Path) -> Recommendation:
    """Returns the plan of a plan.json.

    Raises:
        InvalidInputError: if it cannot be read, or is no plan of this version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the plan {path}: {error.strerror}; make one: autopeft suggest ... -o plan.json"
        ) from error
    except ValueError as error:
        raise InvalidInputError(f"{path} is no valid JSON: {error}") from error
    return Recommendation.from_dict(content, str(path))
