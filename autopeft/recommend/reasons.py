"""Says in one claim each why a candidate's settings are what they are."""

from __future__ import annotations

from autopeft.memory.storage import quantization_problem
from autopeft.profiling.model import adapted_layers
from autopeft.recommend.drafting import Drafts
from autopeft.recommend.learning_rate import learning_rate_claim
from autopeft.recommend.priors import Effect, priors
from autopeft.specs import Basis, Candidate, Claim, Device, MethodSpace, ModelSpec

QUALITY = "profiles/evidence/quality.csv"
MEMORY_MODEL = "docs/memory-model.md"


def choice_reasons(candidate: Candidate, drafts: Drafts) -> tuple[Claim, ...]:
    """Returns one claim for each choice that is the candidate's own."""
    space, model, device = drafts.space(candidate.method), drafts.model, drafts.device
    claims = (
        _method_claim(space, model),
        _rank_claim(candidate, drafts.rank_advice(candidate.method)),
        learning_rate_claim(model, space, drafts.conditions(candidate.r), candidate.learning_rate),
        _target_claim(candidate, model),
        _quantization_claim(candidate, model, device),
        _dtype_claim(candidate, device),
        _batch_claim(candidate),
    )
    return tuple(claim for claim in claims if claim is not None)


def _method_claim(space: MethodSpace, model: ModelSpec) -> Claim:
    asked = (
        "" if space.searched_by_default else f"; `autopeft run` trains it only when asked for: --method {space.method}"
    )
    text = f"{space.method}: {space.summary}"
    effect = priors().quality.effects.get(space.method)
    if effect is None:
        return Claim(about="method", text=text + asked, basis="judgement")
    text = f"{text}; against plain LoRA on the same base {_found(effect)}{asked}"
    return Claim(about="method", text=text, basis=effect.basis(model), source=QUALITY)


def _found(effect: Effect) -> str:
    """Returns what the evidence says of an effect, and how little of it is fair."""
    tuned = "never with both tuned" if effect.tuned_points is None else f"{effect.tuned_points:+.1f} with both tuned"
    return f"{effect.points:+.1f} points ({effect.comparisons} comparisons of {effect.sources} sources; {tuned})"


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
    found = priors().quality.effects["attention"]
    text = f"adapters on {targeted}{effect} (attention alone: {_found(found)})"
    return Claim(about="target_modules", text=text, basis=found.basis(model), source=QUALITY)


def _quantization_claim(candidate: Candidate, model: ModelSpec, device: Device) -> Claim:
    if candidate.quantization == "nf4":
        effect = priors().quality.effects["nf4"]
        text = f"nf4 base, double quantization: a quarter of the 16-bit weights; LoRA on it {_found(effect)}"
        return _quantization(text, effect.basis(model), QUALITY)
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
