"""The machine that this process runs on: its accelerators, or else its processor."""

from __future__ import annotations

import dataclasses
import os

from autopeft.profiling._accelerators import Accelerator, Accelerators, probe_accelerators
from autopeft.profiling._catalogue import DeviceRecord, Feature, find_by_driver_name, to_device, variants_of
from autopeft.profiling._host import HostFacts, probe_host
from autopeft.profiling._links import describe_link, narrowest
from autopeft.profiling._nvml import CudaDevice, CudaDevices, Partition, probe_cuda
from autopeft.specs import Device, HardwareProfile, Link
from autopeft.units import format_gib

_UNKNOWN_ACCELERATOR = (
    "the catalogue has no {name!r}: its speeds are unknown, and it is taken to compute in float32 alone; describe it in"
    " a YAML file to have times predicted and other types used"
)


def probe_machine() -> HardwareProfile:
    """Returns this machine: its visible CUDA devices, else its other accelerators, else its processor with the reason.

    Nothing heavy is imported and no torch is needed, so that accelerators of other makers are known by what the
    operating system says of them; whether the installed torch can use one shows when a training begins.

    Raises:
        HardwareError: if there is an NVIDIA driver but it cannot be used, or a variable names no device.
    """
    host = probe_host()
    cuda = probe_cuda(os.environ)
    if cuda.devices:
        return _cuda_profile(_with_host_memory(cuda, host), host)
    others = probe_accelerators(os.environ)
    if others.devices:
        return _accelerator_profile(others, host)
    return _cpu_profile((*cuda.notes, *others.notes), host)


def probe_processor() -> HardwareProfile:
    """Returns this machine's processor alone, whatever accelerators it has."""
    return _cpu_profile(("accelerators were not looked for, as asked",), probe_host())


def _accelerator_profile(found: Accelerators, host: HostFacts) -> HardwareProfile:
    devices = tuple(_accelerator(each) for each in found.devices)
    shared = len(devices) > 1
    unknown = [_UNKNOWN_ACCELERATOR.format(name=each.name) for each in found.devices if each.record is None]
    return HardwareProfile(
        name=devices[0].name,
        origin="probed",
        devices=devices,
        host_memory_bytes=host.total_memory_bytes,
        host_cores=host.profile.logical_cores,
        source="operating system\nbandwidth, FLOP/s and what is supported: the catalogue",
        notes=(
            *found.notes,
            *dict.fromkeys(unknown),
            *(["what links the devices is not probed"] if shared else []),
            *host.notes,
        ),
        driver_version=found.driver_version,
        host=host.profile,
    )


def _accelerator(found: Accelerator) -> Device:
    known = found.record or DeviceRecord(name=found.name, kind=found.kind, memory=found.total_memory_bytes, supports=[])
    return dataclasses.replace(
        to_device(known),
        name=found.name,
        total_memory_bytes=found.total_memory_bytes,
        free_memory_bytes=found.free_memory_bytes,
        used_memory_bytes=found.total_memory_bytes - found.free_memory_bytes,
        uuid=found.uuid,
        selector=found.selector,
        power_limit_watts=found.power_limit_watts,
        unified_memory=found.kind == "mps",
    )


def _cuda_profile(cuda: CudaDevices, host: HostFacts) -> HardwareProfile:
    matches = [(found, *_match(found)) for found in cuda.devices]
    doubts = [doubt for _, _, doubt in matches if doubt]
    interconnect, link_notes = _interconnect(cuda)
    sources = [f"bandwidth and FLOP/s: the catalogue's {record.name}" for _, record, _ in matches if record]
    notes = (*cuda.notes, *doubts, *_partition_notes(cuda), *link_notes, *host.notes)
    return HardwareProfile(
        name=cuda.devices[0].name,
        origin="probed",
        devices=tuple(_cuda_device(found, record) for found, record, _ in matches),
        host_memory_bytes=host.total_memory_bytes,
        host_cores=host.profile.logical_cores,
        interconnect=None if interconnect is None else describe_link(interconnect),
        interconnect_bytes_per_second=None if interconnect is None else interconnect.bytes_per_second,
        source="; ".join(dict.fromkeys(["NVIDIA driver (NVML)", *sources])),
        notes=tuple(dict.fromkeys(notes)),
        driver_version=cuda.driver_version,
        cuda_version=cuda.cuda_version,
        host=host.profile,
    )


def _with_host_memory(cuda: CudaDevices, host: HostFacts) -> CudaDevices:
    """Returns the devices with the host's memory where they have none of their own."""
    if not any(device.shares_host_memory for device in cuda.devices):
        return cuda
    total, free = host.total_memory_bytes, host.profile.free_memory_bytes
    devices = tuple(
        dataclasses.replace(
            device,
            total_memory_bytes=total,
            free_memory_bytes=free,
            used_memory_bytes=total - free,
            gpu_memory_bytes=total,
        )
        if device.shares_host_memory
        else device
        for device in cuda.devices
    )
    names = ", ".join(dict.fromkeys(device.name for device in devices if device.shares_host_memory))
    note = (
        f"the driver reports no memory of {names}: it is taken to share the processor's, which other programs use too"
    )
    return dataclasses.replace(cuda, devices=devices, notes=(*cuda.notes, note))


def _interconnect(cuda: CudaDevices) -> tuple[Link | None, tuple[str, ...]]:
    """Returns the link that limits an exchange between all devices, and what is not known of it."""
    if len(cuda.devices) < 2:
        return None, ()
    if cuda.all_peers:
        return narrowest([device.peer_link for device in cuda.devices]), ()
    found = narrowest([device.host_link for device in cuda.devices])
    if any(device.peer_link for device in cuda.devices):
        return found, ("NVLink joins only some of the GPUs; the slower path between the others is shown",)
    return found, () if found else ("the driver does not tell what links the GPUs",)


def _partition_notes(cuda: CudaDevices) -> tuple[str, ...]:
    if not any(device.partition for device in cuda.devices):
        return ()
    return ("one process can use a single MIG instance; its speeds are taken as its share of the whole GPU's",)


def _cuda_device(found: CudaDevice, record: DeviceRecord | None) -> Device:
    """Returns a probed device; what the driver reports goes before what the catalogue says."""
    known = record or DeviceRecord(name=found.name, kind="cuda", memory=found.total_memory_bytes)
    device = to_device(dataclasses.replace(known, compute_capability=found.compute_capability))
    if found.partition is not None:
        device = _share_of(device, found.partition)
    return dataclasses.replace(
        device,
        name=found.name,
        total_memory_bytes=found.total_memory_bytes,
        free_memory_bytes=found.free_memory_bytes,
        power_watts=device.power_watts or found.default_power_watts,
        uuid=found.uuid,
        selector=f"CUDA_VISIBLE_DEVICES={found.uuid}",
        partition_of=None if found.partition is None else found.partition.gpu_name,
        used_memory_bytes=found.used_memory_bytes,
        processes=found.processes,
        has_ecc=found.has_ecc,
        power_limit_watts=found.power_limit_watts,
        max_clock_mhz=found.max_clock_mhz,
        clock_limit_mhz=found.clock_limit_mhz,
        host_link=found.host_link,
        unified_memory=found.shares_host_memory,
    )


def _share_of(device: Device, partition: Partition) -> Device:
    """Returns a device with the speeds of a part of it."""
    bandwidth, price, watts = device.memory_bandwidth_bytes_per_second, device.price_usd_per_hour, device.power_watts
    return dataclasses.replace(
        device,
        memory_bandwidth_bytes_per_second=bandwidth and bandwidth * partition.memory_share,
        peak_flops={dtype: flops * partition.compute_share for dtype, flops in device.peak_flops.items()},
        price_usd_per_hour=price and price * partition.compute_share,
        power_watts=watts and watts * partition.compute_share,
    )


def _match(found: CudaDevice) -> tuple[DeviceRecord | None, str | None]:
    """Returns the catalogue's record of a probed device; None and the reason if no record can be trusted for it."""
    name = found.partition.gpu_name if found.partition else found.name
    record = find_by_driver_name(name, found.gpu_memory_bytes)
    if record is not None:
        return record, None
    unknown = "its memory bandwidth and FLOP/s are unknown; describe it in a YAML file to have times predicted"
    variants = variants_of(name)
    if not variants:
        return None, f"the catalogue has no device that the driver calls {name!r}: {unknown}"
    known = " and ".join(format_gib(to_device(variant).total_memory_bytes) for variant in variants)
    sizes = f"{format_gib(found.gpu_memory_bytes)} here and {known} in the catalogue"
    return None, f"{name!r} has {sizes}, so it is another variant: {unknown}"


def _cpu_profile(notes: tuple[str, ...], host: HostFacts) -> HardwareProfile:
    # bitsandbytes computes int8 and nf4 on processors too (its kernels registered for "cpu" and "default", read in
    # 0.50.2); float16 arithmetic is slower than float32 there and lacks kernels.
    supports: list[Feature] = ["int8", "nf4"]
    if host.has_bfloat16:
        supports.append("bfloat16")
    record = DeviceRecord(name=host.profile.processor, kind="cpu", memory=host.total_memory_bytes, supports=supports)
    free, limit = host.profile.free_memory_bytes, host.total_memory_bytes
    device = dataclasses.replace(to_device(record), free_memory_bytes=free, used_memory_bytes=limit - free)
    unknown = ["the processor's memory bandwidth and FLOP/s are not probed"]
    if host.has_bfloat16 is None:
        unknown.append("this system does not tell whether the processor computes in bfloat16; taken as no")
    return HardwareProfile(
        name=device.name,
        origin="probed",
        devices=(device,),
        host_memory_bytes=host.total_memory_bytes,
        host_cores=host.profile.logical_cores,
        source="operating system",
        notes=(*notes, *host.notes, *unknown),
        host=host.profile,
    )
