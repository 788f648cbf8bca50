"""Figures as texts for people; a missing figure is said, never shown as zero."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

from autopeft.errors import InvalidInputError
from autopeft.profiling.model import resolve_target_modules
from autopeft.spaces import TARGET_CHOICES
from autopeft.specs import Candidate, Comparison, ModelSpec
from autopeft.units import GIB, format_duration

NOT_MEASURED = "not measured"
NOT_APPLICABLE = "-"
_NAMES = {"untouched-base": "untouched base model", "plain-lora": "plain LoRA recipe", "winner": "winner"}


def format_loss(loss: float | None) -> str:
    """Returns a loss with four decimals; a diverged one is ``not finite``."""
    if loss is None:
        return NOT_MEASURED
    return f"{loss:.4f}" if math.isfinite(loss) else "not finite"


def format_interval(comparison: Comparison | None) -> str:
    """Returns a paired difference with its 95 % interval: ``-0.0512 [-0.0614, -0.0410]``."""
    if comparison is None:
        return NOT_MEASURED
    return f"{comparison.difference:+.4f} [{comparison.low:+.4f}, {comparison.high:+.4f}]"


def format_rate(rate: float) -> str:
    """Returns a learning rate as people write it: ``2e-4``, ``3.16e-4``."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_size(size_bytes: int | None) -> str:
    """Returns bytes in GiB with two decimals, the unit left to the heading."""
    return NOT_MEASURED if size_bytes is None else f"{size_bytes / GIB:.2f}"


def format_seconds(seconds: float | None) -> str:
    """Returns a duration for people."""
    return NOT_MEASURED if seconds is None else format_duration(seconds)


def format_share(share: float) -> str:
    """Returns a share as per cent: ``12.5 %``."""
    return f"{100 * share:.1f} %"


def format_optional(value: float | int | str | None) -> str:
    """Returns a setting; None means that the method has no such setting."""
    return NOT_APPLICABLE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def display_name(name: str) -> str:
    """Returns a compared model's name for people; an unknown name stays as it is."""
    return _NAMES.get(name, name)


def target_alias(candidate: Candidate, model: ModelSpec) -> str | None:
    """Returns the alias that means exactly the candidate's target modules; None if no alias does."""
    for alias in TARGET_CHOICES:
        # A model without a layer of some alias (no MLP, say) is no error here: the alias is just not the answer.
        with contextlib.suppress(InvalidInputError):
            if resolve_target_modules(model, (alias,)) == candidate.target_modules:
                return alias
    return None


def target_label(candidate: Candidate, model: ModelSpec) -> str:
    """Returns the alias that means the candidate's target modules, or the modules shortened: ``q,v``."""
    if not candidate.target_modules:
        return "all weights"
    return target_alias(candidate, model) or ",".join(name.removesuffix("_proj") for name in candidate.target_modules)


def candidate_label(candidate: Candidate) -> str:
    """Returns a candidate in a few words: ``dora r=16, learning rate 2e-4, nf4``."""
    rank = "" if candidate.r is None else f" r={candidate.r}"
    base = "" if candidate.quantization == "none" else f", {candidate.quantization}"
    return f"{candidate.method}{rank}, learning rate {format_rate(candidate.learning_rate)}{base}"


def batch_label(candidate: Candidate) -> str:
    """Returns batch times accumulation: ``4x8``."""
    return f"{candidate.per_device_batch_size}x{candidate.gradient_accumulation_steps}"


def joined(names: Iterable[str]) -> str:
    """Returns names separated by commas, or a dash for none."""
    return ", ".join(names) or NOT_APPLICABLE
