"""Why a configuration needs what it needs, and what would make it need less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

QualityRisk = Literal["none", "small", "some"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """One change that saves memory, and what it costs.

    Attributes:
        name: stable name: "activation_checkpointing".
        change: what to do, in a few words.
        settings: fields of the candidate that change, with their new values.
        quality_risk: "none" computes the same up to rounding; "small" rounds more coarsely; "some" trains another
            thing: less text, a smaller adapter, another method.
        cost: one sentence: what one pays.
        required_bytes: what must be free on the device after this change alone.
        saved_bytes: how much less that is.
        seconds_ratio: seconds for the same rows as a multiple of before; None where the device's speed is unknown.
        fits: whether this change alone makes it fit.
    """

    name: str
    change: str
    settings: dict[str, object]
    quality_risk: QualityRisk
    cost: str
    required_bytes: int
    saved_bytes: int
    seconds_ratio: float | None
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Levers pulled together.

    Attributes:
        levers: their changes, the cheapest first; none can be left out if it fits.
        settings: fields of the candidate that change, with their new values.
        required_bytes: what must be free on the device with all of them.
        seconds_ratio: seconds for the same rows as a multiple of before; None where the device's speed is unknown.
        fits: whether they make it fit; otherwise they are all levers that save 1 % and more.
    """

    levers: tuple[str, ...]
    settings: dict[str, object]
    required_bytes: int
    seconds_ratio: float | None
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer to "why does it need so much, and what would help".

    Attributes:
        required_bytes: what must be free on the device.
        available_bytes: what is free, or may be used.
        fits: whether the first is within the second.
        dominant: sentences on what sets the peak, the largest component first.
        quantization: sentences on why quantizing the base does not help; empty where it does.
        levers: changes that save memory, the cheapest first.
        combination: the cheapest levers that make it fit together; None where it fits already, or no lever helps.
    """

    required_bytes: int
    available_bytes: int
    fits: bool
    dominant: tuple[str, ...]
    quantization: tuple[str, ...]
    levers: tuple[Lever, ...]
    combination: Combination | None
