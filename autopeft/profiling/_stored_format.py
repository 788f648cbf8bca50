"""Reads how a checkpoint is already quantized, and looks up what that means for training."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autopeft.errors import ModelError
from autopeft.resources import read_record, resource_folder
from autopeft.specs import Quantization, StoredFormat

_FACTS = "stored_formats.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    title: str
    base: Quantization
    priced_as: Quantization
    packages: tuple[str, ...] = ()
    trains: tuple[str, ...] = ()
    refuses: dict[str, str] = field(default_factory=dict)
    why_none: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    source: str
    checked: datetime.date
    formats: dict[str, _Facts]


def stored_format(config: Mapping[str, Any], where: str) -> StoredFormat | None:
    """Returns how the weights beside a config.json are quantized; None if they are not.

    Raises:
        ModelError: if ``quantization_config`` is no object or does not name its method.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return None
    if not isinstance(settings, dict) or not isinstance(settings.get("quant_method", ""), str):
        raise ModelError(
            f"{where}: quantization_config must be an object with a text quant_method, not {settings!r:.80}"
        )
    name = _name(settings, where)
    facts = _facts().get(name) or _unknown(name)
    return StoredFormat(
        name=name,
        title=facts.title,
        bits=_bits(name, settings),
        base=facts.base,
        priced_as=facts.priced_as,
        double_quantization=settings.get("bnb_4bit_use_double_quant") is True,
        packages=facts.packages,
        trains=facts.trains,
        refuses=facts.refuses,
        why_none=facts.why_none,
    )


def format_note(found: StoredFormat) -> str:
    """Returns what a reader of the profile must know of the format."""
    bits = "" if found.bits is None else f", {found.bits:g} bits"
    if found.why_none is not None:
        return (
            f"the checkpoint is quantized ({found.title}{bits}), and nothing can be trained over it: {found.why_none}"
        )
    needs = f"; loading it takes {' and '.join(found.packages)}" if found.packages else ""
    tried = "" if found.base != "none" else ". This was read in peft's source and not tried by this project"
    return f"the checkpoint is quantized ({found.title}{bits}); adapters train over it as it is{needs}{tried}"


def known_formats() -> tuple[str, ...]:
    """Returns the names of the formats whose facts are known, in alphabetical order."""
    return tuple(sorted(_facts()))


def _facts() -> dict[str, _Facts]:
    return read_record(resource_folder("profiles") / _FACTS, _Table).formats


def _unknown(name: str) -> _Facts:
    reason = f"whether peft trains over {name!r} weights is not known here; give the checkpoint that is not quantized"
    return _Facts(title=name, base="none", priced_as="none", why_none=reason)


def _name(settings: Mapping[str, Any], where: str) -> str:
    """Returns ``quant_method``; old bitsandbytes checkpoints leave it out and state ``load_in_4bit``."""
    method = settings.get("quant_method")
    if settings.get("load_in_4bit") is True:
        kind = settings.get("bnb_4bit_quant_type", "fp4")
        if kind not in ("nf4", "fp4"):
            raise ModelError(f"{where}: quantization_config.bnb_4bit_quant_type is {kind!r}; allowed: 'nf4', 'fp4'")
        return f"bitsandbytes-{kind}"
    if settings.get("load_in_8bit") is True:
        return "bitsandbytes-int8"
    if method is None:
        raise ModelError(f"{where}: quantization_config names no quant_method, so that its weights are unknown")
    return str(method)


def _bits(name: str, settings: Mapping[str, Any]) -> float | None:
    fixed = {"bitsandbytes-nf4": 4, "bitsandbytes-fp4": 4, "bitsandbytes-int8": 8, "fp8": 8, "mxfp4": 4, "nvfp4": 4}
    if name in fixed:
        return fixed[name]
    stated = settings.get("bits", settings.get("w_bit", settings.get("nbits")))
    if name == "compressed-tensors":
        stated = _group_bits(settings)
    if name == "hqq":
        stated = _hqq_bits(settings)
    return stated if isinstance(stated, int | float) and 0 < stated <= 32 else None


def _hqq_bits(settings: Mapping[str, Any]) -> Any:
    """Returns the bits that transformers' HqqConfig writes, two levels deep."""
    inner = settings.get("quant_config")
    weights = inner.get("weight_quant_params") if isinstance(inner, dict) else None
    return weights.get("nbits") if isinstance(weights, dict) else settings.get("nbits")


def _group_bits(settings: Mapping[str, Any]) -> Any:
    groups = settings.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    return weights.get("num_bits") if isinstance(weights, dict) else None
