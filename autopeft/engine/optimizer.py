"""The optimizers, by transformers' names."""

from __future__ import annotations

from typing import Any

from autopeft.errors import InvalidInputError
from autopeft.specs import Candidate


def make_optimizer(model: Any, candidate: Candidate, *, foreach: bool | None = None) -> Any:
    """Returns the candidate's optimizer over the trainable parameters.

    Args:
        model: with its adapter injected.
        candidate: gives optimizer, learning rate and weight decay.
        foreach: None lets torch choose (yes on CUDA, no on CPU); a trace sets what the target device would choose.
    """
    import torch

    if candidate.optimizer == "lorafa":
        return _lorafa_optimizer(model, candidate)
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


def _lorafa_optimizer(model: Any, candidate: Candidate) -> Any:
    """LoRA-FA (arXiv 2308.03303) trains B alone: peft's function freezes every A of the model it is given.

    Raises:
        InvalidInputError: if the installed peft lacks it, or the model has no LoRA adapter.
    """
    try:
        from peft.optimizers import create_lorafa_optimizer
    except ImportError as error:
        raise InvalidInputError(
            "optimizer 'lorafa' needs peft.optimizers.create_lorafa_optimizer, which the installed peft lacks; "
            "install peft 0.16 or newer, or choose another optimizer"
        ) from error
    adapter: Any = model.peft_config["default"] if hasattr(model, "peft_config") else None
    if getattr(adapter, "lora_alpha", None) is None or not isinstance(getattr(adapter, "r", None), int):
        raise InvalidInputError(
            f"optimizer 'lorafa' trains LoRA's second factor, and method {candidate.method!r} has none; choose lora or "
            "another optimizer"
        )
    rate, decay = candidate.learning_rate, candidate.weight_decay
    return create_lorafa_optimizer(model, adapter.r, adapter.lora_alpha, rate, decay)


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
