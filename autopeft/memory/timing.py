"""Predicts the seconds of one optimizer step by arithmetic: no trace, no torch, for one candidate or arrays of lengths.

The rates are those of ``autopeft.memory.step_time``, which prices what a trace counted. Here the kernels, calls and
bytes of a block are constants, counted once in traces of Llama-3.2-3B (transformers 5.13, peft 0.20).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from autopeft.memory._static import DTYPE_BYTES
from autopeft.memory._trained import adapted, dense_norm, trainable_parameters
from autopeft.memory.rates import DeviceRates, device_rates, host_rates
from autopeft.methods import get_method
from autopeft.specs import Candidate, Device, ModelSpec, TimeEstimate


class _Counts(NamedTuple):
    """Kernels and calls of operators."""

    kernels: float
    calls: float


BLOCK = {"forward": _Counts(43, 93), "backward": _Counts(70, 130)}
"""Of one frozen block."""

ADAPTED = {"forward": _Counts(6, 12), "backward": _Counts(9, 15)}
"""Of the adapter of one layer, with the casts of float32 factors above a 16-bit base."""

NORMED = {"forward": _Counts(15, 20), "backward": _Counts(6, 10)}
"""What DoRA adds to one layer: the weight's norm, the scaling of two outputs."""

TRAINED_WEIGHT = _Counts(1, 3)
"""The product that makes a trained weight's gradient."""

UPDATE = _Counts(12, 12)
"""Of foreach AdamW and clipping, by trained tensor; most calls are norms and scalings of single gradients."""

NORM_BYTES, RESIDUAL_BYTES, ROTARY_BYTES, INNER_BYTES = 72, 12, 40, 10
"""Bytes a token and entry that a block's forward moves outside products, by entries of the hidden state (two norms with
their float32 copies; residual sums), of query and key (rotary embedding), and of the MLP (activation and product)."""

BACKWARD_MOVES = 1.8
"""Bytes that a block's backward moves, as a multiple of its forward's."""

ADAPTER_BYTES = {2: (0, 8), 4: (6, 24)}
"""Bytes a token that an adapter moves, by entries of its layer's input and output: 16-bit factors, float32 factors."""

LOSS_BYTES = {"forward": 18, "backward": 30}
"""Bytes a token and vocabulary entry that the loss moves around its products."""

DENSE_NORM_BYTES = 34
"""Bytes an entry of a weight that peft's DoRA moves for its norm: casts, the update's product, the sum and its norm."""

FACTORED_NORM_BYTES = {"nf4": 2.56, "int8": 9.0}
"""The same for a norm from the factors: one more product with the weight, where int8 is widened to float32; other
weights are read once."""

SCALED_MOVES = {"forward": 2, "backward": 6}
"""Times that an entry of a DoRA layer's output is read or written for its magnitude and the magnitude's gradient."""

DEQUANTIZED_BYTES = {"nf4": 2.56, "int8": 2.0}
"""Bytes a weight that bitsandbytes moves for each product: 4 bits and their scales, and 16 bits; int8 is multiplied as
it is, its input quantized and its output scaled."""

UPDATE_PASSES = 23
"""Times that clipping and foreach AdamW read or write a trained parameter (counted in a trace)."""


@dataclass(frozen=True, slots=True)
class _Phase:
    """What one phase does; numbers, or arrays over lengths.

    Attributes:
        products: dtype -> floating-point operations.
        attention: floating-point operations of fused attention.
        moved: bytes of element-wise kernels.
        dequantized: bytes of bitsandbytes' kernels.
    """

    products: dict[str, Any]
    attention: Any
    moved: Any
    dequantized: float
    counts: _Counts


def estimate_time(
    candidate: Candidate,
    model: ModelSpec,
    device: Device | None,
    *,
    sequence_length: int,
    step_time_ratio: float = 1.0,
) -> TimeEstimate:
    """Returns the time of one optimizer step, accumulation included.

    Args:
        candidate: what is trained.
        model: its base model.
        device: what trains; None leaves the seconds unknown.
        sequence_length: tokens of a row, padding included.
        step_time_ratio: seconds of the method's step as a multiple of plain LoRA's at the same rank and targets.
    """
    load = Load.of(candidate, sequence_length)
    work = _work(candidate, model, load)
    flops = float(_flops(work, load))
    if device is None:
        return TimeEstimate(seconds_per_step=None, flops_per_step=flops, assumptions=("no device was named",))
    rates = device_rates(device)
    missing = rates.missing([candidate.dtype])
    if missing:
        return TimeEstimate(seconds_per_step=None, flops_per_step=flops, assumptions=(missing,))
    seconds = float(_seconds(work, load, candidate, model, rates))
    return TimeEstimate(seconds_per_step=step_time_ratio * seconds, flops_per_step=flops, assumptions=rates.assumptions)


@dataclass(frozen=True, slots=True)
class Load:
    """How much one step works through: numbers, or arrays of one shape.

    Attributes:
        rows: of one forward.
        length: tokens of a row, padding included.
        forwards: of one optimizer step.
    """

    rows: Any
    length: Any
    forwards: Any

    @classmethod
    def of(cls, candidate: Candidate, sequence_length: Any) -> Load:
        """Returns the candidate's own load."""
        length = (
            float(sequence_length) if isinstance(sequence_length, int) else np.asarray(sequence_length, dtype=float)
        )
        return cls(candidate.per_device_batch_size, length, candidate.gradient_accumulation_steps)

    @property
    def tokens(self) -> Any:
        """Of one forward."""
        return self.rows * self.length


def flops_per_step(candidate: Candidate, model: ModelSpec, sequence_length: Any) -> Any:
    """Returns the FLOPs of all products of one optimizer step; an array of lengths gives an array.

    A weight costs 2 FLOPs a token in the forward, 2 for the gradient of its input, 2 for its own gradient if it is
    trained, and 2 more where checkpointing repeats the forward: 6 N for a trained base, 4 N for a frozen one.
    Attention adds ``4 * layers * width * length`` a token in the forward (half of it under a causal mask) and 2.5
    times that in the backward, where the fused kernel makes the scores again (arXiv 2307.08691, section 3.1).
    """
    return flops_of_load(candidate, model, Load.of(candidate, sequence_length))


def flops_of_load(candidate: Candidate, model: ModelSpec, load: Load) -> Any:
    """Returns the FLOPs of one optimizer step under another load than the candidate's; see ``flops_per_step``."""
    return _flops(_work(candidate, model, load), load)


def seconds_per_step(candidate: Candidate, model: ModelSpec, rates: DeviceRates, sequence_length: Any) -> Any:
    """Returns the seconds of one optimizer step; an array of lengths gives an array. See ``seconds_of_load``."""
    return seconds_of_load(candidate, model, rates, Load.of(candidate, sequence_length))


def seconds_of_load(candidate: Candidate, model: ModelSpec, rates: DeviceRates, load: Load) -> Any:
    """Returns the seconds of one optimizer step under a load; arrays give an array.

    The host starts kernels ahead of the device; the device takes a kernel's latency and its work:

        device = max(device + latencies + FLOPs / reached FLOP/s + bytes / reached bandwidth, host)

    phase by phase. Leaves out data loading and everything between steps. Known error: see docs/memory-model.md.
    """
    return _seconds(_work(candidate, model, load), load, candidate, model, rates)


Work = dict[str, _Phase]


def _work(candidate: Candidate, model: ModelSpec, load: Load) -> Work:
    """Returns what one forward and one backward do."""
    return {name: _phase(name, candidate, model, load) for name in ("forward", "backward")}


def _flops(work: Work, load: Load) -> Any:
    return load.forwards * sum(sum(phase.products.values()) + phase.attention for phase in work.values())


def _seconds(work: Work, load: Load, candidate: Candidate, model: ModelSpec, rates: DeviceRates) -> Any:
    repeats = load.forwards
    started = finished = 0.0 * load.tokens
    for name, phase in work.items():
        started = started + repeats * _host_seconds(name, phase.counts, rates)
        busy = repeats * _device_seconds(phase, candidate, rates)
        finished = np.maximum(finished + busy, started)
    parameters = trainable_parameters(candidate, model)
    counts = _scaled(UPDATE, _trained_tensors(candidate, model))
    moved = UPDATE_PASSES * parameters * DTYPE_BYTES[candidate.adapter_dtype or candidate.dtype]
    busy = counts.kernels * rates.latency_seconds("optimizer") + rates.seconds_to_move("optimizer", moved, moved)
    return np.maximum(finished + busy, started + _host_seconds("optimizer", counts, rates))


def _host_seconds(phase: str, counts: _Counts, rates: DeviceRates) -> float:
    if not rates.queued:
        return 0.0
    host = host_rates()
    return host.seconds(phase, "call", counts.calls) + host.seconds(phase, "kernel", counts.kernels)


def _device_seconds(phase: _Phase, candidate: Candidate, rates: DeviceRates) -> Any:
    products = sum(rates.seconds_to_compute("matmul", dtype, flops) for dtype, flops in phase.products.items())
    attention = rates.seconds_to_compute("attention", candidate.dtype, phase.attention)
    # The second-level cache is left out, unlike in a trace, which knows every kernel's size: it would say that two
    # small forwards are faster than one large, on grounds too coarse to choose batches by.
    moving = phase.moved / rates.reached_bandwidth("optimizer", 0.0)
    dequantizing = rates.seconds_to_move("dequantize", phase.dequantized, phase.dequantized)
    return products + attention + moving + dequantizing + phase.counts.kernels * rates.latency_seconds("elementwise")


def _phase(name: str, candidate: Candidate, model: ModelSpec, load: Load) -> _Phase:
    """Returns what one forward or one backward does; a checkpointed backward does the forward again."""
    own = _own_work(name, candidate, model, load)
    if name == "forward" or not candidate.activation_checkpointing:
        return own
    again = _own_work("forward", candidate, model, load)
    return _Phase(
        products={dtype: own.products[dtype] + again.products[dtype] for dtype in own.products},
        attention=own.attention + again.attention,
        moved=own.moved + again.moved,
        dequantized=own.dequantized + again.dequantized,
        counts=_Counts(own.counts.kernels + again.counts.kernels, own.counts.calls + again.counts.calls),
    )


def _own_work(name: str, candidate: Candidate, model: ModelSpec, load: Load) -> _Phase:
    tokens = load.tokens
    backward = name == "backward"
    layers = model.linear_layers
    weights = sum(layer.count * layer.in_features * layer.out_features for layer in layers)
    quantizable = sum(x.count * x.in_features * x.out_features for x in layers if x.quantizable)
    products: dict[str, Any] = {
        candidate.dtype: tokens * weights * 2 * (2 if backward and not _has_adapter(candidate) else 1)
    }
    if _has_adapter(candidate):
        dtype = _product_dtype(candidate)
        flops = tokens * trainable_parameters(candidate, model) * 2 * (2 if backward else 1)
        products[dtype] = products.get(dtype, 0.0) + flops + _norm_flops(name, candidate, model)
    causal = 0.5 if model.kind == "causal_lm" else 1.0
    width = model.layers * model.attention_heads * model.head_dim
    return _Phase(
        products=products,
        attention=tokens * 4 * causal * width * load.length * (2.5 if backward else 1.0),
        moved=_moved(name, candidate, model, tokens),
        dequantized=DEQUANTIZED_BYTES.get(candidate.quantization, 0.0) * quantizable,
        counts=_counts(name, candidate, model),
    )


def _moved(name: str, candidate: Candidate, model: ModelSpec, tokens: Any) -> Any:
    """Returns the bytes that element-wise kernels read and write."""
    backward = name == "backward"
    heads = (model.attention_heads + model.key_value_heads) * model.head_dim
    hidden, inner = model.hidden_size, model.intermediate_size
    block = (NORM_BYTES + RESIDUAL_BYTES) * hidden + ROTARY_BYTES * heads + INNER_BYTES * inner
    of_input, of_output = ADAPTER_BYTES[DTYPE_BYTES[candidate.adapter_dtype or candidate.dtype]]
    adapters = sum(
        layer.count * (of_input * layer.in_features + of_output * layer.out_features)
        for layer in adapted(candidate, model)
    )
    in_blocks = tokens * (model.layers * block + adapters) * (BACKWARD_MOVES if backward else 1.0)
    head = tokens * model.vocab_size * LOSS_BYTES[name]
    normed = _norm_bytes(name, candidate, model) + _scaled_bytes(name, candidate, model, tokens)
    return in_blocks + head + normed


def _norm_bytes(name: str, candidate: Candidate, model: ModelSpec) -> float:
    if name == "backward" or not _normed(candidate):
        return 0.0
    factored = FACTORED_NORM_BYTES.get(candidate.quantization, DTYPE_BYTES[candidate.dtype])
    return float((DENSE_NORM_BYTES if dense_norm(candidate) else factored) * _adapted_entries(candidate, model))


def _norm_flops(name: str, candidate: Candidate, model: ModelSpec) -> float:
    """Returns the products of a norm: ``W A^T`` of the factored one, ``B A`` of the dense one, both ``2 r in out``."""
    if name == "backward" or not _normed(candidate):
        return 0.0
    return 2.0 * (candidate.r or 0) * _adapted_entries(candidate, model)


def _scaled_bytes(name: str, candidate: Candidate, model: ModelSpec, tokens: Any) -> Any:
    if not _normed(candidate):
        return 0.0
    outputs = sum(layer.count * layer.out_features for layer in adapted(candidate, model))
    return tokens * SCALED_MOVES[name] * DTYPE_BYTES[candidate.dtype] * outputs


def _adapted_entries(candidate: Candidate, model: ModelSpec) -> int:
    return sum(layer.count * layer.in_features * layer.out_features for layer in adapted(candidate, model))


def _counts(name: str, candidate: Candidate, model: ModelSpec) -> _Counts:
    sites = sum(layer.count for layer in adapted(candidate, model))
    parts = [_scaled(BLOCK[name], model.layers), _scaled(ADAPTED[name], sites)]
    if _normed(candidate):
        parts.append(_scaled(NORMED[name], sites))
    if name == "backward" and not _has_adapter(candidate):
        parts.append(_scaled(TRAINED_WEIGHT, sum(layer.count for layer in model.linear_layers)))
    return _Counts(sum(part.kernels for part in parts), sum(part.calls for part in parts))


def _scaled(counts: _Counts, times: float) -> _Counts:
    return _Counts(counts.kernels * times, counts.calls * times)


def _trained_tensors(candidate: Candidate, model: ModelSpec) -> int:
    """Returns about how many tensors are trained: two factors a layer, or the weights and two norms a block."""
    if _has_adapter(candidate):
        return 2 * sum(layer.count for layer in adapted(candidate, model))
    return sum(layer.count for layer in model.linear_layers) + 2 * model.layers


def knows_step_of(candidate: Candidate) -> bool:
    """Returns whether the arithmetic here holds what the method does beside LoRA: full fine-tuning and DoRA's norm."""
    return not _has_adapter(candidate) or _normed(candidate)


def _has_adapter(candidate: Candidate) -> bool:
    return get_method(candidate.method).has_adapter


def _normed(candidate: Candidate) -> bool:
    spec = get_method(candidate.method).adapter_spec(candidate, 1000) if _has_adapter(candidate) else None
    return spec is not None and bool(spec.settings.get("use_dora"))


def _product_dtype(candidate: Candidate) -> str:
    """Returns the dtype that the adapter's products run in: under autocast the base's, else the adapter's."""
    if candidate.dtype != "float32" and candidate.adapter_dtype == "float32":
        return candidate.dtype
    return candidate.adapter_dtype or candidate.dtype
