"""Predicts the seconds of one optimizer step from its floating-point operations and the bytes it moves."""

from __future__ import annotations

from autopeft.memory._static import DTYPE_BYTES
from autopeft.memory._widths import trainable_parameters
from autopeft.methods import get_method
from autopeft.specs import Candidate, Device, ModelSpec, TimeEstimate

MATMUL_EFFICIENCY = {"float32": 0.6, "bfloat16": 0.45, "float16": 0.45}
"""Share of the device's dense peak that matrix products of a training step reach: 16-bit tensor cores stay at 40 to
50 % model FLOP utilization (PaLM, arXiv 2204.02311, reports 46 %; recalled, unverified), plain float32 units are
easier to fill. A measured ``Device.peak_flops`` of a host processor is what a large product reached."""

BANDWIDTH_EFFICIENCY = 0.7
"""Share of the peak bandwidth that element-wise kernels reach (recalled, unverified)."""


def estimate_time(
    candidate: Candidate,
    model: ModelSpec,
    device: Device | None,
    *,
    sequence_length: int,
    step_time_ratio: float = 1.0,
) -> TimeEstimate:
    """Returns the time of one optimizer step, accumulation included.

    seconds = ratio * (FLOPs / (efficiency * peak FLOP/s) + bytes moved / (efficiency * bandwidth)).

    Leaves out kernel launches, data loading and everything that overlaps; the known error is 30 % and more for small
    models, whose kernels do not fill a GPU. Ratios between candidates of one model are far better than that.

    Args:
        candidate: what is trained.
        model: its base model.
        device: what trains; None leaves the seconds unknown.
        sequence_length: tokens of a row, padding included.
        step_time_ratio: seconds of the method's step as a multiple of plain LoRA's at the same rank and targets.
    """
    tokens = candidate.per_device_batch_size * sequence_length
    flops = candidate.gradient_accumulation_steps * _flops_per_forward(candidate, model, tokens, sequence_length)
    if device is None:
        return TimeEstimate(seconds_per_step=None, flops_per_step=flops, assumptions=("no device was named",))
    peak = device.peak_flops.get(candidate.dtype)
    if peak is None:
        text = f"the {candidate.dtype} speed of {device.name} is unknown, so the time is not predicted"
        return TimeEstimate(seconds_per_step=None, flops_per_step=flops, assumptions=(text,))
    efficiency = MATMUL_EFFICIENCY[candidate.dtype]
    seconds = flops / (efficiency * peak)
    assumptions = [f"matrix products reach {efficiency:.0%} of the device's {candidate.dtype} peak"]
    if device.memory_bandwidth_bytes_per_second:
        moved = _bytes_moved(candidate, model, tokens)
        seconds += moved / (BANDWIDTH_EFFICIENCY * device.memory_bandwidth_bytes_per_second)
        assumptions.append(f"element-wise kernels reach {BANDWIDTH_EFFICIENCY:.0%} of the memory bandwidth")
    return TimeEstimate(
        seconds_per_step=step_time_ratio * seconds, flops_per_step=flops, assumptions=tuple(assumptions)
    )


def _flops_per_forward(candidate: Candidate, model: ModelSpec, tokens: int, sequence_length: int) -> float:
    """Returns the FLOPs of one forward and backward.

    A weight costs 2 FLOPs a token in the forward, 2 for the gradient of its input, 2 for its own gradient if it is
    trained, and 2 more where checkpointing repeats the forward: 6 N for a trained base, 4 N for a frozen one.
    Attention adds ``4 * layers * width * length`` a token in the forward (half of it under a causal mask) and twice
    that in the backward.
    """
    trainable = trainable_parameters(candidate, model)
    has_adapter = get_method(candidate.method).has_adapter
    base = sum(layer.count * layer.in_features * layer.out_features for layer in model.linear_layers)
    repeat = 1 if candidate.activation_checkpointing else 0
    base_flops = base * (2 * (2 + repeat) + (0 if has_adapter else 2))
    adapter_flops = trainable * 2 * (3 + repeat) if has_adapter else 0
    causal = 0.5 if model.kind == "causal_lm" else 1.0
    attention = 4 * causal * model.layers * model.attention_heads * model.head_dim * sequence_length * (3 + repeat)
    return float(tokens * (base_flops + adapter_flops + attention))


def _bytes_moved(candidate: Candidate, model: ModelSpec, tokens: int) -> float:
    """Returns bytes of one optimizer step that element-wise kernels read and write.

    Every layer touches its residual stream about 20 times and its MLP width about 10 times in forward and backward;
    a quantized weight is read (1 byte at most) and its 16-bit copy written and read at each of its products; the
    optimizer reads and writes weight, gradient and two states.
    """
    width = DTYPE_BYTES[candidate.dtype]
    passes = 3 if candidate.activation_checkpointing else 2
    per_token = width * model.layers * (20 * model.hidden_size + 10 * model.intermediate_size) * passes / 2
    dequantized = 0
    if candidate.quantization != "none":
        weights = sum(
            layer.count * layer.in_features * layer.out_features for layer in model.linear_layers if layer.quantizable
        )
        dequantized = passes * weights * (1 + 2 * width)
    trainable = trainable_parameters(candidate, model)
    optimizer = trainable * 7 * DTYPE_BYTES[candidate.adapter_dtype or candidate.dtype]
    return candidate.gradient_accumulation_steps * (tokens * per_token + dequantized) + optimizer
