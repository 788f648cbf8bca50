"""`autopeft estimate`: the price of one configuration, what makes it so, and what would make it fit."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from autopeft.cli._commands import cli
from autopeft.cli._parameters import COLUMN_HELP, HARDWARE_HELP, MODEL_HELP, Columns, json_option
from autopeft.cli._terminal import print_table
from autopeft.specs import (
    Attention,
    Dtype,
    Explanation,
    MemoryEstimate,
    Optimizer,
    Quantization,
    StepStyle,
    TrainerName,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

HABITS = tuple(field.name.replace("_", "-") for field in fields(StepStyle) if field.name != "mixed_precision")
"""What a training loop may do otherwise than autopeft's own."""


@cli.command(epilog="Exit codes: 0 done, 1 error, 2 usage.")
@click.option("--model", required=True, help=MODEL_HELP)
@click.option("--method", default="lora", show_default=True, help="A name from `autopeft methods`.")
@click.option("--rank", "r", type=click.IntRange(min=1), help="Rank of the update. Default: 16.")
@click.option(
    "--alpha",
    "lora_alpha",
    type=click.FloatRange(min=0, min_open=True),
    help="lora_alpha. Default: what the method recommends.",
)
@click.option("--target-modules", help="Names with commas, or all-linear, attention, mlp. Default: all-linear.")
@click.option(
    "--peft-config",
    type=click.Path(exists=True, dir_okay=False),
    help="adapter_config.json in place of the method options.",
)
@click.option("--quantization", default="none", show_default=True, type=click.Choice(get_args(Quantization)))
@click.option(
    "--double-quantization/--no-double-quantization", default=None, help="Quantize nf4's scales too. Default: yes."
)
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(get_args(Dtype)))
@click.option("--adapter-dtype", type=click.Choice(get_args(Dtype)), help="Default: float32, as peft casts.")
@click.option(
    "--prepare-kbit/--no-prepare-kbit",
    default=False,
    help="prepare_model_for_kbit_training; no effect on a 16-bit base.",
)
@click.option("--batch-size", default=1, show_default=True, type=click.IntRange(min=1), help="Rows of one forward.")
@click.option(
    "--gradient-accumulation-steps", default=1, show_default=True, type=click.IntRange(min=1), help="Forwards a step."
)
@click.option(
    "--sequence-length",
    type=click.IntRange(min=1),
    help="Tokens of a row. Default: 1024 or the model's longest input; with --data its longest row.",
)
@click.option("--packing/--no-packing", default=False, help="Rows hold several documents each.")
@click.option(
    "--activation-checkpointing/--no-activation-checkpointing", default=False, help="Recompute activations in backward."
)
@click.option("--attention", default="sdpa", show_default=True, type=click.Choice(get_args(Attention)))
@click.option("--optimizer", default="adamw_torch", show_default=True, type=click.Choice(get_args(Optimizer)))
@click.option(
    "--trainer",
    default="trl",
    show_default=True,
    type=click.Choice(get_args(TrainerName)),
    help="trl never builds the full logits.",
)
@click.option("--hardware", default="auto", show_default=True, help=HARDWARE_HELP)
@click.option("--data", help="A data set: says how the peak differs between the batches of an epoch.")
@click.option("--column", "columns", type=Columns(), multiple=True, help=COLUMN_HELP)
@click.option("--trace", is_flag=True, help="Trace the real training step on fake tensors (needs autopeft[train]).")
@click.option(
    "--environment",
    type=click.Path(),
    help="Trace with the libraries of this virtual environment (folder or python); nothing is installed there.",
)
@click.option(
    "--mixed-precision/--no-mixed-precision",
    default=None,
    help="Whether the forward runs under autocast. Default: with a 16-bit base and float32 adapters.",
)
@click.option(
    "--habit", "habits", multiple=True, type=click.Choice(HABITS), help="Of a loop that is not autopeft's; repeatable."
)
@click.option(
    "--calibration/--no-calibration", default=True, help="Correct by what was measured on this machine. Default: yes."
)
@click.option("--explain", is_flag=True, help="Say what dominates, and what would make it fit.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the breakdown: .svg or .png.")
@json_option
def estimate(as_json: bool, target_modules: str | None, explain: bool, plot: Path | None, **options: Any) -> None:
    """Predicts memory and time of one configuration."""
    from autopeft import api

    explicit = _explicit(target_modules, options)
    explanation = None
    if explain:
        found, explanation = api.explain(**explicit)
    else:
        found = api.estimate(**explicit)
    if plot is not None:
        from autopeft.report.memory_plot import plot_memory

        plot_memory(found, plot)
        click.echo(f"wrote {plot}", err=True)
    _show(found, explanation, as_json)


def _explicit(target_modules: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the command's options as the API takes them."""
    targets = None if target_modules is None else [name.strip() for name in target_modules.split(",")]
    habits = {name.replace("-", "_"): True for name in options.pop("habits")}
    style = StepStyle(mixed_precision=options.pop("mixed_precision"), **habits)
    columns = dict(options.pop("columns")) or None
    return {**options, "target_modules": targets, "columns": columns, "style": style}


def _show(found: MemoryEstimate, explanation: Explanation | None, as_json: bool) -> None:
    from autopeft.report.tables import estimate_table
    from autopeft.specs import to_dict, to_json

    if as_json:
        content = to_dict(found)
        if explanation is not None:
            content["explanation"] = to_dict(explanation)
        click.echo(to_json(content), nl=False)
        return
    parts: list[RenderableType] = [estimate_table(found)]
    if explanation is not None:
        from autopeft.report.memory_breakdown import breakdown_chart, explain_text

        parts += [breakdown_chart(found, explanation.available_bytes), explain_text(explanation)]
    for part in parts:
        print_table(part)
