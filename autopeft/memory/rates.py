"""What share of its peak a device reaches, and what a step costs the host, from ``profiles/efficiency.yaml``."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from autopeft.resources import read_record, resource_folder
from autopeft.specs import Device
from autopeft.units import parse_bytes

HOST_EFFICIENCY = 1.0
"""A host processor's ``Device.peak_flops`` and bandwidth were measured by running a product and a copy on it."""

Bound = Literal["matmul", "attention", "memory", "dequantize"]


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Share of a peak that one kernel class reaches; the file explains every key."""

    kernel: Bound
    dtype: str
    compute_capability: tuple[int, int]
    share: float
    source: str
    checked: datetime.date
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Second-level cache of a generation and how many times faster than memory it is."""

    compute_capability: tuple[int, int]
    cache: str
    speed: float
    source: str
    checked: datetime.date
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Shortest time of a kernel on the device."""

    kernel: Literal["matmul", "other"]
    seconds: float
    source: str
    checked: datetime.date


@dataclass(frozen=True, kw_only=True)
class HostCost:
    """What one call, launch or read of a value costs the host."""

    what: Literal["forward_call", "backward_call", "optimizer_call", "launch", "sync"]
    seconds: float
    source: str
    checked: datetime.date


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Speed of copies between the host and the device."""

    memory: Literal["pageable"]
    bytes_per_second: float
    source: str
    checked: datetime.date


@dataclass(frozen=True, kw_only=True)
class EfficiencyTable:
    """The content of ``profiles/efficiency.yaml``."""

    efficiencies: list[Efficiency]
    caches: list[Cache]
    latencies: list[Latency]
    host: list[HostCost]
    transfers: list[Transfer]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRates:
    """What the host takes.

    Attributes:
        seconds_by_kind: by what it does.
        transfer_bytes_per_second: of copies between its memory, not pinned, and the device.
    """

    seconds_by_kind: dict[str, float]
    transfer_bytes_per_second: float

    def seconds(self, phase: str, kind: str, count: float) -> float:
        """Returns the time for so many calls, reads, copies or launches in a phase, without what copies move."""
        what = {"call": f"{phase}_call", "sync": "sync"}.get(kind, "launch")
        return count * self.seconds_by_kind[what]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """What a device reaches.

    Attributes:
        flops: dtype -> peak FLOP/s.
        bandwidth: peak bytes a second; None if unknown.
        shares: (kernel class, dtype) -> share of the peak.
        latencies: kernel class -> shortest time of a kernel.
        cache_bytes, cache_speed: the second-level cache and how many times faster than memory it is.
        queued: whether a host starts kernels ahead of the device, which works them off.
        assumptions: one sentence each.
    """

    flops: dict[str, float]
    bandwidth: float | None
    shares: dict[tuple[str, str], float]
    latencies: dict[str, float]
    cache_bytes: int
    cache_speed: float
    queued: bool
    assumptions: tuple[str, ...]

    def missing(self, dtypes: Iterable[str]) -> str:
        """Returns a sentence on the first dtype whose speed is unknown; "" if there is none."""
        for dtype in sorted(dtypes):
            if self._peak(dtype) is None:
                return f"the {dtype} speed of the device is unknown, so the time is not predicted"
        return "" if self.bandwidth else "the memory bandwidth of the device is unknown, so the time is not predicted"

    def reached_flops(self, kernel: str, dtype: str) -> float:
        """Returns the FLOP/s that products of a dtype reach."""
        peak = self._peak(dtype)
        assert peak is not None, f"{dtype} was not checked with missing()"
        width = "float32" if dtype == "float32" else "bfloat16"
        return peak * self.shares[kernel, width]

    def reached_bandwidth(self, kind: str, bytes_each: float) -> float:
        """Returns the bytes a second that kernels reach which move so many bytes each."""
        assert self.bandwidth is not None, "the bandwidth was not checked with missing()"
        if kind == "dequantize":
            return self.bandwidth * self.shares["dequantize", "any"]
        cached = kind in ("elementwise", "gather") and bytes_each <= self.cache_bytes
        return self.bandwidth * self.shares["memory", "any"] * (self.cache_speed if cached else 1.0)

    def seconds_to_compute(self, kernel: str, dtype: str, flops: float) -> float:
        """Returns the time of the arithmetic of products."""
        return flops / self.reached_flops(kernel, dtype)

    def seconds_to_move(self, kind: str, moved_bytes: float, bytes_each: float) -> float:
        """Returns the time of reading and writing so many bytes, by kernels that move ``bytes_each``."""
        return moved_bytes / self.reached_bandwidth(kind, bytes_each)

    def latency_seconds(self, kind: str) -> float:
        """Returns the shortest time of a kernel."""
        return self.latencies["matmul" if kind == "matmul" else "other"]

    def _peak(self, dtype: str) -> float | None:
        if dtype == "int8":
            half = self.flops.get("float16")
            return 2 * half if half else None  # tensor cores multiply 8-bit integers at twice the 16-bit rate
        return self.flops.get(dtype)


@functools.cache
def efficiency_table() -> EfficiencyTable:
    """Returns the table of ``profiles/efficiency.yaml``."""
    return read_record(resource_folder("profiles") / "efficiency.yaml", EfficiencyTable)


@functools.cache
def host_rates() -> HostRates:
    """Returns what a step costs the host."""
    table = efficiency_table()
    (pageable,) = table.transfers
    return HostRates(
        seconds_by_kind={cost.what: cost.seconds for cost in table.host},
        transfer_bytes_per_second=pageable.bytes_per_second,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _DeviceKey:
    """A device as a cache's key: the same object, since a Device cannot be hashed."""

    device: Device

    def __hash__(self) -> int:
        return id(self.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _DeviceKey) and other.device is self.device


def device_rates(device: Device) -> DeviceRates:
    """Returns what a device reaches: shares of its generation, or all that was measured of a host processor."""
    return _device_rates(_DeviceKey(device))


@functools.lru_cache(maxsize=16)
def _device_rates(key: _DeviceKey) -> DeviceRates:
    device = key.device
    if device.kind == "cpu":
        return _host_processor(device)
    table = efficiency_table()
    capability = device.compute_capability or (8, 0)
    cache = _of_generation(table.caches, capability, device.name)
    shares: dict[tuple[str, str], float] = {
        (kernel, dtype): _of_generation(
            [each for each in table.efficiencies if (each.kernel, each.dtype) == (kernel, dtype)],
            capability,
            device.name,
        ).share
        for kernel, dtype in {(each.kernel, each.dtype) for each in table.efficiencies}
    }
    return DeviceRates(
        flops=device.peak_flops,
        bandwidth=device.memory_bandwidth_bytes_per_second,
        shares=shares,
        latencies={each.kernel: each.seconds for each in table.latencies},
        cache_bytes=parse_bytes(cache.cache),
        cache_speed=cache.speed,
        queued=True,
        assumptions=_assumptions(device, shares),
    )


def _host_processor(device: Device) -> DeviceRates:
    kernels = [("matmul", "bfloat16"), ("matmul", "float32"), ("attention", "bfloat16"), ("attention", "float32")]
    return DeviceRates(
        flops=device.peak_flops,
        bandwidth=device.memory_bandwidth_bytes_per_second,
        shares=dict.fromkeys([*kernels, ("memory", "any"), ("dequantize", "any")], HOST_EFFICIENCY),
        latencies={"matmul": 0.0, "other": 0.0},
        cache_bytes=0,
        cache_speed=1.0,
        queued=False,
        assumptions=("products and copies run as fast as when the processor was measured",),
    )


def _assumptions(device: Device, shares: dict[tuple[str, str], float]) -> tuple[str, ...]:
    dtype = "bfloat16" if device.supports_bfloat16 else "float16"
    products = f"matrix products reach {shares['matmul', 'bfloat16']:.0%} of the device's {dtype} peak"
    kernels = f"element-wise kernels reach {shares['memory', 'any']:.0%} of the memory bandwidth"
    if device.kind == "cuda" and device.compute_capability:
        return products, kernels
    return products, kernels, f"a {device.kind} device of unknown generation is taken for an A100 where shares matter"


Fact = TypeVar("Fact", Efficiency, Cache)


def _of_generation(facts: Sequence[Fact], capability: tuple[int, int], name: str) -> Fact:
    """Returns the fact of the device, else of its generation, else of the next older one, else the oldest."""
    for fact in facts:
        if name in fact.devices:
            return fact
    general = sorted((fact for fact in facts if not fact.devices), key=lambda fact: fact.compute_capability)
    older = [fact for fact in general if fact.compute_capability <= capability]
    return older[-1] if older else general[0]
