"""Draws where a step's memory goes, phase by phase, as SVG or PNG.

Colours are those of Okabe and Ito (recalled, unverified: "Color Universal Design", 2008), told apart with any kind of
colour vision; neighbours in a bar also differ in lightness, and every part that is wide enough carries its size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import InvalidInputError, MissingExtraError
from autopeft.specs import MemoryEstimate
from autopeft.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".svg", ".png")
LABELLED_SHARE = 0.055
"""Parts narrower than this share of the axis have no room for their size."""

_COLOURS = {
    "base_weights": "#0072B2",
    "adapter_weights": "#56B4E9",
    "optimizer_states": "#F0E442",
    "gradients": "#009E73",
    "activations": "#E69F00",
    "logits": "#D55E00",
    "temporaries": "#CC79A7",
    "held by allocator": "#BBBBBB",
    "context": "#666666",
}
"""In the order of the stack: what stays through the whole training comes first."""

_OTHER = "#000000"
_DARK = frozenset({"#0072B2", "#009E73", "#D55E00", "#666666", _OTHER})

Bar = dict[str, int]


def plot_memory(
    estimate: MemoryEstimate, path: Path, *, available_bytes: int | None = None, title: str = "Memory of one step"
) -> None:
    """Writes a stacked bar of each phase, and one of all that is required, beside the device's limit.

    Args:
        estimate: of one step; a phase whose components are not known is one part.
        path: ends in .svg or .png.
        available_bytes: drawn as a line, or told where it lies far outside; None draws none.
        title: above the plot.

    Raises:
        InvalidInputError: for another ending, or if the file cannot be written.
        MissingExtraError: if matplotlib is not installed.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InvalidInputError(f"a plot is written as {' or '.join(ENDINGS)}, but {path} ends in {path.suffix!r}")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing a plot") from error
    bars = phase_bars(estimate)
    # Text stays text, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "autopeft", "font.size": 10}):
        figure = Figure(figsize=(9, 1.5 + 0.55 * len(bars)), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, bars, available_bytes)
        axes.set_yticks(range(len(bars)), labels=[_label(name, estimate) for name in bars])
        axes.set_title(title, loc="left", fontweight="bold")
        figure.legend(loc="outside lower left", ncols=4, frameon=False)
        try:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
        except OSError as error:
            raise InvalidInputError(f"cannot write the plot {path}: {error.strerror}") from error


def phase_bars(estimate: MemoryEstimate) -> dict[str, Bar]:
    """Returns the parts of each bar, in bytes: every phase, then what is required."""
    known = estimate.phase_components
    bars = {name: known.get(name, {"not broken down": size}) for name, size in estimate.phases.items()}
    bars[_peak_phase(estimate)] = estimate.components
    bars["required"] = {
        **estimate.components,
        "held by allocator": estimate.required_bytes - estimate.peak_memory_bytes - estimate.context,
        "context": estimate.context,
    }
    return bars


def _draw(axes: Axes, bars: dict[str, Bar], available_bytes: int | None) -> None:
    widest = max(sum(bar.values()) for bar in bars.values())
    limit_shown = available_bytes is not None and available_bytes <= 2 * widest
    axis = 1.12 * max(widest, available_bytes or 0 if limit_shown else 0) / GIB
    labelled: set[str] = set()
    for place, bar in enumerate(bars.values()):
        _draw_bar(axes, place, bar, axis, labelled)
    axes.set_xlim(0, axis)
    axes.invert_yaxis()
    axes.set_xlabel(
        "GiB" if available_bytes is None or limit_shown else f"GiB, of {available_bytes / GIB:.1f} available"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    if available_bytes is not None and limit_shown:
        size = available_bytes / GIB
        axes.axvline(size, color="#000000", linestyle="--", linewidth=1.4, label=f"available: {size:.1f} GiB")


def _draw_bar(axes: Axes, place: int, bar: Bar, axis: float, labelled: set[str]) -> None:
    """Draws one stack; ``labelled`` collects what the legend already names."""
    left = 0.0
    for part in sorted(bar, key=_place):
        size = bar[part] / GIB
        if size <= 0:
            continue
        colour = _COLOURS.get(part, _OTHER)
        label = "_" if part in labelled else part.replace("_", " ")
        labelled.add(part)
        axes.barh(place, size, left=left, height=0.68, color=colour, edgecolor="white", linewidth=0.8, label=label)
        if size >= LABELLED_SHARE * axis:
            ink = "white" if colour in _DARK else "black"
            axes.text(left + size / 2, place, f"{size:.1f}", ha="center", va="center", color=ink, fontsize=9)
        left += size
    axes.text(left + 0.008 * axis, place, f"{left:.1f}", va="center", fontweight="bold")


def _label(name: str, estimate: MemoryEstimate) -> str:
    return f"{name} (peak)" if name == _peak_phase(estimate) else name


def _peak_phase(estimate: MemoryEstimate) -> str:
    return max(estimate.phases, key=lambda name: estimate.phases[name])


def _place(part: str) -> int:
    """Returns the place of a part in its stack; parts without a colour of their own come last."""
    order = list(_COLOURS)
    return order.index(part) if part in order else len(order)
