"""The report's plots as plain Plotly data: each function returns a figure, or None where there is nothing to draw.

Colours are those of Okabe and Ito (recalled, unverified: "Color Universal Design", 2008), told apart with any kind of
colour vision; a marker's shape and outline repeat what its colour says.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from autopeft.report.content import Figure
from autopeft.report.formats import candidate_label, display_name, format_loss, format_rate
from autopeft.report.record import (
    RunRecord,
    available_bytes,
    comparable_prediction_bytes,
    is_finite,
    with_quantization_error,
    with_rank_pattern,
)
from autopeft.specs import Comparison, TrialResult
from autopeft.units import GIB

Trace = dict[str, Any]
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star", "hexagon", "cross", "hourglass")


def losses_figure(record: RunRecord) -> Figure | None:
    """Returns the test losses of winner and baselines, each baseline with its paired interval to the winner."""
    verdict = record.verdict
    if verdict is None or not verdict.losses:
        return None
    names = sorted(verdict.losses, key=lambda name: verdict.losses[name], reverse=True)
    to_winner = {entry.right: entry for entry in verdict.comparisons if entry.left == "winner"}
    losses = [verdict.losses[name] for name in names]
    bars = [_loss_bar(to_winner.get(name), verdict.losses) for name in names]
    trace = _dots(losses, [display_name(name) for name in names], bars)
    trace |= {"text": [format_loss(loss) for loss in losses], "textposition": "top center", "mode": "markers+text"}
    trace["hovertemplate"] = "%{y}: %{x:.4f}<extra></extra>"
    layout = _layout("test loss (nats per token)", "", height=110 + 70 * len(names))
    layout["yaxis"] |= {"type": "category", "range": [-0.5, len(names) - 0.3]}
    description = (
        "Loss on the test split, lower is better; the bar of a baseline is the 95 % interval of its paired difference "
        "from the winner."
    )
    return _figure(description, [trace], layout)


def ranking_figure(record: RunRecord) -> Figure | None:
    """Returns each method's paired difference to the first of the ranking, with intervals."""
    ranking = record.verdict.ranking if record.verdict else ()
    compared = [entry for entry in ranking if entry.against_best is not None]
    if not compared:
        return None
    shown = [ranking[0], *(entry for entry in compared if entry is not ranking[0])][::-1]
    differences = [entry.against_best.difference if entry.against_best else 0.0 for entry in shown]
    trace = _dots(
        differences, [entry.method for entry in shown], [_difference_bar(entry.against_best) for entry in shown]
    )
    styles = _styles(record)
    trace["marker"] |= {
        "color": [styles[entry.method][0] for entry in shown],
        "symbol": [styles[entry.method][1] for entry in shown],
    }
    trace["hovertemplate"] = "%{y}: %{x:+.4f}<extra></extra>"
    layout = _layout("loss minus the first's (nats per token)", "", height=110 + 44 * len(shown))
    layout["yaxis"] |= {"type": "category"}
    layout["xaxis"] |= {"zeroline": True}
    description = (
        "Each method against the first of the ranking, on the test split, with paired 95 % intervals: an interval that "
        "holds zero is no significant difference."
    )
    return _figure(description, [trace], layout)


def curves_figure(record: RunRecord) -> Figure | None:
    """Returns the held-out loss of every training at its rungs, pruned ones included."""
    drawn = [trial for trial in record.trials if any(is_finite(loss) for _, _, loss in trial.curve)]
    drawn.sort(key=lambda trial: trial.candidate.method)
    if not drawn:
        return None
    styles, seen = _styles(record), set[str]()
    traces = []
    for trial in drawn:
        traces.append(_curve(trial, styles[trial.candidate.method], first=trial.candidate.method not in seen))
        seen.add(trial.candidate.method)
    layout = _layout("tokens trained on", "loss on the choose split", height=420)
    description = (
        "Learning curves: held-out loss at each rung. Dotted with a cross at the end: pruned. Thick: final training."
    )
    return _figure(description, traces, layout)


def learning_rates_figure(record: RunRecord) -> Figure | None:
    """Returns held-out loss over learning rate, one trace a method; trials that did not finish are hollow."""
    scored = [trial for trial in record.trials if trial.stage == "search" and is_finite(trial.eval_loss)]
    if not scored:
        return None
    styles = _styles(record)
    traces = [
        _response(name, [trial for trial in scored if trial.candidate.method == name], style)
        for name, style in styles.items()
        if any(trial.candidate.method == name for trial in scored)
    ]
    layout = _layout("learning rate", "loss on the choose split", height=380)
    layout["xaxis"] |= {
        "type": "log",
        "tickvals": _rate_ticks(scored),
        "ticktext": [format_rate(v) for v in _rate_ticks(scored)],
    }
    description = (
        "Learning-rate response of each method in the search. Hollow: stopped early, after fewer tokens, so its loss "
        "is not comparable."
    )
    return _figure(description, traces, layout)


def memory_figure(record: RunRecord) -> Figure | None:
    """Returns predicted against measured memory; a point on the diagonal was predicted exactly."""
    measured = [trial for trial in record.trials if trial.measured_peak_bytes is not None]
    if not measured:
        return None
    pairs = [
        (trial, comparable_prediction_bytes(trial) / GIB, (trial.measured_peak_bytes or 0) / GIB) for trial in measured
    ]
    top = 1.1 * max(max(predicted, found) for _, predicted, found in pairs)
    styles = _styles(record)
    traces: list[Trace] = [_line([0, top], [0, top], "exact")]
    for name, style in styles.items():
        mine = [pair for pair in pairs if pair[0].candidate.method == name]
        if mine:
            traces.append(_memory_points(name, mine, style))
    limit = available_bytes(record) / GIB
    if limit <= 2 * top:
        traces.append(_line([0, top], [limit, limit], "limit"))
    layout = _layout("predicted (GiB)", "measured (GiB)", height=400)
    return _figure(
        "Memory of each training: predicted against measured. On the dashed line the two agree.", traces, layout
    )


def rank_pattern_figure(record: RunRecord) -> Figure | None:
    """Returns the final rank of every layer that AdaLoRA adapted, stacked by block."""
    trial = with_rank_pattern(record)
    if trial is None or not trial.rank_pattern:
        return None
    modules = list(dict.fromkeys(split_layer(layer)[1] for layer in trial.rank_pattern))
    traces = [_rank_bars(module, trial.rank_pattern, index) for index, module in enumerate(modules)]
    layout = _layout("block", "final rank, summed over its layers", height=400)
    layout |= {"barmode": "stack"}
    layout["xaxis"] |= {"type": "category"}
    return _figure("Where AdaLoRA left its rank: one bar a block, one colour a layer kind.", traces, layout)


def quantization_error_figure(record: RunRecord) -> Figure | None:
    """Returns LoftQ's quantization error of every adapted layer before and after its initialization."""
    trial = with_quantization_error(record)
    if trial is None:
        return None
    before, after = trial.quantization_error_before or {}, trial.quantization_error_after or {}
    traces = [
        _error_points("nf4 alone", before, (_COLOURS[1], "circle-open")),
        _error_points("with LoftQ's adapter", after, (_COLOURS[0], "circle")),
    ]
    layout = _layout("layer, in the model's order", "relative error of the weight", height=360)
    layout["yaxis"] |= {"rangemode": "tozero"}
    return _figure(
        "Quantization error of each adapted layer before training, without and with LoftQ's adapter.", traces, layout
    )


def split_layer(layer: str) -> tuple[str, str]:
    """Returns block and kind of a layer: ``layers.3.self_attn.q_proj`` is ``("3", "q_proj")``.

    A layer outside numbered blocks is a block of its own.
    """
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer)
    return (number[1] if number else layer, layer.rpartition(".")[2])


def _styles(record: RunRecord) -> dict[str, tuple[str, str]]:
    named = {trial.candidate.method for trial in record.trials}
    named |= {entry.candidate.method for entry in record.plan.candidates}
    named |= {entry.method for entry in record.verdict.ranking} if record.verdict else set()
    return {name: _style(index) for index, name in enumerate(sorted(named))}


def _style(index: int) -> tuple[str, str]:
    return (_COLOURS[index % len(_COLOURS)], _SYMBOLS[index % len(_SYMBOLS)])


def _label(text: str) -> str:
    """Plotly reads labels as a kind of HTML."""
    return html.escape(text, quote=False)


def _figure(description: str, traces: Sequence[Trace], layout: dict[str, Any]) -> Figure:
    return Figure(description=description, data={"data": list(traces), "layout": layout})


def _layout(x_title: str, y_title: str, *, height: int) -> dict[str, Any]:
    axis = {
        "gridcolor": "$grid",
        "linecolor": "$grid",
        "zeroline": False,
        "zerolinecolor": "$muted",
        "automargin": True,
    }
    return {
        "height": height,
        "font": {"color": "$text", "family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 12, "r": 16, "t": 12, "b": 12},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"bgcolor": "$surface", "bordercolor": "$muted", "font": {"color": "$text"}},
        "xaxis": {**axis, "title": {"text": x_title, "standoff": 8, "font": {"size": 13}}},
        "yaxis": {**axis, "title": {"text": y_title, "standoff": 8, "font": {"size": 13}}},
    }


def _marker(colour: str, symbol: str, size: int = 10) -> dict[str, Any]:
    return {"color": colour, "symbol": symbol, "size": size, "line": {"color": "$text", "width": 1}}


def _dots(values: Sequence[float], names: Iterable[str], bars: Sequence[tuple[float, float]]) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(values),
        "y": [_label(name) for name in names],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "arrayminus": [below for below, _ in bars],
            "array": [above for _, above in bars],
            "color": "$text",
            "thickness": 1.5,
            "width": 5,
        },
        "marker": _marker(_COLOURS[0], "circle", 12),
        "showlegend": False,
        "cliponaxis": False,
    }


def _loss_bar(comparison: Comparison | None, losses: dict[str, float]) -> tuple[float, float]:
    """The winner's loss minus the ends of the difference gives the ends of the baseline's loss."""
    if comparison is None or comparison.left not in losses:
        return (0.0, 0.0)
    winner, other = losses[comparison.left], losses[comparison.right]
    return (max(0.0, other - (winner - comparison.high)), max(0.0, (winner - comparison.low) - other))


def _difference_bar(comparison: Comparison | None) -> tuple[float, float]:
    if comparison is None:
        return (0.0, 0.0)
    return (comparison.difference - comparison.low, comparison.high - comparison.difference)


def _curve(trial: TrialResult, style: tuple[str, str], *, first: bool) -> Trace:
    points = [(tokens, loss) for _, tokens, loss in trial.curve if is_finite(loss)]
    stopped = trial.status != "complete"
    symbols = [style[1]] * (len(points) - 1) + ["x" if stopped else style[1]]
    name = f"{trial.name}: {candidate_label(trial.candidate)} ({trial.status})"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [tokens for tokens, _ in points],
        "y": [loss for _, loss in points],
        "text": [_label(name)] * len(points),
        "name": _label(trial.candidate.method),
        "legendgroup": _label(trial.candidate.method),
        "showlegend": first,
        "line": {"color": style[0], "dash": "dot" if stopped else "solid", "width": 4 if trial.stage == "final" else 2},
        "marker": _marker(style[0], "circle", 8) | {"symbol": symbols},
        "hovertemplate": "%{text}<br>%{x:,} tokens: loss %{y:.4f}<extra></extra>",
    }


def _response(method: str, trials: Sequence[TrialResult], style: tuple[str, str]) -> Trace:
    # The legend shows the first point's marker: a filled one, where there is one.
    ordered = sorted(trials, key=lambda trial: (trial.status != "complete", trial.candidate.learning_rate))
    symbols = [style[1] if trial.status == "complete" else f"{style[1]}-open" for trial in ordered]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [trial.candidate.learning_rate for trial in ordered],
        "y": [trial.eval_loss for trial in ordered],
        "text": [_label(f"{trial.name}: {candidate_label(trial.candidate)} ({trial.status})") for trial in ordered],
        "name": _label(method),
        "marker": _marker(style[0], style[1], 11) | {"symbol": symbols},
        "hovertemplate": "%{text}<br>loss %{y:.4f}<extra></extra>",
    }


def _rate_ticks(trials: Sequence[TrialResult]) -> list[float]:
    """Ticks at 1, 2 and 5 times each power of ten that the trials span."""
    rates = [trial.candidate.learning_rate for trial in trials]
    steps = [float(f"{digit}e{power}") for power in range(-9, 2) for digit in (1, 2, 5)]
    inside = [step for step in steps if min(rates) / 1.5 <= step <= max(rates) * 1.5]
    return inside if len(inside) <= 9 else [step for step in inside if format_rate(step).startswith("1")]


def _memory_points(method: str, pairs: Sequence[tuple[TrialResult, float, float]], style: tuple[str, str]) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [predicted for _, predicted, _ in pairs],
        "y": [found for _, _, found in pairs],
        "text": [_label(f"{trial.name}: {candidate_label(trial.candidate)}") for trial, _, _ in pairs],
        "name": _label(method),
        "marker": _marker(*style),
        "hovertemplate": "%{text}<br>predicted %{x:.2f}, measured %{y:.2f} GiB<extra></extra>",
    }


def _line(xs: Sequence[float], ys: Sequence[float], name: str) -> Trace:
    dash = "dash" if name == "exact" else "solid"
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(xs),
        "y": list(ys),
        "name": name,
        "line": {"color": "$muted", "width": 1.5, "dash": dash},
        "hoverinfo": "skip",
    }


def _rank_bars(module: str, pattern: dict[str, int], index: int) -> Trace:
    mine = [(split_layer(layer)[0], rank) for layer, rank in pattern.items() if split_layer(layer)[1] == module]
    return {
        "type": "bar",
        "x": [_label(block) for block, _ in mine],
        "y": [rank for _, rank in mine],
        "name": _label(module),
        "marker": {"color": _COLOURS[index % len(_COLOURS)], "line": {"color": "$surface", "width": 1}},
        "hovertemplate": f"block %{{x}}, {_label(module).replace('%', '')}: rank %{{y}}<extra></extra>",
    }


def _error_points(name: str, errors: dict[str, float], style: tuple[str, str]) -> Trace:
    finite = [(layer, error) for layer, error in errors.items() if is_finite(error)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(range(1, len(finite) + 1)),
        "y": [error for _, error in finite],
        "text": [_label(layer) for layer, _ in finite],
        "name": name,
        "marker": _marker(*style, 7) | {"line": {"width": 1, "color": style[0]}},
        "hovertemplate": "%{text}: %{y:.4f}<extra></extra>",
    }
