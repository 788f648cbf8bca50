"""The optimizers, by transformers' names."""

from __future__ import annotations

from typing import Any

from autopeft.specs import Candidate


def make_optimizer(model: Any, candidate: Candidate, *, foreach: bool | None = None) -> Any:
    """Returns the candidate's optimizer over the trainable parameters.

    Args:
        model: with its adapter injected.
        candidate: gives optimizer, learning rate and weight decay.
        foreach: None lets torch choose (yes on CUDA, no on CPU); a trace sets what the target device would choose.
    """
    import torch

    groups = _parameter_groups(model, candidate.weight_decay)
    rate = candidate.learning_rate
    if candidate.optimizer == "adamw_torch":
        return torch.optim.AdamW(groups, lr=rate, foreach=foreach)
    if candidate.optimizer == "adamw_torch_fused":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if candidate.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, foreach=foreach)
    if candidate.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    return _bitsandbytes_optimizer(groups, candidate)


def _bitsandbytes_optimizer(groups: list[dict[str, Any]], candidate: Candidate) -> Any:
    from bitsandbytes import optim

    classes = {
        "adamw_bnb_8bit": optim.AdamW8bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
        "paged_adamw_32bit": optim.PagedAdamW32bit,
    }
    return classes[candidate.optimizer](groups, lr=candidate.learning_rate)


def _parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Returns the trainable parameters, vectors (norms, biases, magnitudes) apart since they are never decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if weight_decay == 0.0:
        return [{"params": trained, "weight_decay": 0.0}]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
