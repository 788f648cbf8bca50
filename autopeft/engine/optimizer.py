"""The optimizers, by transformers' names."""

from __future__ import annotations

from typing import Any

from autopeft.errors import InvalidInputError
from autopeft.methods import get_method
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
    groups = _parameter_groups(model, candidate)
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


def _parameter_groups(model: Any, candidate: Candidate) -> list[dict[str, Any]]:
    """Returns the trainable parameters by learning rate and weight decay.

    Vectors (norms, biases, magnitudes) are never decayed; methods may train some parameters faster than others.
    """
    method = get_method(candidate.method)
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = candidate.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((method.rate_factor(candidate, name), decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr": factor * candidate.learning_rate}
        for (factor, decay), parameters in groups.items()
    ]
