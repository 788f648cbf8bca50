"""Unsloth: a script."""

from __future__ import annotations

from typing import Any

from autopeft.handover.export.recipe import Recipe, row_for_trl
from autopeft.handover.export.script import script
from autopeft.handover.export.target import Target


class Unsloth(Target):
    """Unsloth's model under trl's SFTTrainer."""

    name = "unsloth"
    main = "train.py"
    methods = ("lora", "rslora", "full")

    def content(self, recipe: Recipe) -> str:
        """Returns train.py."""
        return script("unsloth.py.jinja", recipe, self.trainer)

    def row(self, recipe: Recipe, index: int) -> dict[str, Any]:
        """Returns a row with "prompt" and "completion", or "text"."""
        return row_for_trl(recipe.rows[index], recipe.row_kind)

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns what Unsloth does in its own way."""
        notes = ["nothing of this script was run: Unsloth needs a GPU; its names were checked in the source"]
        if recipe.candidate.quantization == "nf4":
            notes.append("whether nf4's scales are quantized too is Unsloth's choice")
        return notes
