"""Prices one configuration that a person names, with the method's options or with a saved adapter_config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from autopeft.errors import AutoPeftError, InvalidInputError, UnknownNameError
from autopeft.memory.closed_form import covers, estimate_memory, unknown_step
from autopeft.methods import get_method
from autopeft.profiling.model import resolve_target_modules
from autopeft.spaces import all_spaces
from autopeft.specs import (
    Attention,
    Candidate,
    Device,
    Dtype,
    MemoryEstimate,
    ModelSpec,
    Optimizer,
    Quantization,
    StepStyle,
    TrainerName,
)

DEFAULT_RANK = 16

UNPRICED_KEYS = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "exclude_modules",
                 "trainable_token_indices", "target_parameters", "layer_replication", "lora_bias", "use_qalora",
                 "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "megatron_config",
                 "monteclora_config", "velora_config")  # fmt: skip
"""Settings of peft's LoraConfig and AdaLoraConfig that the closed form has no term for."""

INITIALIZATION_KEYS = ("eva_config", "corda_config", "loftq_config", "lora_ga_config")
"""Settings that decide initial values only, which take no memory in training."""

_PRICED_TYPES = ("LORA", "ADALORA")
_CLOSED_SETS: dict[str, Any] = {
    "quantization": Quantization,
    "dtype": Dtype,
    "adapter_dtype": Dtype,
    "attention": Attention,
    "optimizer": Optimizer,
    "trainer": TrainerName,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedConfig:
    """An adapter_config.json.

    Attributes:
        name: the file, for errors.
        peft_type: peft's name of the configuration: "LORA".
        settings: method, r, lora_alpha, target_modules and what else the closed form knows, in our terms.
        text: the configuration as JSON text, from which peft builds the adapter in a trace.
        needs_trace: why only a trace can price it; None where the closed form can.
    """

    name: str
    peft_type: str
    settings: dict[str, Any]
    text: str
    needs_trace: str | None


def explicit_candidate(model: ModelSpec, adapter: Mapping[str, Any], rest: Candidate) -> Candidate:
    """Returns the complete candidate of explicit options.

    Args:
        model: resolves the target modules.
        adapter: "method", "r", "lora_alpha", "target_modules", of which None takes the default; other settings of the
            adapter ("lora_dropout", "options") where a saved configuration has them.
        rest: everything else; its ``adapter_dtype`` None takes float32.

    Raises:
        UnknownNameError: for an unknown method, target module, optimizer, dtype, ...
        InvalidInputError: for adapter options of a method without an adapter, or a number out of range.
    """
    method = get_method(adapter["method"])
    _refuse_unknown_choices(rest)
    _refuse_impossible_numbers(
        {**adapter, "batch_size": rest.per_device_batch_size, "sequence_length": rest.max_length}
    )
    if not method.has_adapter:
        given = [name for name in ("r", "lora_alpha", "target_modules") if adapter[name] is not None]
        given += ["adapter_dtype"] if rest.adapter_dtype is not None else []
        if given:
            raise InvalidInputError(f"method {method.name!r} has no adapter; leave out {', '.join(given)}")
        return replace(rest, method=method.name)
    r = _rank_of(method.name, adapter["r"])
    alpha = adapter["lora_alpha"]
    if alpha is None and r is not None:
        alpha = method.lora_alpha(r, all_spaces()[method.name].scaling or 1.0)
    targets = adapter["target_modules"]
    settings = dict(adapter) | {
        "r": r,
        "lora_alpha": None if alpha is None else float(alpha),
        "target_modules": resolve_target_modules(model, ["all-linear"] if targets is None else targets),
        "adapter_dtype": rest.adapter_dtype or "float32",
    }
    candidate = replace(rest, **settings)
    return replace(candidate, options=method.complete_options(candidate))


def _rank_of(method: str, asked: int | None) -> int | None:
    """Returns the rank of an adapter; None for a method without one."""
    if "r" in all_spaces()[method].parameters:
        return DEFAULT_RANK if asked is None else asked
    if asked is not None:
        raise InvalidInputError(f"method {method!r} has no rank; leave out r")
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Whether and how an estimate is traced.

    Attributes:
        wanted: trace even where the closed form could price it.
        style: how the loop runs the step; the closed form knows autopeft's own only.
        environment: virtual environment, or its python, whose libraries are traced; None means this one's.
    """

    wanted: bool = False
    style: StepStyle = field(default_factory=StepStyle)
    environment: str | None = None

    def reason(self, saved: SavedConfig | None, candidate: Candidate, model: ModelSpec) -> str | None:
        """Returns why only a trace can answer; None if the closed form can."""
        if saved is not None and saved.needs_trace:
            return saved.needs_trace
        if self.environment is not None:
            return "it is asked for the libraries of another environment"
        if self.style != StepStyle():
            return "the closed form knows autopeft's own loop only"
        if candidate.packing:
            return "the closed form knows no packed rows"
        if candidate.optimizer == "lorafa":
            return "the closed form does not know LoRA-FA's optimizer"
        return covers(model) or unknown_step(candidate.method)


def estimate_explicit(
    candidate: Candidate, model: ModelSpec, device: Device, *, saved: SavedConfig | None, tracing: Tracing
) -> MemoryEstimate:
    """Returns the estimate of one configuration; traced if asked for, or if only a trace can price it.

    Raises:
        InvalidInputError: if the method cannot train the candidate on this model and device.
        MissingExtraError: for a trace without the training stack.
    """
    problem = get_method(candidate.method).why_not(candidate, model, device)
    if problem is not None:
        raise InvalidInputError(problem)
    reason = tracing.reason(saved, candidate, model)
    if saved is not None and (tracing.wanted or reason):
        candidate = replace(candidate, options={**candidate.options, "peft_config": saved.text})
    if not (tracing.wanted or reason):
        estimate = estimate_memory(candidate, model, device, sequence_length=candidate.max_length)
    else:
        estimate = _traced(candidate, model, device, saved, tracing)
    because = () if reason is None or tracing.wanted else (f"traced, since {reason}",)
    notes = (*because, *_unsupported(candidate, model, device))
    return replace(estimate, assumptions=(*notes, *estimate.assumptions))


def _traced(
    candidate: Candidate, model: ModelSpec, device: Device, saved: SavedConfig | None, tracing: Tracing
) -> MemoryEstimate:
    from autopeft.memory.trace import trace_memory

    try:
        return trace_memory(
            candidate,
            model,
            device,
            sequence_length=candidate.max_length,
            style=tracing.style,
            environment=tracing.environment,
        )
    except AutoPeftError:
        raise
    except Exception as error:
        if saved is None:
            raise
        # Somebody else's configuration may not fit the model, or need data or weights, which fake tensors do not have.
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InvalidInputError(
            f"{saved.name} cannot be traced with peft's {saved.peft_type} adapter ({why})"
        ) from error


def _unsupported(candidate: Candidate, model: ModelSpec, device: Device) -> tuple[str, ...]:
    """Returns what the figures take for granted although this device or model does not offer it."""
    notes = []
    if candidate.dtype == "bfloat16" and not device.supports_bfloat16:
        instead = "float16" if device.supports_float16 else "float32"
        notes.append(f"{device.name} does not support bfloat16; use --dtype {instead}")
    if candidate.dtype == "float16" and not device.supports_float16:
        notes.append(f"{device.name} does not support float16; use --dtype float32")
    if candidate.attention == "flash_attention_2" and not device.supports_flash_attention:
        notes.append(f"{device.name} does not support flash attention; use --attention sdpa")
    limit = model.context_length
    if limit is not None and candidate.max_length > limit:
        notes.append(f"rows of {candidate.max_length} tokens are longer than the {limit} that {model.id} reads")
    return tuple(notes)


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
    buildable = _without_initial_values(content)
    unpriced = [key for key in UNPRICED_KEYS if buildable.get(key)]
    if content.get("bias", "none") != "none":
        unpriced.append("bias")
    if kind not in _PRICED_TYPES:
        why = f"the closed form does not know the peft type {kind}"
    elif unpriced and why is None:
        why = f"the closed form has no term for {', '.join(unpriced)}"
    return SavedConfig(
        name=str(path),
        peft_type=kind,
        settings={"method": _method(content), "target_modules": targets, **_adapter_settings(content, str(path))},
        text=json.dumps(buildable),
        needs_trace=why,
    )


def _adapter_settings(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns rank, alpha and dropout; what the file leaves out has peft's default (LoraConfig, AdaLoraConfig)."""
    kind = content["peft_type"].upper()
    if kind not in _PRICED_TYPES:
        return {"r": None, "lora_alpha": None}
    rank = content.get("target_r" if kind == "ADALORA" else "r", 8)
    settings = {"r": rank, "lora_alpha": content.get("lora_alpha", 8), "lora_dropout": content.get("lora_dropout", 0.0)}
    options = {"init_r": content.get("init_r", 12)} if kind == "ADALORA" else {}
    for name, value in {**settings, **options}.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInputError(f"{where}: {name} must be a number, not {value!r}")
    return {**settings, "lora_alpha": float(settings["lora_alpha"]), "options": options}


def _without_initial_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration without what needs data, weights or a finished training to be built."""
    # peft looks for the named base, which a trace does not read.
    ignored = (*INITIALIZATION_KEYS, "base_model_name_or_path")
    plain = {key: value for key, value in content.items() if key not in ignored}
    if content["peft_type"].upper() == "ADALORA":
        # The result of a training: which of the init_r ranks are masked. They take memory all the same.
        plain.pop("rank_pattern", None)
    return plain | {"init_lora_weights": True} if isinstance(content.get("init_lora_weights"), str) else plain


def _refuse_unknown_choices(candidate: Candidate) -> None:
    for name, choices in _CLOSED_SETS.items():
        value = getattr(candidate, name)
        if value not in get_args(choices) and not (name == "adapter_dtype" and value is None):
            raise UnknownNameError(name, str(value), get_args(choices))


def _refuse_impossible_numbers(numbers: Mapping[str, Any]) -> None:
    for name in ("r", "batch_size", "sequence_length"):
        value = numbers[name]
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InvalidInputError(f"{name} must be a whole number of at least 1, not {value!r}")
    alpha = numbers["lora_alpha"]
    if alpha is not None and not 0 < alpha < math.inf:
        raise InvalidInputError(f"lora_alpha must be a number above zero, not {alpha!r}")


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
