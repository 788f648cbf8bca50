"""What a candidate's step is made of, free of its rank and its tokens: the key under which steps are recorded once."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from autopeft.memory._families import plan_of, window_of
from autopeft.memory._static import DTYPE_BYTES
from autopeft.memory._trained import ModelKey, adapted, adapted_blocks, dense_norm
from autopeft.memory.ledger.linear import Mode
from autopeft.memory.ledger.record import Adapted, record_step
from autopeft.memory.ledger.rows import Rows, phase_rows
from autopeft.memory.ledger.tape import ONE, RANK
from autopeft.methods import PeftMethod, get_method
from autopeft.specs import Candidate, DeviceKind, LinearLayer, ModelSpec

ENOUGH_STEPS = 1000
"""Steps that an adapter's specification is asked for; none of its settings that memory depends on changes with them."""


@dataclass(frozen=True, slots=True)
class Structure:
    """The recorded step of all candidates that differ in rank, rows and length only.

    Attributes:
        forward, backward: the moments that can be the peak of a phase.
    """

    forward: Rows
    backward: Rows


def rank_and_structure(
    candidate: Candidate, model: ModelSpec, kind: DeviceKind, sequence_length: int
) -> tuple[float, Structure]:
    """Returns the widest rank of the candidate's adapters, and its recorded step."""
    rank, adapters = adapters_of(candidate, model)
    return rank, _recorded(ModelKey(model), mode_of(candidate, model, kind, sequence_length), adapters)


def adapters_of(candidate: Candidate, model: ModelSpec) -> tuple[int, tuple[tuple[str, Adapted], ...]]:
    """Returns the candidate's widest rank, and the adapter of each linear layer inside the blocks by its path."""
    method = get_method(candidate.method)
    if not method.has_adapter:
        return 0, ()
    layers = [each for each in adapted(candidate, model) if "{layer}" in each.path]
    widest = max((_rank(method, candidate, layer) for layer in layers), default=0)
    blocks, by_rank = adapted_blocks(candidate, model), _adapter_kind(method, candidate) == "adalora"
    return widest, tuple(
        (layer.path, _adapted(candidate, layer, widest, blocks[layer.path], by_rank=by_rank)) for layer in layers
    )


def _rank(method: PeftMethod, candidate: Candidate, layer: LinearLayer) -> int:
    return method.layer_parameters(candidate, layer) // (layer.in_features + layer.out_features)


def _adapted(
    candidate: Candidate, layer: LinearLayer, widest: int, blocks: frozenset[int], *, by_rank: bool
) -> Adapted:
    method = get_method(candidate.method)
    rank = _rank(method, candidate, layer)
    rest = method.layer_parameters(candidate, layer) - rank * (layer.in_features + layer.out_features)
    return Adapted(
        share=rank / widest,
        rest=1 if by_rank else rest,
        rest_unit=RANK if by_rank else ONE,
        extra=method.layer_saved_bytes(candidate, layer),
        blocks=blocks,
    )


@functools.lru_cache(maxsize=512)
def _recorded(model: ModelKey, mode: Mode, adapted: tuple[tuple[str, Adapted], ...]) -> Structure:
    return Structure(*phase_rows(record_step(plan_of(model.model, mode, dict(adapted)))))


def mode_of(candidate: Candidate, model: ModelSpec, kind: DeviceKind, sequence_length: int) -> Mode:
    """Returns how a candidate's whole step computes."""
    method = get_method(candidate.method)
    base = DTYPE_BYTES[candidate.dtype]
    quantized = candidate.quantization != "none"
    return Mode(
        base=base,
        adapter=DTYPE_BYTES[candidate.adapter_dtype or candidate.dtype],
        adapter_kind=_adapter_kind(method, candidate),
        autocast=base == 2 and candidate.adapter_dtype == "float32",
        on_host=kind == "cpu",
        quantization=candidate.quantization,
        double_quantization=candidate.double_quantization,
        float_norms=quantized and candidate.prepare_kbit,
        dropout=candidate.lora_dropout > 0,
        trained=not method.has_adapter,
        gradients_exist=candidate.gradient_accumulation_steps > 1,
        checkpointing=candidate.activation_checkpointing,
        eager=candidate.attention == "eager",
        windowed=candidate.attention == "sdpa" and sequence_length >= window_of(model),
        fused_head=candidate.trainer == "trl" and model.kind == "causal_lm",
        penalized=type(method).extra_loss is not PeftMethod.extra_loss,
    )


def _adapter_kind(method: PeftMethod, candidate: Candidate) -> str:
    spec = method.adapter_spec(candidate, ENOUGH_STEPS) if method.has_adapter else None
    if spec is None:
        return "none"
    if spec.peft_type == "ADALORA":
        return "adalora"
    if not spec.settings.get("use_dora"):
        return "lora"
    return "dense-dora" if dense_norm(candidate) else "dora"
