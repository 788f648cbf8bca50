"""Prices one configuration that a person names, with the method's options or with a saved adapter_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft.errors import InvalidInputError
from autopeft.memory.closed_form import estimate_memory
from autopeft.methods import get_method
from autopeft.profiling.model import resolve_target_modules
from autopeft.spaces import all_spaces
from autopeft.specs import Candidate, Device, MemoryEstimate, ModelSpec

DEFAULT_RANK = 16
UNPRICED_LORA_KEYS = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "exclude_modules",
                   "trainable_token_indices", "target_parameters", "layer_replication", "lora_bias")  # fmt: skip
"""Settings of LoraConfig that the closed form has no term for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedConfig:
    """An adapter_config.json.

    Attributes:
        settings: method, r, lora_alpha and target_modules in our terms.
        text: the configuration as JSON text, from which peft builds the adapter in a trace.
        needs_trace: why only a trace can price it; None where the closed form can.
    """

    settings: dict[str, Any]
    text: str
    needs_trace: str | None


def explicit_candidate(model: ModelSpec, adapter: Mapping[str, Any], rest: Candidate) -> Candidate:
    """Returns the complete candidate of explicit options.

    Args:
        model: resolves the target modules.
        adapter: "method", "r", "lora_alpha", "target_modules"; None takes the default.
        rest: everything else.

    Raises:
        UnknownNameError: for an unknown method or target module.
        InvalidInputError: for adapter options of a method without an adapter.
    """
    method = get_method(adapter["method"])
    if not method.has_adapter:
        given = [name for name in ("r", "lora_alpha", "target_modules") if adapter[name] is not None]
        if given:
            raise InvalidInputError(f"method {method.name!r} has no adapter; leave out {', '.join(given)}")
        return replace(rest, method=method.name, adapter_dtype=None)
    r = DEFAULT_RANK if adapter["r"] is None else adapter["r"]
    alpha = adapter["lora_alpha"]
    if alpha is None:
        alpha = method.lora_alpha(r, all_spaces()[method.name].scaling or 1.0)
    targets = resolve_target_modules(model, adapter["target_modules"] or ["all-linear"])
    candidate = replace(rest, method=method.name, r=r, lora_alpha=alpha, target_modules=targets)
    return replace(candidate, options=method.complete_options(candidate))


def estimate_explicit(
    candidate: Candidate, model: ModelSpec, device: Device, *, saved: SavedConfig | None, trace: bool
) -> MemoryEstimate:
    """Returns the estimate of one configuration; traced if asked for, or if only a trace can price it.

    Raises:
        InvalidInputError: if the method cannot train the candidate on this model and device.
        MissingExtraError: for a trace without the training stack.
    """
    problem = get_method(candidate.method).why_not(candidate, model, device)
    if problem is not None:
        raise InvalidInputError(problem)
    needs_trace = saved.needs_trace if saved else None
    if saved is not None and (trace or needs_trace):
        candidate = replace(candidate, options={**candidate.options, "peft_config": saved.text})
    if not (trace or needs_trace):
        return estimate_memory(candidate, model, device, sequence_length=candidate.max_length)
    from autopeft.memory.trace import trace_memory

    estimate = trace_memory(candidate, model, device, sequence_length=candidate.max_length)
    notes = () if trace or needs_trace is None else (f"traced, since {needs_trace}",)
    return replace(estimate, assumptions=(*notes, *estimate.assumptions))


def read_peft_config(path: Path, model: ModelSpec) -> SavedConfig:
    """Returns a saved peft configuration.

    Raises:
        InvalidInputError: if the file is no adapter_config.json.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInputError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        raise InvalidInputError(f"{path} is no adapter_config.json: it names no peft_type")
    targets, why = _targets(content, model)
    kind = content["peft_type"].upper()
    settings = {"method": _method(content), "r": None, "lora_alpha": None, "target_modules": targets}
    if kind == "LORA":
        settings |= {"r": content.get("r"), "lora_alpha": content.get("lora_alpha")}
        unusual = [key for key in UNPRICED_LORA_KEYS if content.get(key)]
        why = why or (f"the closed form has no term for {', '.join(unusual)}" if unusual else None)
    elif kind == "ADALORA":
        settings |= {"r": content.get("target_r"), "lora_alpha": content.get("lora_alpha")}
    else:
        why = f"the closed form does not know the peft type {kind}"
    return SavedConfig(settings=settings, text=json.dumps(content), needs_trace=why)


def _method(content: Mapping[str, Any]) -> str:
    if content["peft_type"].upper() == "ADALORA":
        return "adalora"
    if content.get("use_dora"):
        return "dora"
    return "rslora" if content.get("use_rslora") else "lora"


def _targets(content: Mapping[str, Any], model: ModelSpec) -> tuple[list[str] | None, str | None]:
    """Returns the target modules in our terms, and why only a trace finds them, if so."""
    targets = content.get("target_modules")
    if targets == "all-linear":
        return None, None
    if isinstance(targets, list):
        known = {layer.name for layer in model.linear_layers}
        odd = [name for name in targets if name.rpartition(".")[2] not in known]
        return (None, f"{', '.join(odd)} are no linear layers") if odd else (targets, None)
    return None, f"target_modules {targets!r} is matched by peft itself"
