"""What people see of a plan or a run: tables in the terminal, report.md, report.html and recipe.yaml.

The names below are imported on first use: a table in the terminal needs neither templates nor plots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.report.card import model_card
    from autopeft.report.html import render_html
    from autopeft.report.markdown import render_markdown
    from autopeft.report.recipe import recipe_yaml
    from autopeft.report.record import RunRecord
    from autopeft.report.tables import data_table, hardware_table, methods_table, model_table, suggest_table

__all__ = [
    "RunRecord",
    "data_table",
    "hardware_table",
    "methods_table",
    "model_card",
    "model_table",
    "recipe_yaml",
    "render_html",
    "render_markdown",
    "suggest_table",
]

_HOMES = {
    "RunRecord": "record",
    "model_card": "card",
    "recipe_yaml": "recipe",
    "render_html": "html",
    "render_markdown": "markdown",
}


def __getattr__(name: str) -> Any:
    """Imports a name on first use (PEP 562); those without a home of their own are tables."""
    if name not in __all__:
        raise AttributeError(f"module 'autopeft.report' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"autopeft.report.{_HOMES.get(name, 'tables')}"), name)
