"""trl: a script."""

from __future__ import annotations

from typing import Any

from autopeft.handover.export.recipe import Recipe, row_for_trl
from autopeft.handover.export.script import script
from autopeft.handover.export.target import Target


class Trl(Target):
    """trl's SFTTrainer with peft."""

    name = "trl"
    main = "train.py"
    methods = ("lora", "rslora", "dora", "adalora", "full")

    def content(self, recipe: Recipe) -> str:
        """Returns train.py."""
        return script("trl.py.jinja", recipe, self.trainer)

    def row(self, recipe: Recipe, index: int) -> dict[str, Any]:
        """Returns a row with "prompt" and "completion", or "text"."""
        return row_for_trl(recipe.rows[index], recipe.row_kind)

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns what trl does in its own way."""
        notes = ["rows come in another order than in autopeft run"]
        if recipe.candidate.method == "dora":
            notes.append("DoRA's norm is peft's dense one: the same results, with more memory and time")
        if recipe.candidate.method == "adalora":
            notes.append("AdaLoRA's penalty is peft's, which trl's own loss leaves out")
        if recipe.candidate.quantization != "none" and recipe.candidate.adapter_dtype == "float32":
            notes.append("trl stores the adapter of a quantized base in bfloat16, autopeft in float32")
        return notes
