"""Writes the exports that are YAML files."""

from __future__ import annotations

from typing import Any

import yaml

from autopeft.handover.export.recipe import Recipe
from autopeft.handover.export.target import Trainer


def yaml_text(settings: dict[str, Any], recipe: Recipe, trainer: Trainer) -> str:
    """Returns a configuration, with where it comes from; entries that are None are left out."""
    head = (
        f"# {recipe.candidate.method} with {trainer.title}: candidate {recipe.number} of an autopeft plan.\n"
        f"# Checked against {trainer.title} {trainer.version}: {trainer.checked_by}. Run in this folder: "
        f"{trainer.command}\n"
    )
    kept = {name: value for name, value in settings.items() if value is not None}
    return head + yaml.dump(kept, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes floats so that YAML 1.1 reads them as numbers: 5.2e-04 has a dot, 1e-05 has not."""


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _number)
