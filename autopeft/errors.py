"""The exception tree and the exit codes that the command line gives for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_NOTHING_FITS = 3
EXIT_INTERRUPTED = 130


class AutoPeftError(Exception):
    """Base of every error that a user can cause and mend; its text is one clear sentence."""

    exit_code = EXIT_ERROR


class InvalidInputError(AutoPeftError, ValueError):
    """An option, a file or a field holds something that is not allowed; the text says what is."""


class UnknownNameError(InvalidInputError):
    """A name is not in the registry or catalogue that it was looked up in."""

    def __init__(self, kind: str, name: str, known: Iterable[str], listed_by: str | None = None) -> None:
        """Makes the sentence.

        Args:
            kind: what the name should be of, as a user calls it.
            name: the unknown one.
            known: all known ones.
            listed_by: the command that lists them, where they are too many for a sentence.
        """
        names = sorted(known)
        close = _close_names(name, names)
        hint = f". Did you mean {' or '.join(map(repr, close))}?" if close else ""
        listing = f"known: {', '.join(names)}" if listed_by is None else f"`{listed_by}` lists the known ones"
        super().__init__(f"unknown {kind} {name!r}; {listing}{hint}")


def _close_names(name: str, names: list[str]) -> list[str]:
    """Returns up to three names that a person may have meant: longer forms of the name first, then similar ones."""
    written = "-".join(name.lower().split())
    longer = [each for each in names if written and each.startswith(f"{written}-")]
    similar = [each for each in difflib.get_close_matches(written, names, n=3) if each not in longer]
    return [*longer, *similar][:3]


class DataError(InvalidInputError):
    """The data set cannot be read or understood; the text names the file and the line."""


class ModelError(InvalidInputError):
    """The model folder, file or hub id cannot be read or is not supported."""


class HardwareError(InvalidInputError):
    """The hardware cannot be probed or its description is wrong."""


class MissingExtraError(AutoPeftError, ImportError):
    """A command needs packages that the light core install does not bring."""

    def __init__(self, what: str, extra: str = "train") -> None:
        super().__init__(f"{what} needs the training stack; install it with: pip install 'autopeft[{extra}]'")


class NothingFitsError(AutoPeftError):
    """No candidate fits the memory budget; the text says the smallest estimate and what would help."""

    exit_code = EXIT_NOTHING_FITS


class RunFolderError(AutoPeftError):
    """The run folder holds another run, cannot be written, or does not match what is asked."""


class WorkerError(AutoPeftError):
    """A training worker could not be started or broke its protocol; the text names its log file."""


class InterruptedRunError(AutoPeftError):
    """The user stopped the run; everything finished is on disk and `--resume` goes on."""

    exit_code = EXIT_INTERRUPTED
