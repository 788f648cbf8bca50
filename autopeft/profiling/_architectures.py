"""Finds the closed form that belongs to a config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autopeft.errors import ModelError
from autopeft.profiling._built import built_shape
from autopeft.profiling._decoders import LLAMA_KIND, gpt2_kind, llama_kind
from autopeft.profiling._encoders import ENCODERS, encoder
from autopeft.profiling._shapes import Shape

_FORMS: dict[str, Callable[[Mapping[str, Any], str], Shape]] = {
    **dict.fromkeys(LLAMA_KIND, llama_kind),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), gpt2_kind),
    **dict.fromkeys(ENCODERS, encoder),
}


def supported_model_types() -> tuple[str, ...]:
    """Returns the model types whose layers are known in closed form, in alphabetical order."""
    return tuple(sorted(_FORMS))


def text_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the part of a config.json that describes the language model, and notes on what was left out.

    A multimodal model holds it as ``text_config``; only that part is profiled.
    """
    inner = config.get("text_config")
    if config.get("model_type") in _FORMS or not isinstance(inner, dict):
        return dict(config), ()
    note = (
        f"only the text part ({inner.get('model_type')}) of this {config.get('model_type')} model is profiled: its "
        "other parts are not counted, and layer paths are those of the text model alone"
    )
    return inner, (note,)


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
    if model_type in _FORMS:
        return _FORMS[model_type](config, where)
    built = None if "auto_map" in config else built_shape(config, where)
    if built is not None:
        return built
    reason = (
        "needs code from its repository (trust_remote_code), which autopeft never runs"
        if "auto_map" in config
        else "is not known here, nor as a causal language model or classifier to an installed transformers"
    )
    raise ModelError(
        f"{where}: model_type {model_type!r} {reason}; known without transformers (autopeft[train]): {known}"
    )
