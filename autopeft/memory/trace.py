"""Predicts memory by running the real training step of the real model on fake tensors: no weights, no GPU.

The model is built without storage, gets its adapter, and steps inside torch's FakeTensorMode, by the same engine
functions that training uses, while every storage is watched (``autopeft.memory.tracing``). That happens in this
process, or in the environment that will train (``autopeft.memory.environment``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from autopeft.engine.stack import require_training_stack
from autopeft.errors import InvalidInputError, ModelError
from autopeft.memory import trace_cache
from autopeft.memory.environment import find_environment, trace_in
from autopeft.memory.overhead import context_assumption, context_bytes, workspace_bytes
from autopeft.memory.quiet import quiet_libraries
from autopeft.memory.step_time import seconds_from_costs
from autopeft.memory.storage import priced_as_stored
from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.memory.tracing.versions import installed_versions
from autopeft.methods import get_method
from autopeft.specs import Candidate, Device, MemoryEstimate, ModelSpec, StepStyle

RELATIVE_ERROR = 0.02
"""Half-width of the stated interval: what a traced step does not know is the kernels' own workspace and how rows of
different length follow each other (docs/memory-accuracy.md)."""


def trace_memory(
    candidate: Candidate,
    model: ModelSpec,
    device: Device | None,
    *,
    sequence_length: int,
    style: StepStyle | None = None,
    environment: str | Path | None = None,
) -> MemoryEstimate:
    """Returns the memory and time of one training step, traced.

    Args:
        candidate: what is trained.
        model: its configuration decides what is built.
        device: decides kernels and optimizer form; None means an unnamed CUDA device.
        sequence_length: tokens of every row; all of them count in the loss, none is padding unless ``style.padded``.
        style: how the loop runs the step; None means autopeft's own.
        environment: virtual environment, or its python, whose libraries are traced; None means this one's.

    Raises:
        MissingExtraError: if the training stack is not installed here, without an environment.
        ModelError: if the libraries cannot build the model, or not with this attention.
        InvalidInputError: if an encoder is to be quantized, or the environment cannot trace.
    """
    if model.kind == "encoder" and candidate.quantization != "none":
        raise InvalidInputError(
            f"{model.id} with quantization {candidate.quantization!r} cannot be traced: the installed transformers "
            "quantizes its classification head too, which then cannot be trained; use quantization none"
        )
    if model.kind == "encoder" and model.context_length is not None and sequence_length > model.context_length:
        raise InvalidInputError(
            f"{model.id} reads at most {model.context_length} tokens, not {sequence_length}; "
            f"give --sequence-length {model.context_length} or less"
        )
    candidate, remark = priced_as_stored(candidate, model)
    request = _request(candidate, model, device, sequence_length, style or StepStyle())
    estimate = _estimate(request, answer_to(request, environment), device)
    return estimate if remark is None else replace(estimate, assumptions=(*estimate.assumptions, remark))


def answer_to(request: TraceRequest, environment: str | Path | None = None) -> TraceAnswer:
    """Returns the answer to a request from the cache, or traced and kept there.

    Raises:
        MissingExtraError: if the training stack is not installed here, without an environment.
        ModelError: if the libraries cannot build the model.
    """
    answer = next(answers_to([request], environment))
    if isinstance(answer, ModelError):
        raise answer
    return answer


def answers_to(
    requests: Sequence[TraceRequest], environment: str | Path | None = None
) -> Iterator[TraceAnswer | ModelError]:
    """Yields the answers to many requests, in order; with an environment one process of it answers all.

    Raises:
        MissingExtraError: if the training stack is not installed here, without an environment.
    """
    there = find_environment(environment) if environment is not None else None
    versions = there.versions if there else installed_versions()
    keys = [trace_cache.cache_key(request, versions) for request in requests]
    found: dict[str, TraceAnswer | ModelError | None] = {key: trace_cache.read(key) for key in keys}
    missing = {key: request for request, key in zip(requests, keys, strict=True) if found[key] is None}
    fresh = trace_in(there, list(missing.values())) if there else map(_traced_here, missing.values())
    for key in keys:
        answer = found[key] or next(fresh)
        if found[key] is None and not isinstance(answer, ModelError):
            trace_cache.write(key, answer)
        found[key] = answer
        yield answer


def _traced_here(request: TraceRequest) -> TraceAnswer:
    require_training_stack("tracing a training step")
    with quiet_libraries():
        from autopeft.memory.tracing.core import trace

        return trace(request)


def _request(
    candidate: Candidate, model: ModelSpec, device: Device | None, sequence_length: int, style: StepStyle
) -> TraceRequest:
    if not model.config:
        raise ModelError(f"{model.id} has no config.json, from which a trace builds the model; use the closed form")
    return TraceRequest(
        candidate=candidate,
        model_type=model.model_type,
        config=model.config,
        encoder=model.kind == "encoder",
        kind=device.kind if device else "cuda",
        sequence_length=sequence_length,
        style=style,
        workspace_bytes=workspace_bytes(device),
    )


def _estimate(request: TraceRequest, answer: TraceAnswer, device: Device | None) -> MemoryEstimate:
    highest = max(answer.parts, key=lambda name: sum(answer.parts[name].values()))
    components = answer.parts[highest]
    peak = sum(components.values())
    reserved = max(peak, answer.peak_reserved_bytes or 0)
    overhead = max(peak, answer.least_reserved_bytes or 0) - peak + context_bytes(device)
    phases = _by_phase(answer)
    time = seconds_from_costs(answer.costs, device)
    return MemoryEstimate(
        peak_memory_bytes=peak,
        peak_reserved_bytes=reserved,
        overhead_bytes=overhead,
        required_bytes=peak + overhead,
        components=components,
        phases={name: sum(parts.values()) for name, parts in phases.items()},
        phase_components=phases,
        peak_operation=f"{highest}: {answer.operations[highest]}",
        trainable_parameters=answer.trainable_parameters,
        seconds_per_step=time.seconds_per_step,
        source="traced",
        relative_error=RELATIVE_ERROR,
        versions=answer.versions,
        context_bytes=context_bytes(device),
        assumptions=(*_assumptions(request, answer, device), *time.assumptions),
    )


def _assumptions(request: TraceRequest, answer: TraceAnswer, device: Device | None) -> tuple[str, ...]:
    padding = "shorter ones padded" if request.style.padded else "none of them padding"
    replayed = (
        "reserved memory by replaying CUDA's caching allocator on the traced training; required is what it cannot do "
        "without when it gives its cache back first"
    )
    unread = f"what {request.candidate.method} holds while it reads training rows for its start is not traced"
    return (
        f"every row has {request.sequence_length} tokens, {padding}",
        context_assumption(device),
        *((replayed,) if answer.peak_reserved_bytes is not None else ()),
        *((unread,) if get_method(request.candidate.method).reads_data else ()),
        *answer.notes,
    )


def _by_phase(answer: TraceAnswer) -> dict[str, dict[str, int]]:
    """Returns the components of each phase at the highest of its parts."""
    phases: dict[str, dict[str, int]] = {}
    for name, part in answer.parts.items():
        phase = name.partition(" ")[0]
        if phase not in phases or sum(part.values()) > sum(phases[phase].values()):
            phases[phase] = part
    return phases
