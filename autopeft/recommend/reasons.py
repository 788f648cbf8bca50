"""Says in one claim each why a candidate's settings are what they are."""

from __future__ import annotations

from autopeft.memory.storage import quantization_problem
from autopeft.profiling.model import adapted_layers
from autopeft.recommend.learning_rate import learning_rate_claim
from autopeft.specs import Basis, Candidate, Claim, Device, MethodSpace, ModelSpec

PEFT_COMPARISON = "https://github.com/huggingface/peft/tree/main/method_comparison"
QLORA = "https://arxiv.org/abs/2305.14314"
MEMORY_MODEL = "docs/memory-model.md"


def choice_reasons(
    candidate: Candidate, space: MethodSpace, model: ModelSpec, device: Device, rank_advice: tuple[int, Claim] | None
) -> tuple[Claim, ...]:
    """Returns one claim for each choice that is the candidate's own."""
    claims = (
        _method_claim(space),
        _rank_claim(candidate, rank_advice),
        learning_rate_claim(model, space, candidate.learning_rate),
        _target_claim(candidate, model),
        _quantization_claim(candidate, model, device),
        _dtype_claim(candidate, device),
        _batch_claim(candidate),
    )
    return tuple(claim for claim in claims if claim is not None)


def _method_claim(space: MethodSpace) -> Claim:
    asked = (
        "" if space.searched_by_default else f"; `autopeft run` trains it only when asked for: --method {space.method}"
    )
    return Claim(about="method", text=f"{space.method}: {space.summary}{asked}", basis="judgement")


def _rank_claim(candidate: Candidate, advice: tuple[int, Claim] | None) -> Claim | None:
    if candidate.r is None or advice is None:
        return None
    rank, claim = advice
    if candidate.r == rank:
        return claim
    effect = "less memory and time" if candidate.r < rank else "more capacity"
    text = f"r {candidate.r} in place of the advised {rank}: {effect}"
    return Claim(about="r", text=text, basis="computed", source=MEMORY_MODEL)


def _target_claim(candidate: Candidate, model: ModelSpec) -> Claim:
    if not candidate.target_modules:
        return Claim(about="target_modules", text="no target modules: every weight is trained", basis="computed")
    targeted = ", ".join(candidate.target_modules)
    roles = {layer.role for layer in adapted_layers(model, candidate.target_modules)}
    wide = "mlp" in roles and "attention" in roles
    effect = (
        ": all linear layers learn most for their parameters"
        if wide
        else " alone: less memory and time, and less learnt than on all linear layers"
    )
    text = f"adapters on {targeted}{effect}"
    return Claim(about="target_modules", text=text, basis="extrapolated", source=PEFT_COMPARISON)


def _quantization_claim(candidate: Candidate, model: ModelSpec, device: Device) -> Claim:
    if candidate.quantization == "nf4":
        text = "nf4 base, double quantization: a quarter of the 16-bit weights for a few tenths of a point of quality"
        return _quantization(text, "extrapolated", QLORA)
    if candidate.quantization == "int8":
        return _quantization("int8 base: half of the 16-bit weights", "computed", MEMORY_MODEL)
    missing = quantization_problem("nf4", model, device)
    reason = missing or "nothing is lost where it fits"
    return _quantization(f"base not quantized: {reason}", "computed" if missing else "judgement")


def _quantization(text: str, basis: Basis, source: str | None = None) -> Claim:
    return Claim(about="quantization", text=text, basis=basis, source=source)


def _dtype_claim(candidate: Candidate, device: Device) -> Claim:
    return Claim(about="dtype", text=_dtype_text(candidate, device), basis="computed")


def _dtype_text(candidate: Candidate, device: Device) -> str:
    if candidate.dtype == "bfloat16":
        return f"bfloat16: {device.name} computes in it"
    if candidate.dtype == "float16":
        return f"float16, since {device.name} lacks bfloat16: risk of overflow to infinite losses"
    if device.supports_float16 and not candidate.target_modules:
        return "float32: weights that are trained cannot be float16"
    return f"float32: {device.name} has no fast 16-bit type"


def _batch_claim(candidate: Candidate) -> Claim:
    text = _batch_text(candidate)
    return Claim(about="per_device_batch_size", text=text, basis="computed", source=MEMORY_MODEL)


def _batch_text(candidate: Candidate) -> str:
    how = "with" if candidate.activation_checkpointing else "without"
    text = (
        f"batch {candidate.per_device_batch_size} x accumulation {candidate.gradient_accumulation_steps} = "
        f"{candidate.effective_batch_size}, {how} activation checkpointing"
    )
    if candidate.activation_checkpointing:
        return f"{text}: recomputing activations is what fits, or is faster than smaller forwards"
    spare = ", with the estimate's error to spare" if candidate.per_device_batch_size > 1 else ""
    return f"{text}: the largest forward that fits{spare}"
