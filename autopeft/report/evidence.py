"""The sections that show what was measured: trials, curves, learning rates, memory, ranks, quantization errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean

from autopeft.report.content import Cell, Section, Table, figures
from autopeft.report.formats import (
    NOT_MEASURED,
    format_loss,
    format_optional,
    format_rate,
    format_seconds,
    format_share,
    format_size,
    target_label,
)
from autopeft.report.plots import (
    curves_figure,
    learning_rates_figure,
    memory_figure,
    quantization_error_figure,
    rank_pattern_figure,
    split_layer,
)
from autopeft.report.record import (
    RunRecord,
    available_bytes,
    comparable_prediction_bytes,
    with_quantization_error,
    with_rank_pattern,
)
from autopeft.specs import TrialResult
from autopeft.units import counted, format_gib


def trials_section(record: RunRecord) -> Section:
    """Returns every training with its status, loss and cost."""
    if not record.trials:
        return Section(anchor="trials", title="All trials", paragraphs=("No trial has ended yet.",))
    columns = (
        "name",
        "status",
        "method",
        "r",
        "alpha",
        "targets",
        "base",
        "learning rate",
        "loss, choose split",
        "steps",
        "tokens",
        "time",
    )
    rows = tuple(_trial_row(record, trial) for trial in record.trials)
    return Section(
        anchor="trials",
        title="All trials",
        paragraphs=(counted(len(record.trials), "training") + ", in the order in which they ended.",),
        tables=(Table(caption="All trainings", columns=columns, rows=rows),),
    )


def curves_section(record: RunRecord) -> Section:
    """Returns the learning curves by rung."""
    found = figures(curves_figure(record))
    return Section(
        anchor="curves",
        title="Learning curves",
        paragraphs=() if found else ("No training has reached a rung yet.",),
        figures=found,
        tables=(_curves_table(record),) if found else (),
    )


def learning_rates_section(record: RunRecord) -> Section:
    """Returns how each method answers to the learning rate."""
    found = figures(learning_rates_figure(record))
    paragraphs = () if found else ("No trial of the search has a loss yet.",)
    return Section(anchor="learning-rates", title="Learning-rate response", paragraphs=paragraphs, figures=found)


def memory_section(record: RunRecord) -> Section:
    """Returns predicted against measured memory."""
    limit = f"A training may use {format_gib(available_bytes(record))} on this device."
    if not record.trials:
        return Section(
            anchor="memory", title="Memory: predicted and measured", paragraphs=(limit, "No trial has ended yet.")
        )
    columns = (
        "name",
        "method",
        "required, predicted (GiB)",
        "peak, predicted (GiB)",
        "peak, measured (GiB)",
        "measured as",
        "predicted / measured",
    )
    table = Table(caption="Memory of each training", columns=columns, rows=tuple(map(_memory_row, record.trials)))
    meaning = (
        "Measured as resident (all of a worker's memory, libraries included), it is compared with what was predicted "
        "as required; measured as max allocated (tensors on the device alone), with the predicted peak."
    )
    return Section(
        anchor="memory",
        title="Memory: predicted and measured",
        paragraphs=(limit, meaning),
        figures=figures(memory_figure(record)),
        tables=(table,),
    )


def ranks_section(record: RunRecord) -> Section | None:
    """Returns AdaLoRA's final ranks; None if no trial reports any."""
    trial = with_rank_pattern(record)
    if trial is None or not trial.rank_pattern:
        return None
    ranks = list(trial.rank_pattern.values())
    told = (
        f"{trial.name} ends with {counted(sum(ranks), 'rank')} over {counted(len(ranks), 'layer')} "
        f"(mean {fmean(ranks):.2f}, from {min(ranks)} to {max(ranks)}; {counted(ranks.count(0), 'layer')} without any)."
    )
    rows = _by_kind(trial.rank_pattern, lambda values: (min(values), fmean(values), max(values)), "{:.1f}")
    table = Table(
        caption="Final rank by layer kind", columns=("layer kind", "layers", "least", "mean", "most"), rows=rows
    )
    return Section(
        anchor="ranks",
        title="AdaLoRA: where the rank went",
        paragraphs=(told,),
        figures=figures(rank_pattern_figure(record)),
        tables=(table,),
    )


def quantization_section(record: RunRecord) -> Section | None:
    """Returns LoftQ's quantization errors; None if no trial reports any."""
    trial = with_quantization_error(record)
    if trial is None:
        return None
    before, after = trial.quantization_error_before or {}, trial.quantization_error_after or {}
    both = [layer for layer in before if layer in after]
    fell = sum(after[layer] < before[layer] for layer in both)
    told = (
        f"In {trial.name} the error of the quantized weights falls in {fell} of {counted(len(both), 'adapted layer')}."
    )
    kinds = sorted({split_layer(layer)[1] for layer in both})
    rows = tuple(
        _error_row(kind, [layer for layer in both if split_layer(layer)[1] == kind], before, after) for kind in kinds
    )
    table = Table(
        caption="Mean relative error by layer kind",
        columns=("layer kind", "layers", "nf4 alone", "with LoftQ's adapter", "change"),
        rows=rows,
    )
    return Section(
        anchor="quantization",
        title="LoftQ: quantization error before and after",
        paragraphs=(told,),
        figures=figures(quantization_error_figure(record)),
        tables=(table,),
    )


def _trial_row(record: RunRecord, trial: TrialResult) -> tuple[Cell, ...]:
    candidate = trial.candidate
    return (
        Cell(trial.name),
        Cell(trial.status),
        Cell(candidate.method),
        Cell(format_optional(candidate.r), candidate.r),
        Cell(format_optional(candidate.lora_alpha), candidate.lora_alpha),
        Cell(target_label(candidate, record.plan.model)),
        Cell(candidate.quantization if candidate.quantization != "none" else candidate.dtype),
        Cell(format_rate(candidate.learning_rate), candidate.learning_rate),
        Cell(format_loss(trial.eval_loss), trial.eval_loss),
        Cell(f"{trial.steps:,}", trial.steps),
        Cell(f"{trial.tokens:,}", trial.tokens),
        Cell(format_seconds(trial.seconds), trial.seconds),
    )


def _curves_table(record: RunRecord) -> Table:
    rows = tuple(
        (Cell(trial.name), Cell(f"{step:,}", step), Cell(f"{tokens:,}", tokens), Cell(format_loss(loss), loss))
        for trial in record.trials
        for step, tokens, loss in trial.curve
    )
    return Table(
        caption="Every rung of every training", columns=("name", "step", "tokens", "loss"), rows=rows, folded=True
    )


def _memory_row(trial: TrialResult) -> tuple[Cell, ...]:
    measured = trial.measured_peak_bytes
    ratio = comparable_prediction_bytes(trial) / measured if measured else None
    return (
        Cell(trial.name),
        Cell(trial.candidate.method),
        Cell(format_size(trial.predicted_required_bytes), trial.predicted_required_bytes),
        Cell(format_size(trial.predicted_peak_bytes), trial.predicted_peak_bytes),
        Cell(format_size(measured), measured),
        Cell((trial.measured_peak_kind or NOT_MEASURED).replace("_", " ")),
        Cell(NOT_MEASURED if ratio is None else f"{ratio:.2f}", ratio),
    )


def _by_kind(
    values: dict[str, int], summary: Callable[[list[int]], Iterable[float]], shape: str
) -> tuple[tuple[Cell, ...], ...]:
    kinds: dict[str, list[int]] = {}
    for layer, value in values.items():
        kinds.setdefault(split_layer(layer)[1], []).append(value)
    return tuple(
        (
            Cell(kind),
            Cell(str(len(found)), len(found)),
            *(Cell(shape.format(figure), figure) for figure in summary(found)),
        )
        for kind, found in kinds.items()
    )


def _error_row(kind: str, layers: list[str], before: dict[str, float], after: dict[str, float]) -> tuple[Cell, ...]:
    first, second = fmean(before[layer] for layer in layers), fmean(after[layer] for layer in layers)
    change = second / first - 1 if first > 0 else None
    return (
        Cell(kind),
        Cell(str(len(layers)), len(layers)),
        Cell(f"{first:.4f}", first),
        Cell(f"{second:.4f}", second),
        Cell(NOT_MEASURED if change is None else format_share(change), change),
    )
