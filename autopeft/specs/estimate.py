"""What a configuration is predicted to need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autopeft.specs.epoch import EpochPeaks


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Predicted memory and time of one training step on one device.

    Attributes:
        peak_memory_bytes: maximum allocated.
        peak_reserved_bytes: maximum that the caching allocator holds on a device with memory to spare; it gives part
            of it back when memory is short.
        overhead_bytes: context, libraries, fragmentation: ``required_bytes - peak_memory_bytes``.
        required_bytes: what must be free on the device.
        components: bytes by name at the peak ("base_weights", "adapter_weights", "gradients", "optimizer_states",
            "activations", "logits", "temporaries"); they sum to ``peak_memory_bytes``.
        phases: peak bytes by phase ("load", "forward", "backward", "optimizer"; "init" where a method computes its
            initial values on the device).
        phase_components: phase -> components at its own peak; empty where only the whole peak is known.
        peak_operation: the operation that sets the peak and its module; empty where it is unknown.
        trainable_parameters: how many parameters require gradients.
        seconds_per_step: one optimizer step; None where the device's speed is unknown.
        source: how the figures were found.
        relative_error: half-width of the stated interval, as a share of the peak.
        assumptions: what the figures hold for, one sentence each.
        versions: library -> version that the figures hold for.
        context_bytes: of ``required_bytes``, the device's context and libraries, outside torch's allocator; None where
            they were not told apart.
        epoch_peaks: how the peak differs between the batches of an epoch; None without a data set.
        uncorrected: the prediction before this machine's measurements corrected it; None if none did.
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
    phase_components: dict[str, dict[str, int]] = field(default_factory=dict)
    peak_operation: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    epoch_peaks: EpochPeaks | None = None
    context_bytes: int | None = None
    uncorrected: MemoryEstimate | None = None

    @property
    def context(self) -> int:
        """Bytes of context and libraries: ``context_bytes``, or what ``required_bytes`` has beyond the reserved."""
        if self.context_bytes is not None:
            return self.context_bytes
        return max(0, self.required_bytes - self.peak_reserved_bytes)


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
