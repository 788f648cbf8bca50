"""Answers a request: traces one or two shallow models and extrapolates to the full depth."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

from autopeft.engine.loss import fused_head_available
from autopeft.memory._expansion import ExpansionError
from autopeft.memory.tracing.building import configuration, depends_on_depth, load_model_code
from autopeft.memory.tracing.costs import KernelKey
from autopeft.memory.tracing.depth import extrapolate, layer_kinds, period_of, shallow_depths, shortened
from autopeft.memory.tracing.request import KernelCost, TraceAnswer, TraceRequest
from autopeft.memory.tracing.reserved import Reserved, reserved_bytes, varied_bytes
from autopeft.memory.tracing.shapes import ShapeMemory
from autopeft.memory.tracing.step import ShallowTrace, trace_step
from autopeft.memory.tracing.versions import installed_versions

Costs = dict[tuple[str, KernelKey], list[float]]


TRACED_FORWARDS = 2
"""Forwards of an accumulated step that are traced: those after the second find what the second found."""


def trace(request: TraceRequest) -> TraceAnswer:
    """Returns the traced step of the whole model.

    Raises:
        ModelError: if the installed transformers cannot build the model, or not with this attention.
        InvalidInputError: if the installed peft cannot build the adapter.
    """
    forwards = request.candidate.gradient_accumulation_steps
    few = min(forwards, TRACED_FORWARDS)
    load_model_code(request.model_code)
    with _collector_off():
        answer = _traced(_with_forwards(request, few), forwards)
    return dataclasses.replace(answer, costs=_repeated(answer.costs, forwards / few))


def _with_forwards(request: TraceRequest, forwards: int) -> TraceRequest:
    candidate = dataclasses.replace(request.candidate, gradient_accumulation_steps=forwards)
    return dataclasses.replace(request, candidate=candidate)


def _repeated(costs: tuple[KernelCost, ...], times: float) -> tuple[KernelCost, ...]:
    """Returns the costs of so many times as many forwards and backwards before one update."""
    if times == 1:
        return costs
    return tuple(
        dataclasses.replace(
            cost,
            flops=cost.flops * times,
            moved_bytes=cost.moved_bytes * times,
            launches=cost.launches * times,
        )
        if cost.phase != "optimizer"
        else cost
        for cost in costs
    )


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Keeps Python's garbage collector from running in the middle, when it would let go of tensors by chance.

    It also takes a quarter of the time, among so many small objects.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _traced(request: TraceRequest, forwards: int) -> TraceAnswer:
    config = configuration(request)
    layers: int = config.num_hidden_layers
    request = dataclasses.replace(request, layers=layers)
    depths = _depths(request, config)
    shapes = ShapeMemory()
    traces = [trace_step(request, shortened(config, depth), shapes) for depth in depths]
    try:
        reserved = reserved_bytes(request, traces, depths, layers)
    except ExpansionError:
        depths, traces = (layers,), [trace_step(request, config, shapes)]
        reserved = reserved_bytes(request, traces, depths, layers)
    if reserved is not None and request.batch_orders:
        added = _varied_bytes(_with_forwards(request, forwards), config, traces[0], depths[0])
        reserved = dataclasses.replace(reserved, peak_bytes=reserved.peak_bytes + added)
    whole = traces[0] if len(traces) == 1 else _at_full_depth(traces, depths, layers)
    return _answer(request, whole, reserved, depths)


def _varied_bytes(request: TraceRequest, config: Any, longest: ShallowTrace, depth: int) -> int:
    """Returns what batches of many lengths add to what the allocator holds for the longest one."""
    forwards = request.candidate.gradient_accumulation_steps
    few = _with_forwards(request, min(forwards, TRACED_FORWARDS))
    shortest = dataclasses.replace(few, sequence_length=min(map(min, request.batch_orders)))
    brief = trace_step(shortest, shortened(config, depth), ShapeMemory())
    return varied_bytes(request, brief, longest)


def _depths(request: TraceRequest, config: Any) -> tuple[int, ...]:
    layers: int = config.num_hidden_layers
    if request.full_depth or depends_on_depth(request):
        return (layers,)
    prefix, period = period_of(layer_kinds(config))
    return shallow_depths(layers, period, prefix)


def _at_full_depth(traces: list[ShallowTrace], depths: tuple[int, ...], layers: int) -> ShallowTrace:
    """Returns the trace at full depth: every part is linear in depth, their maximum is not."""
    low, high = traces
    periods = (layers - depths[0]) // (depths[1] - depths[0])
    parts = {}
    for name, part in high.parts.items():
        grown = extrapolate(low.parts.get(name, part), part, periods)
        parts[name] = {component: int(value) for component, value in grown.items()}
    grown_parameters = (high.trainable_parameters - low.trainable_parameters) * periods
    return ShallowTrace(
        parts=parts,
        operations=high.operations,
        costs=_grown_costs(low.costs, high.costs, periods),
        events=high.events,
        trainable_parameters=low.trainable_parameters + grown_parameters,
        notes=high.notes,
    )


def _grown_costs(low: Costs, high: Costs, periods: int) -> Costs:
    """Returns the costs at full depth.

    A part that only the deeper model has (its inner layers) grows from nothing. A kernel of a new size in a part that
    both have is one whose size depends on depth, and its number does not.
    """
    parts = {part for part, _ in low}
    grown = {}
    for key, sums in high.items():
        start = low.get(key, sums if key[0] in parts else [0.0, 0.0, 0.0])
        grown[key] = [begin + (end - begin) * periods for begin, end in zip(start, sums, strict=True)]
    return grown


def _loss_note(request: TraceRequest) -> tuple[str, ...]:
    """Says so where trl's loss was asked for and the installed trl has no fused head, or there is none."""
    if request.candidate.trainer != "trl" or request.encoder or fused_head_available():
        return ()
    return (
        "these libraries lack trl's fused head, which came with trl 1.16: transformers' loss over the full logits was "
        "traced",
    )


def _answer(
    request: TraceRequest, step: ShallowTrace, reserved: Reserved | None, depths: tuple[int, ...]
) -> TraceAnswer:
    return TraceAnswer(
        parts=step.parts,
        operations=step.operations,
        trainable_parameters=step.trainable_parameters,
        costs=_costs(step),
        peak_reserved_bytes=None if reserved is None else reserved.peak_bytes,
        least_reserved_bytes=None if reserved is None else reserved.least_bytes,
        depths=depths,
        versions=installed_versions(),
        notes=(*step.notes, *_loss_note(request)),
    )


def _costs(step: ShallowTrace) -> tuple[KernelCost, ...]:
    sums: dict[tuple[str, KernelKey], list[float]] = {}
    for (moment, key), values in step.costs.items():
        entry = sums.setdefault((moment.partition(" ")[0], key), [0.0, 0.0, 0.0])
        for index, value in enumerate(values):
            entry[index] += value
    return tuple(
        KernelCost(phase=phase, kind=key.kind, dtype=key.dtype, flops=flops, moved_bytes=moved, launches=launches)
        for (phase, key), (flops, moved, launches) in sums.items()
    )
