"""What was predicted and what was measured on this machine, one JSON line an observation, kept between runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec

from autopeft.errors import AutoPeftError
from autopeft.resources import cache_folder
from autopeft.specs import Candidate, MemoryEstimate, OptionValue

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

MeasuredKind = Literal["max_allocated", "max_reserved", "resident"]
KINDS: tuple[MeasuredKind, ...] = get_args(MeasuredKind)

FILE_NAME = "calibration.jsonl"

VERSION_NAMES = ("autopeft", "torch", "transformers", "peft", "trl", "bitsandbytes")
"""Packages whose versions decide what a step needs, or (autopeft itself) what was predicted for it."""

TRAIT_NAMES = ("method", "quantization", "dtype", "activation_checkpointing", "trainer", "attention")
"""Settings of a candidate that decide which formulas its estimate is made of; sizes are not among them."""

LONGEST_LINE_BYTES = 4096
"""A short line goes to the file in one write, so that a kill or a full disk leaves at most one broken line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One prediction beside what was measured, like with like.

    Attributes:
        device: name as the driver reports it.
        kind: what was measured. Its counterpart is the estimate's ``peak_memory_bytes`` for "max_allocated",
            ``peak_reserved_bytes`` for "max_reserved", ``required_bytes`` for "resident" (memory of the process).
        model: its id, for people.
        model_type: its family: "llama".
        versions: package -> version, of VERSION_NAMES.
        traits: the candidate's settings of TRAIT_NAMES.
        batch_size: rows of one forward.
        sequence_length: tokens of a row that the prediction is for.
        data: content hash of the data that was trained on; None for full rows, which nothing can be larger than.
        predicted_by: how the estimate was found before any calibration.
        predicted_bytes: above zero.
        measured_bytes: None where the training ran out of memory.
        oom_at_bytes: the limit that it did not fit in, a one-sided observation; None where it was measured.
        predicted_seconds: of one optimizer step; None if the device's speed is unknown.
        measured_seconds: of one optimizer step after the first; None if there was none.
        source: a trial of a run, or `autopeft calibrate`.
    """

    device: str
    kind: MeasuredKind
    model: str
    model_type: str
    versions: dict[str, str]
    traits: dict[str, OptionValue]
    batch_size: int
    sequence_length: int
    data: str | None
    predicted_by: Literal["closed_form", "traced"]
    predicted_bytes: int
    measured_bytes: int | None
    oom_at_bytes: int | None
    predicted_seconds: float | None
    measured_seconds: float | None
    source: Literal["trial", "calibrate"]

    def __post_init__(self) -> None:
        if (self.measured_bytes is None) == (self.oom_at_bytes is None):
            raise ValueError("an observation has either measured_bytes or oom_at_bytes")
        if self.predicted_bytes <= 0 or self.found_bytes <= 0:
            raise ValueError("an observation's bytes must be above zero")

    @property
    def found_bytes(self) -> int:
        """What was measured, or the limit that was too small."""
        found = self.oom_at_bytes if self.measured_bytes is None else self.measured_bytes
        assert found is not None, "checked when it was made"
        return found


class CalibrationStore:
    """The observations of one machine; safe for several writers at a time.

    Attributes:
        path: a file of JSON lines, which need not exist.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Names the store's file; None means the one in the user's cache folder."""
        self.path = path or cache_folder() / FILE_NAME

    def read(self) -> tuple[Observation, ...]:
        """Returns the observations, oldest first; a damaged line is passed over with a warning in the log.

        Raises:
            AutoPeftError: if the file is there and cannot be read.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise AutoPeftError(f"cannot read the calibration store {self.path}: {error.strerror}") from error
        numbered = enumerate(lines, start=1)
        parsed = (self._parse(line, number) for number, line in numbered if line)
        return tuple(found for found in parsed if found is not None)

    def append(self, observation: Observation) -> None:
        """Adds one observation, which is on disk when this returns.

        Raises:
            AutoPeftError: if the file cannot be written.
        """
        line = msgspec.json.encode(observation) + b"\n"
        assert len(line) < LONGEST_LINE_BYTES, "names and versions are short"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _append(self.path, line)
        except OSError as error:
            raise AutoPeftError(f"cannot write the calibration store {self.path}: {error.strerror}") from error

    def _parse(self, line: bytes, number: int) -> Observation | None:
        try:
            return msgspec.json.decode(line, type=Observation)
        except msgspec.MsgspecError as error:
            logger.warning("%s, line %d is no observation and is passed over: %s", self.path, number, error)
            return None


def traits_of(candidate: Candidate) -> dict[str, OptionValue]:
    """Returns what decides which formulas a candidate's estimate is made of."""
    return {name: getattr(candidate, name) for name in TRAIT_NAMES}


def versions_of(installed: Mapping[str, str]) -> dict[str, str]:
    """Returns the versions that an observation holds for, of those installed."""
    return {name: installed[name] for name in VERSION_NAMES if name in installed}


def predicted_bytes(estimate: MemoryEstimate, kind: MeasuredKind) -> int:
    """Returns the figure of an estimate that a kind of measurement is compared with."""
    return {
        "max_allocated": estimate.peak_memory_bytes,
        "max_reserved": estimate.peak_reserved_bytes,
        "resident": estimate.required_bytes,
    }[kind]


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if sys.platform != "win32":
            # Another writer must not come between the look at the last byte and the write. Closing unlocks.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _ends_within_a_line(descriptor):
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError(28, "no space left on the disk")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ends_within_a_line(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return False
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) != b"\n"
