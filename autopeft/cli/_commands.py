"""The commands: each parses, calls one function of the API and prints what it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import autopeft
from autopeft.cli._parameters import (
    COLUMN_HELP,
    Columns,
    Duration,
    bad_row_option,
    baseline_options,
    input_options,
    json_option,
)
from autopeft.cli._terminal import Progress, print_table, show, terminate_like_interrupt

_EXAMPLES = """\b
Examples:
  autopeft suggest --model llama-3.1-8b --data train.jsonl --hardware rtx-4090
  autopeft run --model ./my-model --data train.jsonl --time-budget 2h

"""
_EPILOG = "Exit codes: 0 done, 1 error, 2 usage, 3 nothing fits the memory or the limits, 130 interrupted."


@click.group(epilog=_EXAMPLES + _EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(autopeft.__version__, prog_name="autopeft")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Chooses the fine-tuning method, rank and learning rate for your model, data and GPU."""


@cli.command(epilog=_EPILOG)
@input_options(required=True)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the plan here, for `autopeft run`."
)
@click.option(
    "--trace", default=0, metavar="N", type=click.IntRange(min=0), help="Trace the memory of the best N candidates."
)
@click.option(
    "--environment",
    type=click.Path(),
    help="With --trace: use the libraries of this virtual environment (folder or python).",
)
@click.option(
    "--calibration/--no-calibration", default=True, help="Correct by what was measured on this machine. Default: yes."
)
@baseline_options
@json_option
def suggest(output: Path | None, as_json: bool, columns: tuple[tuple[str, str], ...], **inputs: Any) -> None:
    """Recommends methods and settings in seconds.

    Needs neither a GPU nor weights nor torch, and writes no file without -o.
    """
    from autopeft import api
    from autopeft.recommend.runnable import why_no_run
    from autopeft.specs import to_json

    terminate_like_interrupt()
    with Progress() as progress:
        plan = api.suggest(columns=dict(columns), on_step=progress.step, **inputs)
    if output is not None:
        api.write_plan(plan, output)
        following = "" if why_no_run(plan.model, plan.data) else f"; next: autopeft run {output}"
        click.echo(f"wrote {output}{following}", err=True)
    if as_json:
        click.echo(to_json(plan.to_dict()), nl=False)
    else:
        from autopeft.report.tables import suggest_table

        print_table(suggest_table(plan))


@cli.command(epilog=_EPILOG)
@click.argument("plan", required=False, type=click.Path(dir_okay=False))
@input_options(required=False)
@click.option("--trials", type=click.IntRange(min=1), help="Search trials at most.")
@click.option("--time-budget", type=Duration(), help="Time for everything, e.g. 30m, 8h.")
@click.option("-o", "--output", type=click.Path(file_okay=False), help="Run folder. Default: runs/<time>.")
@click.option("--resume", is_flag=True, help="Go on with the run in --output; needs nothing else.")
@click.option("--dry-run", is_flag=True, help="Simulate the trainings, to see what the search would do.")
@click.option("--allow-shorter", is_flag=True, help="Cut training rows further where memory runs out in the end.")
@json_option
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
    terminate_like_interrupt()
    with Progress() as progress:
        report = api.run(plan, columns=dict(columns), on_event=progress.event, on_step=progress.step, **options)
    if as_json:
        click.echo(to_json(report.verdict.to_dict()), nl=False)
    else:
        from autopeft.report.tables import verdict_table

        print_table(verdict_table(report.verdict))
        click.echo(f"report   {report.html}\nadapter  {report.adapter_folder}")


@cli.command()
@json_option
def methods(as_json: bool) -> None:
    """Lists the fine-tuning methods."""
    from autopeft import api
    from autopeft.methods import registry
    from autopeft.report.tables import methods_table
    from autopeft.spaces import all_spaces

    show(api.describe_methods(), as_json, lambda _: methods_table(registry().values(), all_spaces()))


@cli.command()
@click.argument("name", required=False)
@json_option
def hardware(name: str | None, as_json: bool) -> None:
    """Shows this machine, or known devices by NAME: rtx-4090, or "2x rtx-4090 + rtx-3090"."""
    from autopeft.profiling.hardware import hardware_names, load_hardware
    from autopeft.report.tables import hardware_table

    show(load_hardware("auto" if name is None else name), as_json, hardware_table)
    if name is None and not as_json:
        print_table("\nKnown by name: " + ", ".join(sorted(hardware_names())))


@cli.command()
@click.argument("source")
@click.option("--model", help="Counts tokens with this model's tokenizer and chat template.")
@click.option("--column", "columns", type=Columns(), multiple=True, help=COLUMN_HELP)
@bad_row_option
@click.option("--held-out", type=click.Path(), help="File or folder of held-out rows: looks for leakage into it.")
@click.option("--sample", is_flag=True, help="Read a sample only, as suggest does. Default: all rows.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one a core.")
@click.option("--seed", default=0, show_default=True, help="Of every sample.")
@baseline_options
@json_option
def data(as_json: bool, sample: bool, columns: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Profiles a data set: format, lengths, findings; with --baseline, what the untouched model does on it.

    A first answer from a sample goes to stderr at once, with the progress behind it.
    """
    from autopeft import api
    from autopeft.report.tables import data_table

    terminate_like_interrupt()
    with Progress() as progress:
        profile = api.describe_data(
            columns=dict(columns),
            coverage="sample" if sample else "all",
            on_first_look=progress.line,
            on_progress=progress.bar,
            on_step=progress.step,
            **options,
        )
    show(profile, as_json, data_table)


@cli.command()
@click.argument("name", required=False)
@json_option
def model(name: str | None, as_json: bool) -> None:
    """Shows a model's shape; without NAME, what is known."""
    from autopeft.profiling.model import load_model, model_names
    from autopeft.report.tables import model_table

    if name is None:
        show(list(model_names()), as_json, "\n".join)
    else:
        show(load_model(name), as_json, model_table)
