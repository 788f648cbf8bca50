"""One optimizer step, in the order in which the trainer does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autopeft.engine.loss import autocast, batch_loss
from autopeft.methods import MethodContext, PeftMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """What one training step needs.

    Attributes:
        model: with its adapter.
        method: its hooks are called.
        context: of the hooks.
        device_type: "cpu", "cuda".
        mixed_precision: whether the forward runs under autocast; None means autopeft's own rule.
        held_outputs: keeps the model's outputs until the next forward has made new ones, as hand-written loops do;
            None lets go of them before the backward, as trainers do.
        clears_first: whether gradients are cleared when a step begins instead of when it ends.
        use_cache: whether the forward collects keys and values as for generation.
    """

    model: Any
    method: PeftMethod
    context: MethodContext
    optimizer: Any
    device_type: str
    mixed_precision: bool | None = None
    held_outputs: list[Any] | None = None
    clears_first: bool = False
    use_cache: bool = False


def forward_loss(parts: StepParts, batch: dict[str, Any], num_items: Any, forwards: int) -> torch.Tensor:
    """Returns the loss that backward starts from: the batch's, plus its share of the method's own."""
    candidate = parts.context.candidate
    with autocast(candidate, parts.device_type, enabled=parts.mixed_precision):
        loss, outputs = batch_loss(parts.model, batch, candidate.trainer, num_items, use_cache=parts.use_cache)
    if parts.held_outputs is not None:
        parts.held_outputs[:] = [outputs]
    del outputs
    extra = parts.method.extra_loss(parts.model, parts.context)
    return loss if extra is None else loss + extra / forwards


def update(parts: StepParts, step: int) -> None:
    """Clips the gradients, steps the optimizer, runs the method's hook and clears the gradients."""
    import torch

    trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, parts.context.candidate.max_grad_norm)
    parts.optimizer.step()
    parts.method.after_optimizer_step(parts.model, step, parts.context)
    if not parts.clears_first:
        parts.optimizer.zero_grad()


def training_step(parts: StepParts, batches: list[dict[str, Any]], step: int, num_items: Any) -> None:
    """Runs one optimizer step over its forwards (gradient accumulation).

    Args:
        parts: what is trained.
        batches: one batch a forward.
        step: number of the step, from 1.
        num_items: supervised tokens of all batches together.
    """
    if parts.clears_first:
        parts.optimizer.zero_grad()
    for batch in batches:
        forward_loss(parts, batch, num_items, len(batches)).backward()
    update(parts, step)
