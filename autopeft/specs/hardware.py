"""What is known of the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DeviceKind = Literal["cuda", "rocm", "xpu", "mps", "cpu"]
PriceClass = Literal["consumer", "workstation", "datacenter", "computer"]
"""Who buys a device; "computer" stands for what is part of one: Apple's chips and processors."""
LinkKind = Literal["pcie", "nvlink"]
UNVERIFIED_KINDS: tuple[DeviceKind, ...] = ("rocm", "xpu", "mps")
"""Kinds that predictions and training were never checked on."""

SAME_MEMORY = 0.02
"""Free memory that differs by less decides nothing between two devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProcess:
    """Another process that holds memory of a device.

    Attributes:
        pid: as the driver counts, which in a container can be another number than there.
        name: None where the driver does not tell it to this user.
        memory_bytes: None where the driver does not tell (Windows, WSL).
    """

    pid: int
    name: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What carries data to or between devices.

    Attributes:
        kind: PCIe to the host, or NVLink between devices.
        generation: such as "4.0".
        count: lanes of PCIe, links of NVLink.
        bytes_per_second: one direction, all lanes or links together; None if unknown.
    """

    kind: LinkKind
    generation: str
    count: int
    bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProfile:
    """The computer that devices are in, as far as this process may use it.

    Attributes:
        processor: model name; the architecture where the system tells no name.
        physical_memory_bytes: of the machine, or of the virtual machine.
        memory_limit_bytes: of the container or job (control groups); None without one.
        free_memory_bytes: what could be allocated now, within the limit.
        physical_cores: usable ones; None where the system does not tell which logical cores share one.
        logical_cores: by affinity and container quota, at least 1.
        instruction_sets: those that matter for matrix products: "avx2", "avx512f", "avx512_bf16", "amx_bf16", ...
        is_wsl: whether this is Linux inside Windows (WSL).
    """

    processor: str
    physical_memory_bytes: int
    memory_limit_bytes: int | None
    free_memory_bytes: int
    physical_cores: int | None
    logical_cores: int
    instruction_sets: tuple[str, ...] = ()
    is_wsl: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator or a part of one (a MIG instance), or the host processor where there is none.

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
        uuid: the driver's identifier; None for a device that was not probed.
        selector: the environment variable that leaves a process this device alone, as ``NAME=value``; None if there is
            no other device or no such variable.
        partition_of: name of the GPU that this MIG instance is a part of; None for a whole device.
        used_memory_bytes: by all processes and the driver, when probed; None if unknown.
        processes: the other processes that hold its memory, as far as the driver tells.
        has_ecc: whether error correction is on; None where the device has none or does not tell.
        power_limit_watts: the limit in force; below ``power_watts`` the device is slower than predicted.
        max_clock_mhz: of the multiprocessors, when nothing limits them.
        clock_limit_mhz: the clock that applications were limited to; None without a limit.
        host_link: to the host.
        unified_memory: whether an accelerator has the memory of the processor (Apple's chips).
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
    uuid: str | None = None
    selector: str | None = None
    partition_of: str | None = None
    used_memory_bytes: int | None = None
    processes: tuple[DeviceProcess, ...] = ()
    has_ecc: bool | None = None
    power_limit_watts: float | None = None
    max_clock_mhz: int | None = None
    clock_limit_mhz: int | None = None
    host_link: Link | None = None
    unified_memory: bool = False

    @property
    def best_flops(self) -> float:
        """The highest known speed; 0 if none is known."""
        return max(self.peak_flops.values(), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """The devices that a plan is for.

    Attributes:
        name: catalogue name ("a100-80gb"), names as they were given ("2x rtx-4090"), or the probed device's name.
        origin: where the profile comes from.
        devices: all that may be used, of one kind or of several. One candidate trains on one of them.
        host_memory_bytes: usable host memory; None for a catalogue device.
        host_cores: usable cores; None for a catalogue device.
        interconnect: between devices; None with one device or if unknown.
        source: where the figures come from, one line each.
        checked: ISO date on which the source was read; None for a probe (a plan holds no clock time).
        notes: what the probe could not know, one sentence each.
        interconnect_bytes_per_second: one direction, between two devices; None if unknown.
        driver_version: of the accelerators' driver; None if there is none.
        cuda_version: the newest CUDA that the driver can run; None without an NVIDIA driver.
        host: None for a catalogue device.
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
    interconnect_bytes_per_second: float | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    host: HostProfile | None = None

    @property
    def device(self) -> Device:
        """The device that a plan uses: the one that fits best (``device_index``)."""
        return self.devices[self.device_index]

    @property
    def device_index(self) -> int:
        """The place of the device that fits best.

        CUDA devices go before other accelerators and those before a processor; of these the one with the most free
        memory; of those within 2 % of it the fastest, then the first.
        """
        kinds = [_preference(device.kind) for device in self.devices]
        rivals = [place for place, kind in enumerate(kinds) if kind == min(kinds)]
        most = max(self.devices[place].free_memory_bytes for place in rivals)
        level = [place for place in rivals if self.devices[place].free_memory_bytes >= (1 - SAME_MEMORY) * most]
        return max(level, key=lambda place: (self.devices[place].best_flops, -place))

    @property
    def choice(self) -> str:
        """Which device a plan uses and why, as a clause."""
        chosen, others = self.device, [each for place, each in enumerate(self.devices) if place != self.device_index]
        which = f"device {self.device_index}, {chosen.name}"
        if not others:
            return which
        if all(_preference(each.kind) > _preference(chosen.kind) for each in others):
            return f"{which}: the only one of kind {chosen.kind}"
        rivals = [each for each in others if _preference(each.kind) == _preference(chosen.kind)]
        if all(each.free_memory_bytes < (1 - SAME_MEMORY) * chosen.free_memory_bytes for each in rivals):
            return f"{which}: it has the most free memory"
        if all(each.best_flops < chosen.best_flops for each in rivals):
            return f"{which}: no other has more free memory, and it is the fastest"
        return f"{which}: no other has noticeably more free memory or is faster"

    @property
    def device_count(self) -> int:
        """How many devices there are."""
        return len(self.devices)


def _preference(kind: DeviceKind) -> int:
    return 0 if kind == "cuda" else 2 if kind == "cpu" else 1
