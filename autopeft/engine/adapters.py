"""Builds peft's configuration from a candidate and injects the adapter."""

from __future__ import annotations

import json
from typing import Any

from autopeft.engine.base import torch_dtype
from autopeft.errors import InvalidInputError
from autopeft.methods import AdapterSpec, get_method
from autopeft.specs import Candidate

ADAPTER = "default"
"""peft's name of the one adapter."""


def peft_config(candidate: Candidate, steps: int, task_type: str = "CAUSAL_LM") -> Any:
    """Returns the peft configuration of a candidate trained for ``steps`` optimizer steps; None without an adapter.

    The option "peft_config" holds a saved adapter_config.json as text and takes the place of the method's own.
    """
    if "peft_config" in candidate.options:
        return saved_peft_config(str(candidate.options["peft_config"]))
    spec = get_method(candidate.method).adapter_spec(candidate, steps)
    if spec is None:
        return None
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(spec.peft_type)
    if config_class is None:
        raise InvalidInputError(
            f"method {candidate.method!r} asks for the peft type {spec.peft_type!r}, which the installed peft lacks"
        )
    return config_class(
        task_type=task_type, target_modules=list(candidate.target_modules), **spec.settings, **_parts(spec)
    )


def _parts(spec: AdapterSpec) -> dict[str, Any]:
    import peft

    return {name: getattr(peft, class_name)(**settings) for name, (class_name, settings) in spec.parts.items()}


def saved_peft_config(text: str) -> Any:
    """Returns the peft configuration of an adapter_config.json.

    Raises:
        InvalidInputError: if the installed peft does not know its type or one of its settings.
    """
    from peft import PeftConfig

    about = ("inference_mode", "peft_version")  # no settings of training; older versions do not know the second
    content = {key: value for key, value in json.loads(text).items() if key not in about}
    try:
        return PeftConfig.from_peft_type(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"the installed peft cannot build the adapter configuration of type {content.get('peft_type')!r}: {error}"
        ) from error


def inject(model: Any, candidate: Candidate, steps: int, task_type: str = "CAUSAL_LM") -> Any:
    """Returns the model with the candidate's adapter, or with every parameter trainable if the method has none.

    The adapter's random values come from torch's global generator: seed it before.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training

    if candidate.quantization != "none" and candidate.prepare_kbit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = peft_config(candidate, steps, task_type)
    if config is None:
        return model.requires_grad_(True)
    if "peft_config" in candidate.options:  # somebody else's adapter: peft decides what it casts to float32
        return get_peft_model(model, config, autocast_adapter_dtype=candidate.adapter_dtype == "float32")
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    _freeze_divisors(adapted)
    if not candidate.options.get("dense_norm") and _has_variants():
        from autopeft.engine.factored_dora import use_factored_norms

        use_factored_norms(adapted)
    return cast_adapter(adapted, candidate)


def _has_variants() -> bool:
    """Returns whether the installed peft has the seam by which DoRA's forward is replaced: from 0.16 on."""
    from peft.tuners.lora import layer

    return hasattr(layer, "LoraVariant")


def _freeze_divisors(model: Any) -> None:
    """Keeps AdaLoRA's ``ranknum``, the divisor of its scaling, out of the training.

    peft 0.21 makes a new parameter of it, trainable by default, when it moves the adapter to another dtype or device.
    """
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def cast_adapter(model: Any, candidate: Candidate) -> Any:
    """Returns the model with its trainable parameters in the adapter's dtype."""
    assert candidate.adapter_dtype is not None, "a method with an adapter has an adapter dtype"
    dtype = torch_dtype(candidate.adapter_dtype)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return model


def enable_checkpointing(model: Any, *, reentrant: bool = False) -> None:
    """Makes the model recompute activations in backward, also where its inputs come from a frozen embedding.

    Args:
        model: with its adapter.
        reentrant: torch's older way, which some loops still take; a trace asks for it, autopeft does not train so.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
