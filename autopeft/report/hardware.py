"""A machine's devices for people: facts of the whole, of one device, and one line a device."""

from __future__ import annotations

from collections.abc import Iterator

from autopeft.report.formats import joined
from autopeft.specs import UNVERIFIED_KINDS, Device, HardwareProfile, HostProfile
from autopeft.units import GIB, format_gib

DEVICE_COLUMNS = (("#", 2), ("device", 30), ("GiB free\nof total", 13), ("16-bit\nTFLOP/s", 7), ("GB/s", 6), ("W", 5))
"""Titles and widths of ``device_row``'s cells, which fit 80 columns together."""


def hardware_facts(profile: HardwareProfile) -> list[tuple[str, str]]:
    """Returns a machine as names and values: the whole, then the device that a plan uses."""
    return [*machine_facts(profile), *device_facts(profile.device)]


def machine_facts(profile: HardwareProfile) -> list[tuple[str, str]]:
    """Returns what holds for all devices of a machine together, as names and values."""
    return [("hardware", f"{profile.name} ({profile.origin})"), *_together(profile), *_host(profile)]


def _together(profile: HardwareProfile) -> Iterator[tuple[str, str]]:
    if profile.device_count > 1:
        yield "devices", str(profile.device_count)
        speed = profile.interconnect_bytes_per_second
        pace = f", {speed / 1e9:.4g} GB/s a direction" if speed else ""
        yield "joined by", f"{profile.interconnect}{pace}" if profile.interconnect else "not known"
        yield "a plan uses", profile.choice
    if profile.driver_version:
        yield "driver", f"{profile.driver_version}{f', CUDA up to {cuda}' if (cuda := profile.cuda_version) else ''}"


def _host(profile: HardwareProfile) -> Iterator[tuple[str, str]]:
    host, usable = profile.host, profile.host_memory_bytes
    if host is None:
        if profile.origin == "probed":
            yield "host memory", "not known" if usable is None else format_gib(usable)
            yield "host cores", "not known" if profile.host_cores is None else str(profile.host_cores)
        return
    if profile.device.kind != "cpu":
        yield "processor", host.processor
    yield "host memory", f"{format_gib(host.free_memory_bytes)} free of {_host_memory(host)}"
    physical = "physical cores not known" if host.physical_cores is None else f"on {host.physical_cores} physical ones"
    yield "host cores", f"{host.logical_cores} logical, {physical}"
    yield "instruction sets", " ".join(host.instruction_sets) or "none of those that matter, or not known"


def _host_memory(host: HostProfile) -> str:
    whole = format_gib(host.physical_memory_bytes)
    return whole if host.memory_limit_bytes is None else f"{format_gib(host.memory_limit_bytes)} (machine: {whole})"


def device_facts(device: Device) -> list[tuple[str, str]]:
    """Returns one device as names and values."""
    capability, bandwidth = device.compute_capability, device.memory_bandwidth_bytes_per_second
    speeds = ", ".join(f"{dtype} {flops / 1e12:.3g} TFLOP/s" for dtype, flops in device.peak_flops.items())
    unverified = ", unverified: nobody has checked predictions or training on this kind yet"
    return [
        ("device", f"{device.name} ({device.kind}{unverified if device.kind in UNVERIFIED_KINDS else ''})"),
        *([("part of", device.partition_of)] if device.partition_of else []),
        ("device memory", f"{_memory(device)}{' (shared with the processor)' if device.unified_memory else ''}"),
        ("compute capability", ".".join(map(str, capability)) if capability else "not applicable"),
        ("memory bandwidth", f"{bandwidth / 1e9:.4g} GB/s" if bandwidth else "not known"),
        ("peak speed", speeds or "not known"),
        ("supports", joined(_supported(device))),
        *_state(device),
        *_economy(device),
    ]


def _memory(device: Device) -> str:
    return f"{format_gib(device.free_memory_bytes)} free of {format_gib(device.total_memory_bytes)}"


def _supported(device: Device) -> Iterator[str]:
    kinds = {"bfloat16": device.supports_bfloat16, "float16": device.supports_float16, "int8": device.supports_int8}
    kinds |= {"nf4": device.supports_nf4, "flash attention": device.supports_flash_attention}
    return (name for name, supported in kinds.items() if supported)


def _state(device: Device) -> Iterator[tuple[str, str]]:
    """Yields what a probe found out about the device's present state."""
    if device.has_ecc is not None:
        yield "ECC", "on" if device.has_ecc else "off"
    if device.max_clock_mhz:
        limit = f", applications limited to {device.clock_limit_mhz} MHz" if device.clock_limit_mhz else ""
        yield "clock", f"up to {device.max_clock_mhz} MHz{limit}"
    if device.host_link is not None:
        link = device.host_link
        pace = f", {link.bytes_per_second / 1e9:.3g} GB/s a direction" if link.bytes_per_second else ""
        kind = "PCIe" if link.kind == "pcie" else "NVLink"
        yield "link to the host", f"{kind} {link.generation} x{link.count}{pace}"
    for process in device.processes:
        size = "unknown memory" if process.memory_bytes is None else format_gib(process.memory_bytes)
        yield "other process", f"{process.pid} {process.name or '(name not told)'}: {size}"


def _economy(device: Device) -> Iterator[tuple[str, str]]:
    if device.power_watts:
        limit = device.power_limit_watts
        yield "power", f"{device.power_watts:g} W{f', limit {limit:g} W' if limit else ''}"
    if device.price_class:
        price = device.price_usd_per_hour
        yield "price", f"{device.price_class} class{f', about {price:.2f} $ an hour rented' if price else ''}"


def device_row(place: int, device: Device) -> tuple[str, ...]:
    """Returns one device as cells of ``DEVICE_COLUMNS``."""
    flops = max((device.peak_flops.get(dtype, 0.0) for dtype in ("bfloat16", "float16")), default=0.0)
    bandwidth = device.memory_bandwidth_bytes_per_second
    return (
        str(place),
        device.name,
        f"{device.free_memory_bytes / GIB:.4g}/{device.total_memory_bytes / GIB:.4g}",
        f"{flops / 1e12:.4g}" if flops else "unknown",
        f"{bandwidth / 1e9:.4g}" if bandwidth else "unknown",
        f"{device.power_limit_watts or device.power_watts or 0:g}" if device.power_watts else "-",
    )
