"""The changes of a configuration that save memory, each with what it costs.

A lever offers variants, the mildest first. Whether one saves anything is for the price to say, not for the lever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from autopeft.memory.explicit import DEFAULT_RANK
from autopeft.memory.storage import quantization_problem
from autopeft.methods import get_method
from autopeft.profiling.model import resolve_target_modules
from autopeft.specs import Candidate, Device, ModelSpec, QualityRisk

SHORTEST_LENGTH = 256
"""Shorter rows are not proposed: they are no longer the same task."""

SMALLEST_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverKind:
    """One way to save memory.

    Attributes:
        name: stable name.
        quality_risk: as in ``Lever``.
        cost: one sentence: what one pays.
        variants: the changed candidates with the change in a few words, the mildest first; none where it does not
            apply.
    """

    name: str
    quality_risk: QualityRisk
    cost: str
    variants: Callable[[Candidate, ModelSpec, Device], Iterator[tuple[Candidate, str]]]


Variants = Iterator[tuple[Candidate, str]]


def nf4_problem(candidate: Candidate, model: ModelSpec, device: Device) -> str | None:
    """Returns why the base cannot be stored as nf4, in one sentence; None if it can."""
    problem = quantization_problem("nf4", model, device)
    if problem is not None:
        return problem
    return get_method(candidate.method).why_not(as_nf4(candidate), model, device)


def as_nf4(candidate: Candidate) -> Candidate:
    """Returns the candidate on an nf4 base, doubly quantized; one that is already on it comes back as it is."""
    if candidate.quantization == "nf4":
        return candidate
    return replace(candidate, quantization="nf4", double_quantization=True)


def _fused_loss(candidate: Candidate, model: ModelSpec, _device: Device) -> Variants:
    if candidate.trainer == "transformers" and model.kind == "causal_lm":
        yield replace(candidate, trainer="trl"), "trl's loss, which never builds the full logits"


def _fused_attention(candidate: Candidate, model: ModelSpec, _device: Device) -> Variants:
    # Fused kernels leave out the cap that gemma 2 puts on its scores.
    if candidate.attention == "eager" and not model.config.get("attn_logit_softcapping"):
        yield replace(candidate, attention="sdpa"), "fused attention (sdpa), which never stores the scores"


def _fused_optimizer(candidate: Candidate, _model: ModelSpec, device: Device) -> Variants:
    if candidate.optimizer == "adamw_torch" and device.kind == "cuda":
        yield replace(candidate, optimizer="adamw_torch_fused"), "the fused AdamW (adamw_torch_fused)"


def _paged_optimizer(candidate: Candidate, _model: ModelSpec, device: Device) -> Variants:
    if candidate.optimizer in ("adamw_torch", "adamw_torch_fused") and device.kind == "cuda":
        yield replace(candidate, optimizer="paged_adamw_32bit"), "paged optimizer states (paged_adamw_32bit)"


def _eight_bit_optimizer(candidate: Candidate, _model: ModelSpec, device: Device) -> Variants:
    adamw = ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "adamw_bnb_8bit")
    if candidate.optimizer in adamw and device.kind == "cuda":
        yield replace(candidate, optimizer="paged_adamw_8bit"), "8-bit paged optimizer states (paged_adamw_8bit)"


def _checkpointing(candidate: Candidate, _model: ModelSpec, _device: Device) -> Variants:
    if not candidate.activation_checkpointing:
        yield replace(candidate, activation_checkpointing=True), "activation checkpointing"


def _micro_batch(candidate: Candidate, _model: ModelSpec, _device: Device) -> Variants:
    rows = candidate.per_device_batch_size
    for fewer in range(rows - 1, 0, -1):
        if rows % fewer == 0:
            steps = candidate.gradient_accumulation_steps * rows // fewer
            change = f"{'1 row' if fewer == 1 else f'{fewer} rows'} a forward, accumulated over {steps} forwards"
            yield replace(candidate, per_device_batch_size=fewer, gradient_accumulation_steps=steps), change


def _base_in_16_bits(candidate: Candidate, _model: ModelSpec, device: Device) -> Variants:
    if candidate.dtype == "float32" and device.supports_bfloat16:
        yield replace(candidate, dtype="bfloat16"), "the base in bfloat16"


def _adapter_in_16_bits(candidate: Candidate, _model: ModelSpec, _device: Device) -> Variants:
    if candidate.adapter_dtype == "float32" and candidate.dtype == "bfloat16":
        yield replace(candidate, adapter_dtype="bfloat16"), "adapter, gradients and optimizer states in bfloat16"


def _nf4_base(candidate: Candidate, model: ModelSpec, device: Device) -> Variants:
    if candidate.quantization != "nf4" and nf4_problem(candidate, model, device) is None:
        yield as_nf4(candidate), "the base in nf4, doubly quantized"


def _shorter_rows(candidate: Candidate, _model: ModelSpec, _device: Device) -> Variants:
    length = candidate.max_length // 2
    while length >= SHORTEST_LENGTH:
        yield replace(candidate, max_length=length), f"rows cut at {length:,} tokens"
        length //= 2


def _smaller_rank(candidate: Candidate, _model: ModelSpec, _device: Device) -> Variants:
    method = get_method(candidate.method)
    if candidate.r is None or "peft_config" in candidate.options:
        return
    r = candidate.r // 2
    # The initial rank follows from the rank where it is not given.
    options = {name: value for name, value in candidate.options.items() if name != "init_r"}
    while r >= SMALLEST_RANK:
        alpha = method.lora_alpha(r, _scaling(candidate))
        smaller = replace(candidate, r=r, lora_alpha=alpha, options=options)
        yield replace(smaller, options=method.complete_options(smaller)), f"rank {r}"
        r //= 2


def _plain_lora(candidate: Candidate, model: ModelSpec, _device: Device) -> Variants:
    if candidate.method == "lora" or "peft_config" in candidate.options:
        return
    lora = get_method("lora")
    r = candidate.r or DEFAULT_RANK
    yield (
        replace(
            candidate,
            method="lora",
            r=r,
            lora_alpha=lora.lora_alpha(r, _scaling(candidate)),
            target_modules=candidate.target_modules or resolve_target_modules(model, ("all-linear",)),
            adapter_dtype=candidate.adapter_dtype or "float32",
            options={},
        ),
        f"plain LoRA of rank {r} instead of {candidate.method}",
    )


def _scaling(candidate: Candidate) -> float:
    """Returns the effective scale of the update, which a change of rank or method keeps; 1 for a method without."""
    if candidate.r is None or candidate.lora_alpha is None:
        return 1.0
    unit = get_method(candidate.method).lora_alpha(candidate.r, 1.0)
    return candidate.lora_alpha / unit if unit else 1.0


LEVERS = (
    LeverKind(
        name="fused_loss",
        quality_risk="none",
        cost="the same loss; the logits are computed again in the backward, tile by tile",
        variants=_fused_loss,
    ),
    LeverKind(
        name="fused_attention",
        quality_risk="none",
        cost="the same attention, and faster",
        variants=_fused_attention,
    ),
    LeverKind(
        name="fused_optimizer",
        quality_risk="none",
        cost="the same update in one kernel",
        variants=_fused_optimizer,
    ),
    LeverKind(
        name="paged_optimizer",
        quality_risk="none",
        cost="the same update; states wait in host memory when the device is full, and moving them takes time",
        variants=_paged_optimizer,
    ),
    LeverKind(
        name="micro_batch",
        quality_risk="none",
        cost="the same effective batch; small forwards fill a GPU less, and a quantized base is rebuilt in each",
        variants=_micro_batch,
    ),
    LeverKind(
        name="activation_checkpointing",
        quality_risk="none",
        cost="the same gradients; the forward is computed twice",
        variants=_checkpointing,
    ),
    LeverKind(
        name="adapter_dtype",
        quality_risk="small",
        cost="small updates may be rounded away",
        variants=_adapter_in_16_bits,
    ),
    LeverKind(
        name="optimizer_8bit",
        quality_risk="small",
        cost="optimizer states are rounded to 8 bits, blockwise",
        variants=_eight_bit_optimizer,
    ),
    LeverKind(
        name="dtype",
        quality_risk="small",
        cost="weights and products are rounded to 8 bits of mantissa",
        variants=_base_in_16_bits,
    ),
    LeverKind(
        name="nf4_base",
        quality_risk="small",
        cost="the frozen weights are rounded to 4 bits and rebuilt at each product",
        variants=_nf4_base,
    ),
    LeverKind(
        name="max_length",
        quality_risk="some",
        cost="longer rows lose their end",
        variants=_shorter_rows,
    ),
    LeverKind(
        name="rank",
        quality_risk="some",
        cost="the adapter can learn less",
        variants=_smaller_rank,
    ),
    LeverKind(
        name="method",
        quality_risk="some",
        cost="another method, whose learning rate must be chosen anew",
        variants=_plain_lora,
    ),
)
"""In order of cost where time does not decide."""
