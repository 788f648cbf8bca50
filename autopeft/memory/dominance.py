"""Sentences on which component sets a peak, and on what eats the saving of a quantized base."""

from __future__ import annotations

from autopeft.specs import Candidate, MemoryEstimate, ModelSpec
from autopeft.units import format_count, format_gib

NAMED_SHARE = 0.1
"""Components below this share of the peak are not named."""

HELPING_SHARE = 0.5
"""Quantizing helps if at least this share of what the weights lose is also lost by the peak..."""

HELPING_PEAK_SHARE = 0.1
"""...and the peak loses at least this share of itself."""


def dominant_sentences(
    candidate: Candidate, model: ModelSpec, estimate: MemoryEstimate, sequence_length: int
) -> tuple[str, ...]:
    """Returns where the peak is, then its large components with their causes, the largest first."""
    peak = estimate.peak_memory_bytes
    where = f"the peak of {format_gib(peak)} is reached in the {peak_phase(estimate)} phase"
    operation = f", in {estimate.peak_operation}" if estimate.peak_operation else ""
    large = sorted(estimate.components.items(), key=lambda part: -part[1])
    named = [
        f"{component_label(name)} take {format_gib(size)} of it ({size / peak:.0%})"
        + _because(name, candidate, model, estimate, sequence_length)
        for name, size in large
        if size >= NAMED_SHARE * peak
    ]
    return (where + operation, *named)


def quantization_sentences(nf4: Candidate, plain: MemoryEstimate, quantized: MemoryEstimate) -> tuple[str, ...]:
    """Returns why the peak hardly falls when the base is stored as nf4; empty where it falls well.

    Args:
        nf4: the candidate on the nf4 base.
        plain: its estimate on the base in its dtype.
        quantized: its estimate on the nf4 base.
    """
    before, after = plain.components.get("base_weights", 0), quantized.components.get("base_weights", 0)
    weights, peaks = before - after, plain.peak_memory_bytes - quantized.peak_memory_bytes
    if peaks >= HELPING_SHARE * weights and peaks >= HELPING_PEAK_SHARE * plain.peak_memory_bytes:
        return ()
    only = " only" if peaks <= weights else ""
    falls = f"falls by {format_gib(peaks)}{only}" if peaks > 0 else f"rises by {format_gib(-peaks)}"
    joint = "but" if peaks <= weights else "and"
    change = f"{format_gib(plain.peak_memory_bytes)} -> {format_gib(quantized.peak_memory_bytes)}"
    first = (
        f"nf4 stores the base in {format_gib(after)} instead of {format_gib(before)}, {format_gib(weights)} less, "
        f"{joint} the peak {falls} ({change})"
    )
    return (first, *_eaten(nf4, plain, quantized, weights), *_untouched(nf4, plain, before))


def peak_phase(estimate: MemoryEstimate) -> str:
    """Returns the phase that holds most."""
    return max(estimate.phases, key=lambda name: estimate.phases[name])


def component_label(name: str) -> str:
    """Returns a component's name for people: "base weights"."""
    return name.replace("_", " ")


def _because(name: str, candidate: Candidate, model: ModelSpec, estimate: MemoryEstimate, length: int) -> str:
    """Returns what the size of a component follows from; empty for a component that explains itself."""
    trained = format_count(estimate.trainable_parameters)
    stored = candidate.dtype if candidate.quantization == "none" else candidate.quantization
    causes = {
        "base_weights": f"{format_count(model.parameter_count)} parameters stored in {stored}",
        "activations": _activations_cause(candidate, model, length),
        "logits": _logits_cause(candidate, model, length),
        "optimizer_states": f"what {candidate.optimizer} keeps of {trained} parameters",
        "gradients": f"of {trained} trained parameters",
        "temporaries": "freed again within the step",
    }
    return f": {causes[name]}" if name in causes else ""


def _activations_cause(candidate: Candidate, model: ModelSpec, length: int) -> str:
    if candidate.activation_checkpointing:
        return f"the inputs of {model.layers} checkpointed blocks, for {_tokens(candidate, length)}"
    return f"what {model.layers} blocks keep for the backward, for {_tokens(candidate, length)}"


def _logits_cause(candidate: Candidate, model: ModelSpec, length: int) -> str:
    if candidate.trainer == "transformers":
        return f"{model.vocab_size:,} float32 values and their gradients for each of {_tokens(candidate, length)}"
    return f"the loss over a vocabulary of {model.vocab_size:,}, for {_tokens(candidate, length)}"


def _tokens(candidate: Candidate, length: int) -> str:
    rows = candidate.per_device_batch_size
    return f"the {rows * length:,} tokens of a forward ({rows} x {length:,})"


def _eaten(nf4: Candidate, plain: MemoryEstimate, quantized: MemoryEstimate, saved: int) -> tuple[str, ...]:
    """Returns the components that grow by a tenth of what the weights save, or more, with their reasons.

    Both sides are read in the phase that sets the quantized peak: elsewhere a component may differ because it is
    another moment.
    """
    phase = peak_phase(quantized)
    before = plain.phase_components.get(phase, plain.components)
    after = quantized.phase_components.get(phase, quantized.components)
    grown = {name: size - before.get(name, 0) for name, size in after.items()}
    eaters = sorted((name for name in grown if grown[name] >= NAMED_SHARE * saved), key=lambda name: -grown[name])
    return tuple(
        f"{component_label(name)} grow by {format_gib(grown[name])} in the {phase} phase{_growth_reason(name, nf4)}"
        for name in eaters
        if name != "base_weights"
    )


def _growth_reason(name: str, nf4: Candidate) -> str:
    if name in ("activations", "logits") and nf4.prepare_kbit:
        return ": prepare_model_for_kbit_training makes norms float32, and with them all that blocks hand on and keep"
    if name == "activations" and nf4.adapter_dtype == "float32" != nf4.dtype:
        return ": quantized layers answer in the dtype they are asked in, so the adapter's float32 is handed on"
    if name == "temporaries":
        return ": each weight is rebuilt in 16 bits for its product"
    return ""


def _untouched(nf4: Candidate, plain: MemoryEstimate, base_bytes: int) -> tuple[str, ...]:
    """Returns what is large beside the weights, where it is more than they are."""
    peak = plain.peak_memory_bytes
    others = {name: size for name, size in plain.components.items() if name != "base_weights"}
    rest = peak - base_bytes
    if rest < base_bytes or not others:
        return ()
    large = sorted((name for name in others if others[name] >= NAMED_SHARE * peak), key=lambda name: -others[name])
    named = ", ".join(f"{component_label(name)} {format_gib(others[name])}" for name in large)
    weights = f"stored in {nf4.dtype} the weights are {base_bytes / peak:.0%} of the peak"
    return (f"{weights}; quantizing makes nothing else smaller" + (f": {named}" if named else ""),)
