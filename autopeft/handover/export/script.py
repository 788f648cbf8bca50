"""Renders the exports that are Python scripts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from autopeft.handover.export.recipe import Recipe
from autopeft.handover.export.target import Trainer

_TEMPLATES = Path(__file__).parent / "templates"


def script(template: str, recipe: Recipe, trainer: Trainer, **more: Any) -> str:
    """Returns a script from a template of the folder ``templates``."""
    text: str = (
        _environment()
        .get_template(template)
        .render(recipe=recipe, candidate=recipe.candidate, trainer=trainer, adapter=_adapter(recipe), **more)
    )
    return text


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    environment.filters["repr"] = repr
    return environment


def _adapter(recipe: Recipe) -> dict[str, Any] | None:
    """Returns peft's configuration class and its arguments."""
    if recipe.adapter is None:
        return None
    names = {"LORA": "LoraConfig", "ADALORA": "AdaLoraConfig", "MISS": "MissConfig"}
    settings = {
        **recipe.adapter.settings,
        "target_modules": list(recipe.candidate.target_modules),
        "task_type": "CAUSAL_LM",
    }
    if recipe.adapter.peft_type == "ADALORA":
        settings["orth_reg_weight"] = 0.5
    return {"config": names[recipe.adapter.peft_type], "settings": settings}
