"""Shows in the terminal where a step's memory goes, what would make it fit, and what the batches of an epoch need."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autopeft.specs import Combination, EpochPeaks, Explanation, MemoryEstimate
from autopeft.units import format_gib

BAR_WIDTH = 25

_BATCH_NAMES = {
    "0.5": "half of the batches",
    "0.9": "9 of 10 batches",
    "0.99": "99 of 100 batches",
    "largest": "the largest batch",
}


def breakdown_chart(estimate: MemoryEstimate, available_bytes: int | None = None) -> RenderableType:
    """Returns bars: components at the peak, the peak of each phase, and how the peak becomes what is required.

    Args:
        estimate: of one step.
        available_bytes: what is free on the device, or may be used; None leaves the comparison out.
    """
    peak = estimate.peak_memory_bytes
    components = sorted(estimate.components.items(), key=lambda part: -part[1])
    reached = max(estimate.phases, key=lambda name: estimate.phases[name])
    where = f" ({estimate.peak_operation})" if estimate.peak_operation else ""
    return Group(
        _bold(f"At the peak, in the {reached} phase{where}"),
        _bars([(_plain(name), 0, size, f"{size / peak:.0%}") for name, size in components if size], peak),
        Text(),
        _bold("The peak of each phase"),
        _bars(
            [(_plain(name), 0, size, "sets the peak" * (name == reached)) for name, size in estimate.phases.items()],
            peak,
        ),
        Text(),
        _bold("From the peak to what is required"),
        _required_bars(estimate, available_bytes),
    )


def explain_text(explanation: Explanation) -> RenderableType:
    """Returns an explanation: what dominates, why quantizing does not help, the levers, and which fit together."""
    parts: list[RenderableType] = [_bold("What sets the peak"), _bullets(explanation.dominant)]
    if explanation.quantization:
        parts += [Text(), _bold("Why quantizing does not help here"), _bullets(explanation.quantization)]
    title = "What would save most, the cheapest first" if explanation.fits else "What would help, the cheapest first"
    parts += [Text(), _bold(title)]
    parts.append(_levers(explanation) if explanation.levers else Text("  Nothing saves 1 % or more."))
    return Group(*parts, Text(), Text(_conclusion(explanation), style="bold"))


def epoch_peaks_table(peaks: EpochPeaks) -> RenderableType:
    """Returns what the batches of an epoch need, and how many exceed the limit."""
    table = _table(("", "left"), ("padded to", "right"), ("peak", "right"), ("required", "right"))
    for name, length in peaks.padded_lengths.items():
        sizes = (peaks.peak_memory_bytes[name], peaks.required_bytes[name])
        table.add_row(_BATCH_NAMES[name], f"{length:,} tokens", *map(format_gib, sizes))
    sampler = peaks.sampler.replace("_", " ")
    lines: list[RenderableType] = [_bold(f"The {peaks.batches:,} batches of an epoch ({sampler})"), _indented(table)]
    if peaks.available_bytes is not None:
        lines.append(_indented(Text(_over_limit(peaks))))
    return Group(*lines, _bullets(peaks.assumptions))


def _required_bars(estimate: MemoryEstimate, available_bytes: int | None) -> RenderableType:
    peak, required = estimate.peak_memory_bytes, estimate.required_bytes
    held = required - estimate.context
    rows = [
        ("allocated", 0, peak, ""),
        ("held by allocator", peak, held, "no tensor in it"),
        ("context", held, required, "driver, libraries"),
        ("required", 0, required, ""),
    ]
    if available_bytes is None:
        return _bars(rows, required)
    spare = available_bytes - required
    verdict = f"{format_gib(spare)} to spare" if spare >= 0 else f"{format_gib(-spare)} too little"
    rows.append(("available", 0, available_bytes, verdict))
    return _bars(rows, max(required, min(available_bytes, 2 * required)))


def _bars(rows: Iterable[tuple[str, int, int, str]], scale: int) -> RenderableType:
    """Returns one bar a row, from its first to its second figure, with the difference and a note."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=18)
    grid.add_column(width=BAR_WIDTH)
    grid.add_column(width=10, justify="right")
    grid.add_column(overflow="fold")
    for name, begin, end, note in rows:
        bar = Bar(scale, begin, min(end, scale), width=BAR_WIDTH, color="cyan")
        grid.add_row(Text(name), bar, Text(format_gib(end - begin)), Text(note))
    return _indented(grid)


def _levers(explanation: Explanation) -> RenderableType:
    table = _table(("change", "left"), ("saves", "right"), ("time", "right"), ("quality risk", "left"), ("", "left"))
    for lever in explanation.levers:
        change = Group(Text(lever.change), _indented(Text(lever.cost, style="dim")))
        saved = Text(format_gib(lever.saved_bytes))
        fits = "fits" if lever.fits and not explanation.fits else ""
        table.add_row(change, saved, _ratio(lever.seconds_ratio), lever.quality_risk, fits)
    return _indented(table)


def _conclusion(explanation: Explanation) -> str:
    required, available = format_gib(explanation.required_bytes), format_gib(explanation.available_bytes)
    if explanation.fits:
        return f"It fits as it is: {required} of {available}."
    short = f"It needs {required} and {available} are available"
    if explanation.combination is None:
        return f"{short}; no change of this configuration helps."
    return f"{short}; {_together(explanation.combination)}."


def _together(combination: Combination) -> str:
    changes, required = "; ".join(combination.levers), format_gib(combination.required_bytes)
    if not combination.fits:
        return f"even all of these together take {required}: {changes}"
    time = "" if combination.seconds_ratio is None else f", {_ratio(combination.seconds_ratio)} the time"
    count = len(combination.levers)
    what = "this change alone fits" if count == 1 else f"these {count} together fit"
    return f"{what} ({required}{time}): {changes}"


def _over_limit(peaks: EpochPeaks) -> str:
    share, available = peaks.share_over_limit or 0.0, format_gib(peaks.available_bytes or 0)
    if not share:
        return f"No batch needs more than the {available} that are available."
    longest = peaks.longest_fitting_length
    fitting = "no batch fits" if longest is None else f"batches fit up to {longest:,} tokens a row"
    chance = f"an epoch meets one with probability {peaks.probability_over_limit or 0.0:.0%}"
    return f"{share:.2%} of the batches need more than the {available} that are available; {chance}; {fitting}."


def _ratio(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"{ratio:.2f} x"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    return table


def _bullets(lines: Iterable[str]) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row("-", Text(line))
    return _indented(grid)


def _indented(part: RenderableType) -> Padding:
    return Padding(part, (0, 0, 0, 2))


def _bold(text: str) -> Text:
    return Text(text, style="bold")
