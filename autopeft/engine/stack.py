"""Says in one sentence what to install where the training stack is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from autopeft.errors import MissingExtraError

TRAINING_STACK = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes")


def require_training_stack(what: str) -> None:
    """Raises MissingExtraError, naming ``what``, if a package of the training stack is not installed."""
    if any(importlib.util.find_spec(name) is None for name in TRAINING_STACK):
        raise MissingExtraError(what)


def stack_versions() -> dict[str, str]:
    """Returns the installed versions that results depend on, by package."""
    names = ("autopeft", *TRAINING_STACK, "optuna", "numpy")
    return {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
