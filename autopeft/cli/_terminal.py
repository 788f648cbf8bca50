"""What the commands print: results on stdout, progress on stderr; and how they are stopped."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

import click


def show(record: Any, as_json: bool, table: Callable[[Any], Any]) -> None:
    if as_json:
        from autopeft.specs import to_json

        click.echo(to_json(record), nl=False)
    else:
        print_table(table(record))


def print_table(table: Any) -> None:
    """Prints a table; in a pipe, 80 columns wide and without the spaces that fill them."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def terminate_like_interrupt() -> None:
    """Lets SIGTERM stop a run as Ctrl-C does; signals belong to the main thread alone.

    The handler raises by itself: shells start background jobs with SIGINT ignored, and passing it on would do nothing.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


class Progress(logging.Handler):
    """Prints what happens to stderr: lines everywhere, and a moving step count on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        super().__init__(logging.INFO)
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("starting") if self._console.is_terminal else None
        self._logger = logging.getLogger("autopeft")
        self._level = self._logger.level

    def __enter__(self) -> Progress:
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
        self.line(record.getMessage())

    def event(self, event: Any) -> None:
        """Prints one event."""
        self.line(event.message)

    def step(self, name: str, step: int, steps: int) -> None:
        """Shows how far one training is."""
        if self._status is not None:
            self._status.update(f"{name}: step {step} of {steps}")

    def bar(self, done: int, total: int) -> None:
        """Shows how many bytes of so many are read."""
        if self._status is None:
            return
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        shown = Table.grid(padding=(0, 1))
        megabytes = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        shown.add_row("reading all rows", ProgressBar(total=total, completed=done, width=40), megabytes)
        self._status.update(shown)

    def line(self, text: str) -> None:
        """Prints one line."""
        self._console.print(text, markup=False, soft_wrap=True)
