"""What people see of a plan or a run: tables in the terminal, report.md, report.html and recipe.yaml."""

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
    "model_table",
    "recipe_yaml",
    "render_html",
    "render_markdown",
    "suggest_table",
]
