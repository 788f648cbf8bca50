"""Finds the closed form that belongs to a config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from autopeft.errors import ModelError
from autopeft.profiling._built import built_shape
from autopeft.profiling._decoders import LLAMA_KIND, gpt2_kind, llama_kind
from autopeft.profiling._encoders import ENCODERS, encoder
from autopeft.profiling._experts import every_layer_has_experts
from autopeft.profiling._shapes import Shape

_FORMS: dict[str, Callable[[Mapping[str, Any], str], Shape]] = {
    **dict.fromkeys(LLAMA_KIND, llama_kind),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), gpt2_kind),
    **dict.fromkeys(ENCODERS, encoder),
}


def supported_model_types() -> tuple[str, ...]:
    """Returns the model types whose layers are known in closed form, in alphabetical order."""
    return tuple(sorted(_FORMS))


def text_config(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], str | None]:
    """Returns the part of a config.json that describes the language model, and the type of the multimodal model.

    A multimodal model holds it as ``text_config``; of others the whole is the language model, and the type None.

    Raises:
        ModelError: if ``text_config`` is no object.
    """
    inner = config.get("text_config")
    if inner is None or str(config.get("model_type")) in _FORMS:
        return dict(config), None
    if not isinstance(inner, dict):
        raise ModelError(f"{where}: text_config must be an object, not {repr(inner)[:60]}")
    return inner, str(config.get("model_type"))


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """Returns the shape that a config.json implies; ``where`` names its origin in errors.

    Raises:
        ModelError: if the model type is missing or unknown, or a field is wrong.
    """
    model_type = config.get("model_type")
    known = ", ".join(supported_model_types())
    if not isinstance(model_type, str):
        raise ModelError(
            f"{where} states no model_type, so that its layers are unknown; supported model types: {known}"
        )
    if config.get("add_cross_attention") or config.get("is_encoder_decoder"):
        raise ModelError(f"{where}: encoder-decoder models are not supported; supported model types: {known}")
    if model_type in _FORMS and every_layer_has_experts(config):
        return _noting_own_code(_FORMS[model_type](config, where), config)
    built = built_shape(config, where)
    if built is not None:
        return _noting_own_code(built, config)
    reason = "is not known here, nor as a causal language model or classifier to an installed transformers"
    if "auto_map" in config:
        reason = (
            f"is built by Python code of its own repository ({_own_code(config)}), and transformers has no class for "
            "it. autopeft never runs such code (trust_remote_code), which would act with your rights: take a version "
            "of the model that transformers knows (often its name ends in -hf), or convert it"
        )
    raise ModelError(
        f"{where}: model_type {model_type!r} {reason}; known without transformers (autopeft[train]): {known}"
    )


def check_stated_size(config: Mapping[str, Any], where: str) -> None:
    """Checks that a whole config.json states its width and depth, whose defaults are some other model's.

    Parts of a config.json may leave them out: transformers writes what differs from the default only.

    Raises:
        ModelError: naming the keys that are missing.
    """
    wanted = (("hidden_size", "n_embd", "d_model", "dim"), ("num_hidden_layers", "n_layer", "n_layers", "num_layers"))
    missing = [names[0] for names in wanted if not any(name in config for name in names)]
    if missing and str(config.get("model_type")) in _FORMS:
        raise ModelError(f"{where} states no {' and no '.join(missing)}; without it the model's size is unknown")


def _own_code(config: Mapping[str, Any]) -> str:
    """Returns the first class that ``auto_map`` names."""
    named = config["auto_map"]
    first = next(iter(named.values()), None) if isinstance(named, dict) else None
    return f"auto_map: {str(first)[:80]}" if first else "auto_map"


def _noting_own_code(shape: Shape, config: Mapping[str, Any]) -> Shape:
    if "auto_map" not in config:
        return shape
    note = (
        f"config.json names Python code of the repository too ({_own_code(config)}): it is not run, transformers' own "
        f"class for {shape.model_type!r} takes its place"
    )
    return replace(shape, notes=(*shape.notes, note))
