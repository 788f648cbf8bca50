"""Says in one sentence each why a candidate's settings are what they are."""

from __future__ import annotations

from autopeft.memory.storage import quantization_problem
from autopeft.profiling.model import adapted_layers
from autopeft.recommend.learning_rate import learning_rate_reason
from autopeft.specs import Candidate, Device, MethodSpace, ModelSpec


def choice_reasons(
    candidate: Candidate, space: MethodSpace, model: ModelSpec, device: Device, rank_advice: tuple[int, str] | None
) -> tuple[str, ...]:
    """Returns one sentence for each choice that is the candidate's own."""
    sentences = (
        _method_reason(space),
        _rank_reason(candidate, rank_advice),
        learning_rate_reason(model, space, candidate.learning_rate),
        _target_reason(candidate, model),
        _quantization_reason(candidate, model, device),
        _dtype_reason(candidate, device),
        _batch_reason(candidate),
    )
    return tuple(sentence for sentence in sentences if sentence)


def _method_reason(space: MethodSpace) -> str:
    asked = (
        "" if space.searched_by_default else f"; `autopeft run` trains it only when asked for: --method {space.method}"
    )
    return f"{space.method}: {space.summary}{asked}"


def _rank_reason(candidate: Candidate, advice: tuple[int, str] | None) -> str:
    if candidate.r is None or advice is None:
        return ""
    rank, reason = advice
    if candidate.r == rank:
        return reason
    effect = "less memory and time" if candidate.r < rank else "more capacity"
    return f"r {candidate.r} in place of the advised {rank}: {effect}"


def _target_reason(candidate: Candidate, model: ModelSpec) -> str:
    if not candidate.target_modules:
        return "no target modules: every weight is trained"
    targeted = ", ".join(candidate.target_modules)
    roles = {layer.role for layer in adapted_layers(model, candidate.target_modules)}
    if "mlp" in roles and "attention" in roles:
        return f"adapters on {targeted}: all linear layers learn most for their parameters"
    return f"adapters on {targeted} alone: less memory and time, and less learnt than on all linear layers"


def _quantization_reason(candidate: Candidate, model: ModelSpec, device: Device) -> str:
    if candidate.quantization == "nf4":
        return "nf4 base, double quantization: a quarter of the 16-bit weights for a few tenths of a point of quality"
    if candidate.quantization == "int8":
        return "int8 base: half of the 16-bit weights"
    missing = quantization_problem("nf4", model, device)
    return f"base not quantized: {missing}" if missing else "base not quantized: nothing is lost where it fits"


def _dtype_reason(candidate: Candidate, device: Device) -> str:
    if candidate.dtype == "bfloat16":
        return f"bfloat16: {device.name} computes in it"
    if candidate.dtype == "float16":
        return f"float16, since {device.name} lacks bfloat16: risk of overflow to infinite losses"
    if device.supports_float16 and not candidate.target_modules:
        return "float32: weights that are trained cannot be float16"
    return f"float32: {device.name} has no fast 16-bit type"


def _batch_reason(candidate: Candidate) -> str:
    how = "with" if candidate.activation_checkpointing else "without"
    text = (
        f"batch {candidate.per_device_batch_size} x accumulation {candidate.gradient_accumulation_steps} = "
        f"{candidate.effective_batch_size}, {how} activation checkpointing"
    )
    if candidate.activation_checkpointing:
        return f"{text}: recomputing activations is what fits, or is faster than smaller forwards"
    spare = ", with the estimate's error to spare" if candidate.per_device_batch_size > 1 else ""
    return f"{text}: the largest forward that fits{spare}"
