"""peft with transformers' Trainer: a script."""

from __future__ import annotations

from typing import Any

from autopeft.handover.export.recipe import Recipe, row_for_trl
from autopeft.handover.export.script import script
from autopeft.handover.export.target import Target


class Peft(Target):
    """peft alone, without trl."""

    name = "peft"
    main = "train.py"
    methods = ("lora", "rslora", "dora", "adalora", "full")

    def content(self, recipe: Recipe) -> str:
        """Returns train.py."""
        return script("peft.py.jinja", recipe, self.trainer)

    def row(self, recipe: Recipe, index: int) -> dict[str, Any]:
        """Returns a row with "prompt" and "completion", or "text"."""
        return row_for_trl(recipe.rows[index], recipe.row_kind)

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns what the script does in its own way."""
        notes = ["rows come in another order than in autopeft run; the full logits are in memory"]
        if recipe.candidate.packing:
            notes.append("rows are not packed")
        if recipe.candidate.method == "dora":
            notes.append("DoRA's norm is peft's dense one: the same results, with more memory and time")
        return notes
