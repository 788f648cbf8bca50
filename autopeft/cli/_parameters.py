"""What the commands take: value types, and the options that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import click

from autopeft.errors import InvalidInputError
from autopeft.specs import Objective
from autopeft.units import parse_bytes, parse_duration

Command = Callable[..., Any]

if TYPE_CHECKING:
    _BytesType = click.ParamType[int]
    _DurationType = click.ParamType[float]
    _ColumnsType = click.ParamType[tuple[str, str]]
else:
    # Generic for type checkers alone, up to click 8.3.
    _BytesType = _DurationType = _ColumnsType = click.ParamType

MODEL_HELP = "Hub id, local folder, .gguf file, or a name from `autopeft model`."
HARDWARE_HELP = "auto, cpu, names from `autopeft hardware` (2x rtx-4090 + a10), or a YAML file."
COLUMN_HELP = "Maps a column, e.g. prompt=question; repeatable."


class Bytes(_BytesType):
    """A memory size: 16GiB, 24GB, 512MiB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Returns bytes."""
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


class Duration(_DurationType):
    """A duration: 45s, 30m, 1h30m."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns seconds."""
        try:
            return float(value) if isinstance(value, float | int) else parse_duration(value)
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)


class Columns(_ColumnsType):
    """A column mapping: prompt=question."""

    name = "ROLE=COLUMN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Returns the role and the column."""
        if isinstance(value, tuple):
            return value
        role, separator, column = str(value).partition("=")
        if not (separator and role and column):
            self.fail(f"{value!r} maps no column; write for example prompt=question", param, ctx)
        return role, column


bad_row_option = click.option(
    "--on-bad-row",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do with rows that cannot be read or do not fit; skip counts and lists them.",
)


def input_options(required: bool) -> Callable[[Command], Command]:
    """Returns a decorator that adds the options which describe model, data and hardware."""
    options = [
        click.option("--model", required=required, help=MODEL_HELP),
        click.option("--data", required=required, help="JSONL, JSON, CSV, Parquet, Arrow, text, folder or hub id."),
        click.option("--hardware", default="auto", show_default=True, help=HARDWARE_HELP),
        click.option("--budget-memory", type=Bytes(), help="Use no more device memory than this, e.g. 16GiB."),
        click.option("--method", "methods", multiple=True, help="Consider this method only; repeatable. Default: all."),
        click.option("--effective-batch-size", type=click.IntRange(min=1), help="Rows per optimizer step."),
        click.option("--max-length", type=click.IntRange(min=8), help="Truncate rows to this many tokens."),
        click.option("--column", "columns", type=Columns(), multiple=True, help=COLUMN_HELP),
        bad_row_option,
        click.option(
            "--objective", type=click.Choice(get_args(Objective)), default="balanced", show_default=True,
            help="What the order of the candidates weighs most.",
        ),
        click.option("--max-time", type=Duration(), help="Reject what trains longer than this, e.g. 8h."),
        click.option("--max-cost", type=click.FloatRange(min=0), help="Reject what costs more than this."),
        click.option("--price-per-hour", type=click.FloatRange(min=0), help="Of the device, in any currency."),
        click.option("--price-per-kwh", type=click.FloatRange(min=0), help="Of energy, on top of the hours."),
        click.option("--max-adapter-parameters", type=click.IntRange(min=1), help="Of the finished adapter."),
        click.option("--serve", metavar="SERVER", help="Keep what vllm, sglang, llamacpp or ollama loads, or merged."),
        click.option("--full-data", is_flag=True, help="Count the tokens of every row. Default: of a sample."),
        click.option("--seed", default=0, show_default=True, help="Of everything random."),
    ]  # fmt: skip

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def baseline_options(command: Command) -> Command:
    """Adds the options that have the untouched base model scored."""
    options = [
        click.option(
            "--baseline", is_flag=True, help="Score the untouched model on the data first (needs autopeft[train])."
        ),
        click.option(
            "--baseline-rows", type=click.IntRange(min=2),
            help="Scored rows at most; without it, what takes about 90 s, 128 at most.",
        ),
        click.option(
            "--baseline-shots", default=4, show_default=True, type=click.IntRange(min=0), help="Examples in its prompt."
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
