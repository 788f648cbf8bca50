"""Versions of the libraries that a traced figure holds for."""

from __future__ import annotations

import importlib.metadata

TRACED_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes")


def installed_versions() -> dict[str, str]:
    """Returns the versions of this interpreter's packages, by name; those that are installed."""
    found = {}
    for name in TRACED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
