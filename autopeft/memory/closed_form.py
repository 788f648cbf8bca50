"""Predicts the peak memory of one training step by formulas: no torch, no weights, microseconds a candidate."""

from __future__ import annotations

from autopeft.memory import _activations as activations
from autopeft.memory import _static as static
from autopeft.memory._block import KNOWN_MODEL_TYPES
from autopeft.memory._loss import loss_bytes
from autopeft.memory._widths import Widths, trainable_parameters, trained_tensors, widths_of
from autopeft.memory.overhead import overhead_bytes
from autopeft.memory.timing import estimate_time
from autopeft.methods import PeftMethod, get_method
from autopeft.specs import Candidate, Device, MemoryEstimate, ModelSpec

KNOWN_ERROR = 0.05
"""Half-width of the stated interval against a trace; measured, see docs/memory-model.md."""

DORA_CHECKPOINTED_ERROR = 0.12
"""The same for DoRA with checkpointing, whose wide float32 temporaries in the backward are not in the formulas."""

UNKNOWN_ARCHITECTURE_ERROR = 0.25
"""The same for an architecture whose layers the formulas do not know."""


def estimate_memory(
    candidate: Candidate, model: ModelSpec, device: Device | None, *, sequence_length: int
) -> MemoryEstimate:
    """Returns the predicted memory and time of one training step.

    The peak is the largest of four phases: load, forward (the loss), backward, optimizer. docs/memory-model.md holds
    every formula with its source, what it leaves out and its measured error.

    Args:
        candidate: what is trained.
        model: its base model.
        device: what trains; None means an unnamed CUDA device of unknown speed.
        sequence_length: tokens of a row, padding included.
    """
    w = widths_of(candidate, model, device.kind if device else "cuda", sequence_length=sequence_length)
    trainable = trainable_parameters(candidate, model)
    held = _held(w, trainable)
    phases = {
        "load": {name: held[name] for name in ("base_weights", "adapter_weights")},
        **_step_phases(w, held, trainable * (w.base if w.trained else w.adapter)),
    }
    return _estimate(w, device, phases, trainable)


def _held(w: Widths, trainable: int) -> dict[str, int]:
    """Returns what is there in every phase of a step."""
    width = w.base if w.trained else w.adapter
    states = static.optimizer_state_bytes(w.candidate, trained_tensors(w.candidate, w.model), width)
    return {
        "base_weights": static.base_weight_bytes(w.candidate, w.model),
        "adapter_weights": 0 if w.trained else trainable * width,
        "optimizer_states": states + get_method(w.candidate.method).extra_static_bytes(w.candidate, w.model),
    }


def _step_phases(w: Widths, held: dict[str, int], gradients: int) -> dict[str, dict[str, int]]:
    """Returns the components of the three phases of a step, each at its own widest moment."""
    block = activations.block_saved_bytes(w)
    forward_temporary = activations.block_forward_temporary_bytes(w)
    backward_temporary = activations.block_backward_temporary_bytes(w) - activations.freed_before_peak_bytes(w)
    loss = loss_bytes(w)
    if w.candidate.activation_checkpointing:
        inputs = w.tokens * w.model.hidden_size * w.stream + activations.kept_despite_checkpointing_bytes(w)
        kept, kept_by_first = w.model.layers * inputs, inputs
        # The last block is run again before its backward, so that its forward's peak comes back too.
        backward_temporary = block + max(backward_temporary, forward_temporary)
    else:
        unsaved = activations.first_block_unsaved_bytes(w)
        kept, kept_by_first = w.model.layers * block - unsaved, block - unsaved
    early = gradients if w.candidate.gradient_accumulation_steps > 1 else 0
    at_once = gradients if _has_penalty(w) else early
    layer_gradients = at_once or (gradients // w.model.layers if w.trained else 0)
    loss_kept = {"gradients": early, "activations": kept + loss.norm + loss.states}
    return {
        "forward": _widest(
            held | loss_kept | {"logits": loss.forward},
            held | {"gradients": early, "activations": kept, "temporaries": forward_temporary},
        ),
        "backward": _widest(
            held | loss_kept | {"logits": loss.backward, "gradients": at_once},
            held | {"gradients": layer_gradients, "activations": kept, "temporaries": backward_temporary},
            held | {"gradients": gradients, "activations": kept_by_first, "temporaries": backward_temporary},
        ),
        "optimizer": held
        | {
            "gradients": gradients,
            "temporaries": static.optimizer_temporary_bytes(
                w.candidate,
                trained_tensors(w.candidate, w.model),
                w.base if w.trained else w.adapter,
                foreach=w.kind != "cpu",
            ),
        },
    }


def _has_penalty(w: Widths) -> bool:
    """Returns whether the method adds to the loss: its backward comes first and makes every gradient at once."""
    return type(get_method(w.candidate.method)).extra_loss is not PeftMethod.extra_loss


def _widest(*moments: dict[str, int]) -> dict[str, int]:
    return max(moments, key=lambda parts: sum(parts.values()))


def _relative_error(w: Widths) -> float:
    if w.model.model_type not in KNOWN_MODEL_TYPES:
        return UNKNOWN_ARCHITECTURE_ERROR
    return DORA_CHECKPOINTED_ERROR if w.dora and w.candidate.activation_checkpointing else KNOWN_ERROR


def _estimate(w: Widths, device: Device | None, phases: dict[str, dict[str, int]], trainable: int) -> MemoryEstimate:
    components = _widest(*phases.values())
    peak = sum(components.values())
    overhead = overhead_bytes(device, peak)
    time = estimate_time(w.candidate, w.model, device, sequence_length=w.sequence_length)
    known = w.model.model_type in KNOWN_MODEL_TYPES
    unknown = () if known else (f"the layers of {w.model.model_type!r} are priced as a llama's; trace it to be sure",)
    return MemoryEstimate(
        peak_memory_bytes=peak,
        peak_reserved_bytes=peak + overhead.fragmentation_bytes,
        overhead_bytes=overhead.total_bytes,
        required_bytes=peak + overhead.total_bytes,
        components=components,
        phases={name: sum(parts.values()) for name, parts in phases.items()},
        trainable_parameters=trainable,
        seconds_per_step=time.seconds_per_step,
        source="closed_form",
        relative_error=_relative_error(w),
        assumptions=(
            f"every row has {w.sequence_length} tokens, none of them padding",
            overhead.assumption,
            *unknown,
            *time.assumptions,
        ),
    )
