"""`autopeft calibrate`: measures two real steps beside their prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from autopeft.cli._commands import cli
from autopeft.cli._estimate import estimate
from autopeft.cli._parameters import COLUMN_HELP, Bytes, Columns, Command, json_option
from autopeft.cli._terminal import Progress, show, terminate_like_interrupt

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autopeft.api import CalibrationResult
    from autopeft.memory.calibration_store import Observation

_SHARED = (
    "model",
    "method",
    "r",
    "lora_alpha",
    "target_modules",
    "quantization",
    "double_quantization",
    "dtype",
    "adapter_dtype",
    "prepare_kbit",
    "batch_size",
    "activation_checkpointing",
    "attention",
    "optimizer",
    "trainer",
    "trace",
)
"""Options that mean what they mean to `autopeft estimate`, by the name of their value."""

_FIGURES = {"max_allocated": "peak allocated", "max_reserved": "peak reserved", "resident": "memory of the process"}


def _options_of_estimate(command: Command) -> Command:
    known = {parameter.name: parameter for parameter in estimate.params}
    shared = [known[name] for name in _SHARED]
    # click's own decorators add to this list, the last option first.
    own: list[click.Parameter] = getattr(command, "__click_params__", [])
    command.__click_params__ = [*own, *reversed(shared)]  # type: ignore[attr-defined]
    return command


@cli.command(epilog="Exit codes: 0 measured, running out of memory included; 1 error, 2 usage, 130 interrupted.")
@_options_of_estimate
@click.option("--data", help="Measure its longest rows. Default: full rows of made-up text.")
@click.option("--column", "columns", type=Columns(), multiple=True, help=COLUMN_HELP)
@click.option(
    "--sequence-length",
    type=click.IntRange(min=2),
    help="Tokens of a row; with --data, of the longest. Default: 1024; with --data the model's context.",
)
@click.option("--budget-memory", type=Bytes(), help="Use no more device memory than this. Default: what is free.")
@json_option
def calibrate(as_json: bool, target_modules: str | None, columns: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Measures two real training steps and corrects later predictions by them.

    Runs the worst batch on this machine's device, in a process of its own; needs the model's weights and
    autopeft[train]. What it measures is kept for this device, model family and library versions. Running out of memory
    is a result as well.
    """
    from autopeft import api

    terminate_like_interrupt()
    targets = None if target_modules is None else [name.strip() for name in target_modules.split(",")]
    with Progress() as progress:
        result = api.calibrate(target_modules=targets, columns=dict(columns), on_step=progress.step, **options)
    show(result, as_json, _table)


def _table(result: CalibrationResult) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("figure", "predicted by", "predicted", "measured", "ratio"):
        table.add_column(title)
    for observation in result.observations:
        table.add_row(*_memory_row(observation))
    table.add_row(*_time_row(result.observations[0]))
    rows = f"{result.candidate.per_device_batch_size} x {result.sequence_length} tokens"
    heading = Text(f"{result.candidate.method} of {result.model} on {result.device}, {rows}", style="bold")
    return Group(heading, table, *(Text(note) for note in _notes(result)))


def _memory_row(observation: Observation) -> tuple[str, ...]:
    from autopeft.units import format_gib

    found = format_gib(observation.found_bytes)
    ratio = observation.found_bytes / observation.predicted_bytes
    missed = observation.measured_bytes is None
    return (
        _FIGURES[observation.kind],
        observation.predicted_by.replace("_", " "),
        format_gib(observation.predicted_bytes),
        f"over {found}" if missed else found,
        f"{'> ' if missed else ''}{ratio:.3f}",
    )


def _time_row(observation: Observation) -> tuple[str, ...]:
    predicted, measured = observation.predicted_seconds, observation.measured_seconds
    texts = ["unknown" if seconds is None else f"{seconds:.3g} s" for seconds in (predicted, measured)]
    ratio = f"{measured / predicted:.3f}" if predicted and measured else ""
    return ("time of a step", "closed form", *texts, ratio)


def _notes(result: CalibrationResult) -> list[str]:
    from autopeft.memory.calibration import RESIDENT_NOTE

    notes = [f"stored in {result.store}"]
    if result.status == "oom":
        notes.insert(0, "the steps ran out of memory; the limit is stored as a lower bound")
    if any(observation.kind == "resident" for observation in result.observations):
        notes.insert(0, RESIDENT_NOTE)
    return notes
