"""The block that gpu_check.py prints: predictions beside measurements, as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.engine.stack import stack_versions
from autopeft.specs import HardwareProfile, MemoryEstimate
from autopeft.units import GIB

COLUMNS = (
    "GiB",
    "closed form",
    "trace",
    "measured peak",
    "reserved: predicted",
    "measured",
    "device: required",
    "used",
    "s/step: predicted",
    "measured",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one configuration needed.

    Attributes:
        peak_bytes: maximum allocated in the last step, when optimizer states exist.
        reserved_bytes: maximum held by the caching allocator.
        device_bytes: what the driver counts as used since before torch touched the device.
        seconds_per_step: of the last step.
        details: what the method reports.
    """

    peak_bytes: int
    reserved_bytes: int
    device_bytes: int
    seconds_per_step: float
    details: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration: both predictions and the measurement, or why there is none."""

    name: str
    closed_form: MemoryEstimate
    traced: MemoryEstimate | None
    measured: Measured | None
    problem: str | None = None


def format_block(hardware: HardwareProfile, setting: str, rows: list[Row], checks: Mapping[str, str]) -> str:
    """Returns the Markdown block to paste into an issue; ``setting`` says what was trained."""
    device = hardware.device
    versions = ", ".join(f"{name} {version}" for name, version in stack_versions().items())
    capability = ".".join(map(str, device.compute_capability or ())) or "unknown"
    memory = f"{gib(device.free_memory_bytes)} free of {gib(device.total_memory_bytes)} GiB"
    lines = [
        "### autopeft gpu-check",
        "",
        f"- device: {device.name}, capability {capability}, {memory}",
        *(f"- note: {note}" for note in hardware.notes),
        f"- system: {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        f"- versions: {versions}",
        f"- model: {setting}",
        "",
        _line(COLUMNS),
        _line(["---"] * len(COLUMNS)),
        *map(format_row, rows),
        "",
        *(f"**{name}**: {text}\n" for name, text in checks.items()),
    ]
    return "\n".join(lines)


def format_row(row: Row) -> str:
    """Returns one line of the table; errors are relative to the measurement."""
    form, traced, found = row.closed_form, row.traced, row.measured
    if found is None:
        predicted = gib(traced.peak_memory_bytes) if traced else "-"
        cells = [row.name, gib(form.peak_memory_bytes), predicted, row.problem or "not measured"]
        return _line(cells + ["-"] * (len(COLUMNS) - len(cells)))
    assert traced is not None, "what is measured has been traced before"
    cells = [
        row.name,
        _with_error(form.peak_memory_bytes, found.peak_bytes),
        _with_error(traced.peak_memory_bytes, found.peak_bytes),
        gib(found.peak_bytes),
        _with_error(traced.peak_reserved_bytes, found.reserved_bytes),
        gib(found.reserved_bytes),
        _with_error(traced.required_bytes, found.device_bytes),
        gib(found.device_bytes),
        "-" if form.seconds_per_step is None else f"{form.seconds_per_step:.2f}",
        f"{found.seconds_per_step:.2f}",
    ]
    return _line(cells)


def gib(size_bytes: int) -> str:
    """Returns a size in GiB to two places, without the unit."""
    return f"{size_bytes / GIB:.2f}"


def one_line(error: Exception) -> str:
    """Returns an error as text that fits a cell of a table."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".replace("|", "/")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _with_error(predicted: int, measured: int) -> str:
    return f"{gib(predicted)} ({predicted / measured - 1:+.1%})"
