"""Bytes and durations: parsed where they enter, printed where a person reads."""

from __future__ import annotations

import re

from autopeft.errors import InvalidInputError

KIB = 2**10
MIB = 2**20
GIB = 2**30

_BYTES = {
    "": 1,
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_bytes(text: str) -> int:
    """Returns the bytes that a text such as ``16GiB``, ``24GB`` or ``8589934592`` means (GiB = 2^30, GB = 10^9).

    Raises:
        InvalidInputError: if the text is no size, or the size is below 1 MiB, where a unit was forgotten.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in _BYTES:
        raise InvalidInputError(
            f"{text!r} is no memory size; write a number and a unit, for example 16GiB, 24GB or 512MiB"
        )
    size = int(float(match[1]) * _BYTES[match[2].lower()])
    if size <= 0:
        raise InvalidInputError(f"a memory size must be positive, not {text!r}")
    if size < MIB:
        raise InvalidInputError(f"the memory size {text!r} is only {size} bytes; did you mean {match[1]}GiB?")
    return size


def parse_duration(text: str) -> float:
    """Returns the seconds that a text such as ``30m``, ``1h30m``, ``45s`` or ``90`` (seconds) means.

    Raises:
        InvalidInputError: if the text is no duration, or the duration is not positive.
    """
    stripped = text.strip().lower()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", stripped):
        seconds = float(stripped)
    elif re.fullmatch(r"([0-9]+(\.[0-9]+)?[smhd])+", stripped):
        parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([smhd])", stripped)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    else:
        raise InvalidInputError(f"{text!r} is no duration; write for example 45s, 30m, 1h30m or 2d")
    if seconds <= 0:
        raise InvalidInputError(f"a duration must be positive, not {text!r}")
    return seconds


def format_gib(size_bytes: int) -> str:
    """Returns a size for people: ``1.25 GiB``, or ``12 MiB`` below a tenth of a GiB."""
    if abs(size_bytes) < GIB // 10:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.2f} GiB"


def format_duration(seconds: float) -> str:
    """Returns a duration for people: ``42s``, ``8m 05s``, ``3h 20m``, ``2d 04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def format_amount(amount: float) -> str:
    """Returns an amount of money or energy for people: two digits below 1, else two decimals."""
    return f"{amount:.2g}" if amount < 1 else f"{amount:,.2f}"


def format_count(count: float) -> str:
    """Returns a count for people: ``950``, ``12.3K``, ``135M``, ``8.03B``."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun: ``1 trial``, ``3 trials``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
