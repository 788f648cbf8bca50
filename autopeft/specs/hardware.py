"""What is known of the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DeviceKind = Literal["cuda", "rocm", "xpu", "mps", "cpu"]
PriceClass = Literal["consumer", "workstation", "datacenter", "computer"]
"""Who buys a device; "computer" stands for what is part of one: Apple's chips and processors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or the host processor where there is none.

    Attributes:
        name: exactly as the driver reports it.
        total_memory_bytes: as the driver reports it; a host processor's is the usable host memory (container limit).
        free_memory_bytes: free when probed; the total for a catalogue device.
        compute_capability: ``(major, minor)`` of a CUDA device; None elsewhere.
        memory_bandwidth_bytes_per_second: peak; None if unknown.
        peak_flops: dense peak FLOP/s by dtype ("float32", "bfloat16", "float16"); only what is known.
        supports_bfloat16: in hardware, so that it is the faster choice.
        power_watts: typical draw under load; None if unknown.
        price_class: who buys such a device; None if unknown.
        price_usd_per_hour: what renting one cost when its source was read; None if unknown.
    """

    name: str
    kind: DeviceKind
    total_memory_bytes: int
    free_memory_bytes: int
    compute_capability: tuple[int, int] | None = None
    memory_bandwidth_bytes_per_second: float | None = None
    peak_flops: dict[str, float] = field(default_factory=dict)
    supports_bfloat16: bool = False
    supports_float16: bool = False
    supports_int8: bool = False
    supports_nf4: bool = False
    supports_flash_attention: bool = False
    power_watts: float | None = None
    price_class: PriceClass | None = None
    price_usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """The devices that a plan is for.

    Attributes:
        name: catalogue name ("a100-80gb") or the probed device's name.
        origin: where the profile comes from.
        devices: all of one kind; a run of issue-1 scope uses the first.
        host_memory_bytes: usable host memory; None for a catalogue device.
        host_cores: usable cores; None for a catalogue device.
        interconnect: between devices; None with one device or if unknown.
        source: where the figures come from.
        checked: ISO date on which the source was read; None for a probe (a plan holds no clock time).
        notes: what the probe could not know, one sentence each.
    """

    name: str
    origin: Literal["probed", "catalogue", "file"]
    devices: tuple[Device, ...]
    host_memory_bytes: int | None = None
    host_cores: int | None = None
    interconnect: str | None = None
    source: str = ""
    checked: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> Device:
        """The device that a single-device plan uses."""
        return self.devices[0]

    @property
    def device_count(self) -> int:
        """How many devices there are."""
        return len(self.devices)
