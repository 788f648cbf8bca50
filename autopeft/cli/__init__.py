"""The command line: parses, calls one function of the API, prints, returns an exit code.

stdout is the result (a table, or JSON with ``--json``); stderr is progress and errors.
Exit codes: 0 done, 1 error, 2 usage, 3 nothing fits, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback

import click

from autopeft.cli import _calibrate as _calibrate
from autopeft.cli import _estimate as _estimate
from autopeft.cli import _explain as _explain
from autopeft.cli import _handover as _handover
from autopeft.cli._commands import cli
from autopeft.errors import EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED, AutoPeftError

__all__ = ["cli", "main"]


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
    except SystemExit:
        # Only click raises it, with code 1, when the reader has gone (`| head`): that reader has what it wanted.
        return EXIT_DONE
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
