"""Says of several rejected variants what they share once."""

from __future__ import annotations

from collections.abc import Iterable


def grouped_lines(entries: Iterable[tuple[str, str, str]]) -> list[str]:
    """Returns one line a reason, in the order of the first that has it: ``dora, lora (none, nf4): why``.

    Args:
        entries: method, variant ("" for none) and reason of each.
    """
    by_reason: dict[str, dict[str, list[str]]] = {}
    for method, variant, reason in entries:
        by_reason.setdefault(reason, {}).setdefault(method, []).append(variant)
    return [f"{_named(methods)}: {reason}" for reason, methods in by_reason.items()]


def _named(methods: dict[str, list[str]]) -> str:
    alike: dict[str, list[str]] = {}
    for method, variants in methods.items():
        alike.setdefault(", ".join(filter(None, variants)), []).append(method)
    return "; ".join(", ".join(names) + (f" ({variants})" if variants else "") for variants, names in alike.items())
