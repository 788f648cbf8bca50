"""What a configuration is predicted to need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Predicted memory and time of one training step on one device.

    Attributes:
        peak_memory_bytes: maximum allocated.
        peak_reserved_bytes: maximum that the caching allocator holds.
        overhead_bytes: context, libraries, fragmentation: ``required_bytes - peak_memory_bytes``.
        required_bytes: what must be free on the device.
        components: bytes by name at the peak ("base_weights", "adapter_weights", "gradients", "optimizer_states",
            "activations", "logits", "temporaries"); they sum to ``peak_memory_bytes``.
        phases: peak bytes by phase ("load", "forward", "backward", "optimizer").
        trainable_parameters: how many parameters require gradients.
        seconds_per_step: one optimizer step; None where the device's speed is unknown.
        source: how the figures were found.
        relative_error: half-width of the stated interval, as a share of the peak.
        assumptions: what the figures hold for, one sentence each.
    """

    peak_memory_bytes: int
    peak_reserved_bytes: int
    overhead_bytes: int
    required_bytes: int
    components: dict[str, int]
    phases: dict[str, int]
    trainable_parameters: int
    seconds_per_step: float | None
    source: Literal["closed_form", "traced", "calibrated"]
    relative_error: float
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """Predicted time of one optimizer step.

    Attributes:
        seconds_per_step: one optimizer step, accumulation included; None where the device's speed is unknown.
        flops_per_step: floating-point operations of one optimizer step.
        assumptions: one sentence each.
    """

    seconds_per_step: float | None
    flops_per_step: float
    assumptions: tuple[str, ...] = ()
