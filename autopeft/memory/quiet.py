"""Keeps the libraries' own remarks out of a trace: they speak of a training that does not take place."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences warnings and log lines up to ERROR within the block; what fails there raises, and is told by that.

    Logging is switched as a whole: transformers resets the levels of its loggers when a trace first imports it.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
