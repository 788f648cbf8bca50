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
from autopeft.profiling._nvml import CudaDevice, CudaDevices, probe_cuda
from autopeft.resources import yaml_files
from autopeft.specs import Device, HardwareProfile
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
    notes = [*cuda.notes, *(doubt for _, _, doubt in matches if doubt)]
    if len(matches) > 1:
        notes.append(f"the link between the {len(matches)} GPUs is not probed")
    sources = [f"bandwidth and FLOP/s: the catalogue's {record.name}" for _, record, _ in matches if record]
    return HardwareProfile(
        name=cuda.devices[0].name,
        origin="probed",
        devices=tuple(_cuda_device(found, record) for found, record, _ in matches),
        host_memory_bytes=host.total_memory_bytes,
        host_cores=host.cores,
        source="; ".join(dict.fromkeys(["NVIDIA driver (NVML)", *sources])),
        notes=tuple(dict.fromkeys(notes)),
    )


def _cuda_device(found: CudaDevice, record: DeviceRecord | None) -> Device:
    """Returns a probed device; what the driver reports goes before what the catalogue says."""
    known = record or DeviceRecord(name=found.name, kind="cuda", memory=found.total_memory_bytes)
    return dataclasses.replace(
        to_device(dataclasses.replace(known, compute_capability=found.compute_capability)),
        name=found.name,
        total_memory_bytes=found.total_memory_bytes,
        free_memory_bytes=found.free_memory_bytes,
    )


def _match(found: CudaDevice) -> tuple[DeviceRecord | None, str | None]:
    """Returns the catalogue's record of a probed device; None and the reason if no record can be trusted for it."""
    record = find_by_driver_name(found.name, found.total_memory_bytes)
    if record is not None:
        return record, None
    unknown = "its memory bandwidth and FLOP/s are unknown; describe it in a YAML file to have times predicted"
    variants = variants_of(found.name)
    if not variants:
        return None, f"the catalogue has no device that the driver calls {found.name!r}: {unknown}"
    known = " and ".join(format_gib(to_device(variant).total_memory_bytes) for variant in variants)
    sizes = f"{format_gib(found.total_memory_bytes)} here and {known} in the catalogue"
    return None, f"{found.name!r} has {sizes}, so it is another variant: {unknown}"


def _cpu_profile(notes: tuple[str, ...], host: HostFacts) -> HardwareProfile:
    # bitsandbytes computes int8 and nf4 on processors too (its kernels registered for "cpu" and "default", read in
    # 0.50.2); float16 arithmetic is slower than float32 there and lacks kernels.
    supports: list[Feature] = ["int8", "nf4"]
    if host.has_bfloat16:
        supports.append("bfloat16")
    record = DeviceRecord(name=host.processor, kind="cpu", memory=host.total_memory_bytes, supports=supports)
    device = dataclasses.replace(to_device(record), free_memory_bytes=host.free_memory_bytes)
    unknown = ["the processor's memory bandwidth and FLOP/s are not probed"]
    if host.has_bfloat16 is None:
        unknown.append("this system does not tell whether the processor computes in bfloat16; taken as no")
    return HardwareProfile(
        name=device.name,
        origin="probed",
        devices=(device,),
        host_memory_bytes=host.total_memory_bytes,
        host_cores=host.cores,
        source="operating system",
        notes=(*notes, *host.idle_accelerators, *unknown),
    )
