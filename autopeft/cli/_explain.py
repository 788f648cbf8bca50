"""The command `explain`."""

from __future__ import annotations

import click

from autopeft.cli._commands import cli
from autopeft.cli._parameters import json_option
from autopeft.cli._terminal import show


@cli.command()
@click.argument("plan", type=click.Path(dir_okay=False))
@json_option
def explain(plan: str, as_json: bool) -> None:
    """Says why a plan's first candidate is the first, and what would change that.

    PLAN is a file that `autopeft suggest -o plan.json` wrote. Its inputs are changed one at a time and recommended
    anew; nothing is trained and nothing written.
    """
    from autopeft import api
    from autopeft.report.explained import explained_table

    show(api.explain_plan(plan), as_json, explained_table)
