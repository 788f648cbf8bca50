"""The command line: parses, calls one function of the API, prints, returns an exit code.

stdout is the result (a table, or JSON with ``--json``); stderr is progress and errors.
Exit codes: 0 done, 1 error, 2 usage, 3 nothing fits, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

import autopeft
from autopeft.errors import EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED, AutoPeftError, InvalidInputError
from autopeft.specs import Attention, Dtype, Optimizer, Quantization, TrainerName
from autopeft.units import parse_bytes, parse_duration

Command = Callable[..., Any]

if TYPE_CHECKING:
    _BytesType = click.ParamType[int]
    _DurationType = click.ParamType[float]
    _ColumnsType = click.ParamType[tuple[str, str]]
else:
    # Generic for type checkers alone, up to click 8.3.
    _BytesType = _DurationType = _ColumnsType = click.ParamType

_MODEL_HELP = "Hub id, local folder, .gguf file, or a name from `autopeft model`."
_HARDWARE_HELP = "auto, a name from `autopeft hardware`, or a YAML file."
_COLUMN_HELP = "Maps a column, e.g. prompt=question; repeatable."
_EXAMPLES = """\b
Examples:
  autopeft suggest --model llama-3.1-8b --data train.jsonl --hardware rtx-4090
  autopeft run --model ./my-model --data train.jsonl --time-budget 2h

"""
_EPILOG = "Exit codes: 0 done, 1 error, 2 usage, 3 nothing fits the memory, 130 interrupted."


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


def _input_options(required: bool) -> Callable[[Command], Command]:
    """Returns a decorator that adds the options which describe model, data and hardware."""
    options = [
        click.option("--model", required=required, help=_MODEL_HELP),
        click.option("--data", required=required, help="JSONL, JSON, CSV, Parquet, Arrow or text file, folder, hub id."),
        click.option("--hardware", default="auto", show_default=True, help=_HARDWARE_HELP),
        click.option("--budget-memory", type=Bytes(), help="Use no more device memory than this, e.g. 16GiB."),
        click.option("--method", "methods", multiple=True, help="Consider this method only; repeatable. Default: all."),
        click.option("--effective-batch-size", type=click.IntRange(min=1), help="Rows per optimizer step."),
        click.option("--max-length", type=click.IntRange(min=8), help="Truncate rows to this many tokens."),
        click.option("--column", "columns", type=Columns(), multiple=True, help=_COLUMN_HELP),
        click.option("--seed", default=0, show_default=True, help="Of everything random."),
    ]  # fmt: skip

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(epilog=_EXAMPLES + _EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(autopeft.__version__, prog_name="autopeft")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Chooses the fine-tuning method, rank and learning rate for your model, data and GPU."""
    context.obj = {"debug": debug}


@cli.command(epilog=_EPILOG)
@_input_options(required=True)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan here, for `autopeft run`."
)
@click.option(
    "--trace", default=0, metavar="N", type=click.IntRange(min=0), help="Trace the memory of the best N candidates."
)
@_json_option
def suggest(output: Path | None, as_json: bool, columns: tuple[tuple[str, str], ...], **inputs: Any) -> None:
    """Recommends methods and settings in seconds.

    Needs neither a GPU nor weights nor torch, and writes no file without -o.
    """
    from autopeft import api
    from autopeft.specs import to_json

    plan = api.suggest(columns=dict(columns), **inputs)
    if output is not None:
        api.write_plan(plan, output)
        click.echo(f"wrote {output}; next: autopeft run {output}", err=True)
    if as_json:
        click.echo(to_json(plan.to_dict()), nl=False)
    else:
        from autopeft.report.tables import suggest_table

        _print(suggest_table(plan))


@cli.command(epilog=_EPILOG)
@click.argument("plan", required=False, type=click.Path(dir_okay=False))
@_input_options(required=False)
@click.option("--trials", type=click.IntRange(min=1), help="Search trials at most.")
@click.option("--time-budget", type=Duration(), help="Time for everything, e.g. 30m, 8h.")
@click.option("-o", "--output", type=click.Path(file_okay=False), help="Run folder. Default: runs/<time>.")
@click.option("--resume", is_flag=True, help="Go on with the run in --output; needs nothing else.")
@click.option("--dry-run", is_flag=True, help="Simulate the trainings, to see what the search would do.")
@_json_option
@click.pass_context
def run(
    context: click.Context, /, plan: str | None, as_json: bool, columns: tuple[tuple[str, str], ...], **options: Any
) -> None:
    """Searches, trains the winner, writes a report.

    The winner is scored against the untouched base model and the plain LoRA recipe, on rows never used for choosing.

    PLAN is a file that `autopeft suggest -o plan.json` wrote; without it give the same inputs as to suggest.
    """
    from autopeft import api
    from autopeft.specs import to_json

    if context.get_parameter_source("seed") is click.core.ParameterSource.DEFAULT:
        options.pop("seed")
    _terminate_like_interrupt()
    with _Progress() as progress:
        report = api.run(plan, columns=dict(columns), on_event=progress.event, on_step=progress.step, **options)
    if as_json:
        click.echo(to_json(report.verdict.to_dict()), nl=False)
    else:
        from autopeft.report.tables import verdict_table

        _print(verdict_table(report.verdict))
        click.echo(f"report   {report.html}\nadapter  {report.adapter_folder}")


@cli.command(epilog=_EPILOG)
@click.option("--model", required=True, help=_MODEL_HELP)
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
@click.option("--sequence-length", default=1024, show_default=True, type=click.IntRange(min=1), help="Tokens of a row.")
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
@click.option("--hardware", default="auto", show_default=True, help=_HARDWARE_HELP)
@click.option("--trace", is_flag=True, help="Trace the real training step on fake tensors (needs autopeft[train]).")
@_json_option
def estimate(as_json: bool, target_modules: str | None, **options: Any) -> None:
    """Predicts memory and time of one configuration."""
    from autopeft import api
    from autopeft.report.tables import estimate_table

    targets = None if target_modules is None else [name.strip() for name in target_modules.split(",")]
    _show(api.estimate(target_modules=targets, **options), as_json, estimate_table)


@cli.command()
@_json_option
def methods(as_json: bool) -> None:
    """Lists the fine-tuning methods."""
    from autopeft import api
    from autopeft.methods import registry
    from autopeft.report.tables import methods_table
    from autopeft.spaces import all_spaces

    _show(api.describe_methods(), as_json, lambda _: methods_table(registry().values(), all_spaces()))


@cli.command()
@click.argument("name", required=False)
@_json_option
def hardware(name: str | None, as_json: bool) -> None:
    """Shows this machine, or a known device by NAME."""
    from autopeft.profiling.hardware import hardware_names, load_hardware
    from autopeft.report.tables import hardware_table

    _show(load_hardware(name or "auto"), as_json, hardware_table)
    if name is None and not as_json:
        _print("\nKnown by name: " + ", ".join(sorted(hardware_names())))


@cli.command()
@click.argument("source")
@click.option("--model", help="Counts tokens with this model's tokenizer and chat template.")
@click.option("--column", "columns", type=Columns(), multiple=True, help=_COLUMN_HELP)
@_json_option
def data(source: str, model: str | None, columns: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """Profiles a data set: format, lengths, findings."""
    from autopeft.profiling.dataset import profile_dataset
    from autopeft.profiling.model import load_model
    from autopeft.report.tables import data_table

    spec = load_model(model) if model else None
    _show(profile_dataset(source, model=spec, columns=dict(columns) or None), as_json, data_table)


@cli.command()
@click.argument("name", required=False)
@_json_option
def model(name: str | None, as_json: bool) -> None:
    """Shows a model's shape; without NAME, what is known."""
    from autopeft.profiling.model import load_model, model_names
    from autopeft.report.tables import model_table

    if name is None:
        _show(list(model_names()), as_json, "\n".join)
    else:
        _show(load_model(name), as_json, model_table)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    # --debug may stand anywhere, since one thinks of it last.
    rest = [argument for argument in arguments if argument != "--debug"]
    try:
        cli.main(args=["--debug", *rest] if debug else rest, prog_name="autopeft", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        return _report_error(error, debug)
    return EXIT_DONE


def _report_error(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if isinstance(error, AutoPeftError):
        click.echo(f"autopeft: {error}", err=True)
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"autopeft: {where}{error.strerror}", err=True)
        return EXIT_ERROR
    again = "" if debug else "; repeat the command with --debug to see where, and please report it"
    click.echo(f"autopeft: this is a bug in autopeft ({type(error).__name__}: {error}){again}", err=True)
    return EXIT_ERROR


def _show(record: Any, as_json: bool, table: Callable[[Any], Any]) -> None:
    if as_json:
        from autopeft.specs import to_json

        click.echo(to_json(record), nl=False)
    else:
        _print(table(record))


def _print(table: Any) -> None:
    """Prints a table; in a pipe, 80 columns wide and without the spaces that fill them."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _terminate_like_interrupt() -> None:
    """Lets SIGTERM stop a run as Ctrl-C does; signals belong to the main thread alone.

    The handler raises by itself: a shell starts background jobs with SIGINT ignored, and passing it on would do nothing.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


class _Progress(logging.Handler):
    """Prints what happens to stderr: lines everywhere, and a moving step count on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(logging.INFO)
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("starting") if self._console.is_terminal else None
        self._logger = logging.getLogger("autopeft")
        self._level = self._logger.level

    def __enter__(self) -> _Progress:
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        if self._status is not None:
            self._status.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one message of the package's log."""
        self._line(record.getMessage())

    def event(self, event: Any) -> None:
        """Prints one event."""
        self._line(event.message)

    def step(self, name: str, step: int, steps: int) -> None:
        """Shows how far one training is."""
        if self._status is not None:
            self._status.update(f"{name}: step {step} of {steps}")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
