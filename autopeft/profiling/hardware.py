"""The machine that a plan is for: probed here and now, named from the catalogue, or described in a file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from autopeft.errors import UnknownNameError
from autopeft.profiling._catalogue import (
    FOLDER,
    DeviceRecord,
    Feature,
    find_by_driver_name,
    find_by_spoken_name,
    read_device,
    to_device,
    to_profile,
    variants_of,
)
from autopeft.profiling._host import HostFacts, probe_host
from autopeft.profiling._links import describe_link, narrowest
from autopeft.profiling._nvml import CudaDevice, CudaDevices, Partition, probe_cuda
from autopeft.resources import yaml_files
from autopeft.specs import Device, HardwareProfile, Link
from autopeft.units import format_gib


def hardware_names() -> tuple[str, ...]:
    """Returns the names of the catalogue's devices, in alphabetical order."""
    return tuple(yaml_files(FOLDER))


def load_hardware(text: str) -> HardwareProfile:
    """Returns the hardware that an option such as ``--hardware`` means.

    Args:
        text: ``auto`` for this machine, a name or alias of the catalogue (``rtx-4090``), or the path of a YAML file
            with the catalogue's keys (ending in .yaml or .yml).

    Raises:
        UnknownNameError: with the closest names, if it is none of these.
        HardwareError: if the file cannot be read, a key of it is wrong, or this machine cannot be probed.
    """
    wanted = text.strip()
    if wanted.lower() == "auto":
        return probe_hardware()
    if wanted.lower().endswith((".yaml", ".yml")):
        return to_profile(read_device(Path(wanted).expanduser()), "file")
    record = find_by_spoken_name(wanted)
    if record is None:
        raise UnknownNameError("hardware", wanted, ("auto", *hardware_names()), "autopeft hardware")
    return to_profile(record, "catalogue")


def catalogue_entry(device_name: str, memory_bytes: int | None = None) -> HardwareProfile | None:
    """Returns the catalogue's device whose driver reports exactly ``device_name``.

    Args:
        device_name: the driver's name, whole.
        memory_bytes: what the driver reports; tells variants apart that share a name.

    Returns:
        None if there is no such device, or without ``memory_bytes`` several.
    """
    record = find_by_driver_name(device_name, memory_bytes)
    return to_profile(record, "catalogue") if record else None


def probe_hardware() -> HardwareProfile:
    """Returns this machine: the visible CUDA devices, or else the host processor with a note why.

    Raises:
        HardwareError: if there is an NVIDIA driver but it cannot be used.
    """
    host = probe_host()
    cuda = probe_cuda(os.environ)
    return _cuda_profile(cuda, host) if cuda.devices else _cpu_profile(cuda.notes, host)


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
        partition_of=None if found.partition is None else found.partition.gpu_name,
        used_memory_bytes=found.used_memory_bytes,
        processes=found.processes,
        has_ecc=found.has_ecc,
        power_limit_watts=found.power_limit_watts,
        max_clock_mhz=found.max_clock_mhz,
        clock_limit_mhz=found.clock_limit_mhz,
        host_link=found.host_link,
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
