"""The loss of one forward, the same for training and for the trace."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autopeft.specs import Candidate, TrainerName

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""Label of a token on which the loss does not count."""

FUSED_OUTPUTS = ("log_probs", "entropy", "is_top1")
"""What trl's SFTTrainer asks of its fused head; each costs memory, so a trace must ask for the same."""


def prepare_loss(model: Any, trainer: TrainerName) -> None:
    """Gives the base model trl's fused language-model head, which never builds the full logits; before injection.

    Versions of trl without such a head compute transformers' loss.
    """
    if trainer != "trl" or not fused_head_available():
        return
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=FUSED_OUTPUTS)
    model.has_fused_lm_head = True


def fused_head_available() -> bool:
    """Returns whether the installed trl has a head that never builds the full logits."""
    try:
        from trl.trainer import utils
    except ImportError:
        return False
    return hasattr(utils, "add_fused_lm_head")


def batch_loss(
    model: Any, batch: dict[str, Any], trainer: TrainerName, num_items: Any, *, use_cache: bool = False
) -> tuple[torch.Tensor, Any]:
    """Returns the summed negative log-likelihood of the batch's supervised tokens divided by ``num_items``.

    Args:
        model: with or without adapter; prepared by ``prepare_loss``.
        batch: "input_ids", "attention_mask", "labels", each ``(rows, length)``; optionally "logits_to_keep", see
            ``positions_to_keep``.
        trainer: "trl" computes in chunks of positions; "transformers" builds the logits and upcasts them to float32.
        num_items: supervised tokens of the whole optimizer step (all its forwards), so that accumulation is exact.
        use_cache: whether keys and values are collected as for generation, which loops that do not say no get.

    Returns:
        The loss and the model's outputs. Whoever keeps the outputs keeps the logits.
    """
    names = ("input_ids", "attention_mask", "position_ids")
    inputs: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    if trainer == "trl" and has_fused_head(model):
        outputs = model(**inputs, labels=batch["labels"], use_cache=use_cache, fused_lm_head=True)
        return -outputs.log_probs.sum() / num_items, outputs
    labels = batch["labels"]
    if "logits_to_keep" in batch:
        inputs["logits_to_keep"] = batch["logits_to_keep"]
        labels = labels[:, -batch["logits_to_keep"] :]
    takes_cache = "use_cache" in inspect.signature(type(_base_of(model)).forward).parameters
    cache = {"use_cache": use_cache} if takes_cache else {}  # some encoders have none to switch off
    if not _divides_by_items(model):  # older architectures average over the batch, whose share of the items counts
        outputs = model(**inputs, labels=labels, **cache)
        if labels.dim() < 2:  # one label a row: a classifier
            return outputs["loss"] * (len(labels) / num_items), outputs
        return outputs["loss"] * ((labels[:, 1:] != IGNORE_INDEX).sum() / num_items), outputs
    outputs = model(**inputs, labels=labels, **cache, num_items_in_batch=num_items)
    return outputs["loss"], outputs


def has_fused_head(model: Any) -> bool:
    """Returns whether ``prepare_loss`` gave the base model trl's fused head."""
    return bool(getattr(_base_of(model), "has_fused_lm_head", False))


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _divides_by_items(model: Any) -> bool:
    """Whether a model takes the count of items; Gemma's of transformers 4.48 hands it to a decoder that refuses it."""
    base = _base_of(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    takers = [base] if decoder is None else [base, decoder]
    return "num_items_in_batch" in inspect.signature(type(base).forward).parameters or all(map(_takes_any, takers))


def _takes_any(module: Any) -> bool:
    parameters = inspect.signature(type(module).forward).parameters.values()
    return any(each.kind is each.VAR_KEYWORD for each in parameters)


def positions_to_keep(labels: Sequence[Sequence[int]]) -> int:
    """Returns how many last positions of a padded batch need logits: from just before its first supervised token.

    The logits of a prompt cost as much as those of an answer and are thrown away.
    """
    first = min(next(index for index, label in enumerate(row) if label != IGNORE_INDEX) for row in labels)
    return len(labels[0]) - max(0, first - 1)


def keeps_logits(model: Any) -> bool:
    """Returns whether the model can leave out the logits of a batch's first positions."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def row_losses(model: Any, batch: dict[str, Any], trainer: TrainerName) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns each row's summed negative log-likelihood, float32 ``(rows,)``, and its supervised tokens ``(rows,)``.

    Computed as a server computes: no autocast, logits upcast to float32; with trl's head without ever building them
    all, so that scoring a batch takes no more memory than training on it. A batch may begin with "past_key_values",
    which its attention mask covers.
    """
    import torch
    from torch.nn import functional

    names = ("input_ids", "attention_mask", "past_key_values")
    inputs: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    if trainer == "trl":
        outputs = model(**inputs, labels=batch["labels"], use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.float().sum(1), outputs.label_mask.sum(1)
    if "logits_to_keep" in batch:
        inputs["logits_to_keep"] = batch["logits_to_keep"]
    logits = model(**inputs, use_cache=False).logits
    targets = batch["labels"][:, -logits.shape[1] :][:, 1:]
    mask = targets != IGNORE_INDEX
    token_losses = functional.cross_entropy(logits[:, :-1][mask].float(), targets[mask], reduction="none")
    losses = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    losses[mask] = token_losses
    return losses.sum(1), mask.sum(1)


def autocast(
    candidate: Candidate, device_type: str, *, enabled: bool | None = None
) -> contextlib.AbstractContextManager[Any]:
    """Returns the mixed-precision context of a training forward: on for 16-bit bases, off for float32.

    ``enabled`` says so of a loop that is not ours; None means autopeft's own rule.
    """
    import torch

    from autopeft.engine.base import torch_dtype

    wanted = uses_autocast(candidate) if enabled is None else enabled and candidate.dtype != "float32"
    return torch.autocast(device_type, torch_dtype(candidate.dtype) if wanted else None, enabled=wanted)


def uses_autocast(candidate: Candidate) -> bool:
    """Returns whether training runs in mixed precision: a 16-bit base with float32 trainable weights."""
    return candidate.dtype != "float32" and candidate.adapter_dtype == "float32"
