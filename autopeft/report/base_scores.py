"""The untouched base model's scores as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autopeft.specs import BaseScores, Score
from autopeft.units import format_duration


def base_scores_table(scores: BaseScores) -> RenderableType:
    """Returns every figure with its 95 % interval, zero-shot beside few-shot and beside what takes no model."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    trivial = {"labels": "most frequent label", "texts": "copy of the prompt"}.get(scores.task, "")
    rounds = [
        f"{each.shots} example{'s' if each.shots > 1 else ''}" if each.shots else "zero-shot" for each in scores.shots
    ]
    for name in ("95 % intervals", "rows", *rounds, *([trivial] if scores.trivial else [])):
        table.add_column(name, overflow="fold")
    for cells in _lines(scores):
        table.add_row(*map(Text, cells))
    return Group(table, *(Text(f"  - {line}") for line in _conditions(scores)))


def _lines(scores: BaseScores) -> Iterator[tuple[str, ...]]:
    if scores.shots:
        losses = [each.loss for each in scores.shots]
        rows = f"{len(scores.rows)}"
        yield ("loss", rows, *map(_interval, losses))
        yield ("perplexity", rows, *(f"{math.exp(loss.value):.3g}" for loss in losses))
    for place, metric in enumerate(_metrics(scores)):
        figures = [each.metrics[place] for each in scores.shots]
        rows = str(scores.generated_rows or len(scores.rows) or len(metric.per_example) or "all")
        compared = [_interval(scores.trivial)] if scores.trivial and scores.trivial.name == metric.name else []
        yield (metric.name.replace("_", " "), rows, *map(_interval, figures), *compared)


def _metrics(scores: BaseScores) -> tuple[Score, ...]:
    if scores.shots:
        return scores.shots[0].metrics
    return (scores.trivial,) if scores.trivial else ()


def _conditions(scores: BaseScores) -> Iterator[str]:
    yield from scores.advice.reasons if scores.advice else ()
    yield from scores.notes
    if scores.shots:
        base = scores.dtype if scores.quantization == "none" else f"{scores.quantization}, computed in {scores.dtype}"
        took = format_duration(sum(scores.seconds.values()))
        yield f"computed on {scores.device}, base in {base}, seed {scores.seed}, {took}"


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return f"{score.value:.2f}, {score.interval}"
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
