"""Predicts memory by running the real training step of the real model on fake tensors: no weights, no GPU.

The model is built on the meta device, gets its adapter there, and then steps twice inside torch's FakeTensorMode, by
the same engine functions that training uses, while every storage is watched.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from autopeft.engine.stack import require_training_stack
from autopeft.errors import InvalidInputError, ModelError
from autopeft.memory._depth import extrapolate, pattern_period, shallow_depths
from autopeft.memory.overhead import overhead_bytes
from autopeft.memory.timing import estimate_time
from autopeft.specs import Candidate, Device, DeviceKind, MemoryEstimate, ModelSpec

if TYPE_CHECKING:
    from autopeft.memory._traced_step import TracedStep

RELATIVE_ERROR = 0.03
"""Half-width of the stated interval: what a traced step does not know is the kernels' own workspace."""


def trace_memory(
    candidate: Candidate, model: ModelSpec, device: Device | None, *, sequence_length: int
) -> MemoryEstimate:
    """Returns the memory of one training step, traced; the time is the closed form's.

    Args:
        candidate: what is trained.
        model: its configuration decides what is built.
        device: decides kernels and optimizer form; None means an unnamed CUDA device.
        sequence_length: tokens of every row; all of them count in the loss, none is padding.

    Raises:
        MissingExtraError: if the training stack is not installed.
        ModelError: if the installed transformers cannot build the model, or not with this attention.
        InvalidInputError: if an encoder is to be quantized.
    """
    require_training_stack("tracing a training step")
    if model.kind == "encoder" and candidate.quantization != "none":
        raise InvalidInputError(
            f"{model.id} with quantization {candidate.quantization!r} cannot be traced: the installed transformers "
            "quantizes its classification head too, which then cannot be trained; use quantization none"
        )
    from autopeft.memory._traced_step import Setting, trace_step

    kind: DeviceKind = device.kind if device else "cuda"
    config = _configuration(model)
    layers: int = config.num_hidden_layers
    depths = shallow_depths(layers, pattern_period(getattr(config, "layer_types", None), layers))
    traces = [
        trace_step(
            Setting(
                candidate=candidate,
                config=_shortened(config, depth),
                encoder=model.kind == "encoder",
                kind=kind,
                sequence_length=sequence_length,
            )
        )
        for depth in depths
    ]
    full = traces[0] if len(traces) == 1 else _at_full_depth(traces, depths, layers)
    return _estimate(candidate, model, device, full, sequence_length=sequence_length)


def _configuration(model: ModelSpec) -> Any:
    from transformers import AutoConfig

    if not model.config:
        raise ModelError(f"{model.id} has no config.json, from which a trace builds the model; use the closed form")
    settings = {
        name: value for name, value in model.config.items() if name not in ("model_type", "dtype", "torch_dtype")
    }
    settings.pop("quantization_config", None)
    try:
        return AutoConfig.for_model(model.model_type, **settings)
    except (ValueError, KeyError, TypeError) as error:
        text = f"the installed transformers cannot build a {model.model_type!r} model from the config of {model.id}"
        raise ModelError(f"{text}: {error}") from error


def _shortened(config: Any, layers: int) -> Any:
    """Returns the configuration of the same model with so many layers."""
    short = copy.deepcopy(config)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    return short


def _at_full_depth(traces: list[TracedStep], depths: tuple[int, ...], layers: int) -> TracedStep:
    """Returns the trace at full depth; every part is linear in depth, their maximum is not."""
    from autopeft.memory._traced_step import TracedStep

    low, high = traces
    pair = (depths[0], depths[1])
    parts = {name: extrapolate(low.parts.get(name, part), part, pair, layers) for name, part in high.parts.items()}
    periods = (layers - pair[0]) // (pair[1] - pair[0])
    grown = (high.trainable_parameters - low.trainable_parameters) * periods
    return TracedStep(parts, low.trainable_parameters + grown)


def _estimate(
    candidate: Candidate, model: ModelSpec, device: Device | None, step: TracedStep, *, sequence_length: int
) -> MemoryEstimate:
    components = max(step.parts.values(), key=lambda part: part.total_bytes)
    peak = components.total_bytes
    overhead = overhead_bytes(device, peak)
    time = estimate_time(candidate, model, device, sequence_length=sequence_length)
    return MemoryEstimate(
        peak_memory_bytes=peak,
        peak_reserved_bytes=peak + overhead.fragmentation_bytes,
        overhead_bytes=overhead.total_bytes,
        required_bytes=peak + overhead.total_bytes,
        components=components.components,
        phases=_phases(step),
        trainable_parameters=step.trainable_parameters,
        seconds_per_step=time.seconds_per_step,
        source="traced",
        relative_error=RELATIVE_ERROR,
        assumptions=(
            f"every row has {sequence_length} tokens, none of them padding",
            overhead.assumption,
            *time.assumptions,
        ),
    )


def _phases(step: TracedStep) -> dict[str, int]:
    phases: dict[str, int] = {}
    for name, part in step.parts.items():
        phase = name.partition(" ")[0]
        phases[phase] = max(phases.get(phase, 0), part.total_bytes)
    return phases
