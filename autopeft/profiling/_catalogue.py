"""The hardware catalogue: one YAML file a device, and the same form for a device that a user describes."""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from autopeft.errors import HardwareError, InvalidInputError
from autopeft.resources import read_record, resource_folder, yaml_files
from autopeft.specs import Device, DeviceKind, Dtype, HardwareProfile, PriceClass
from autopeft.units import parse_bytes

FOLDER = "profiles/hardware"
Feature = Literal["bfloat16", "float16", "int8", "nf4", "flash_attention"]

# One driver name can stand for two memory sizes ("NVIDIA GeForce RTX 3060": 8 and 12 GB, with other bandwidths), while
# driver versions and ECC differ by some percent on one card: 15 % tells the two cases apart.
MEMORY_TOLERANCE = 0.15


@dataclass(frozen=True, kw_only=True)
class FigureSource:
    """Where some of a device's figures were read.

    Attributes:
        figures: names of keys.
        source: an address that was opened; what could not be is "recalled, unverified".
        checked: when.
    """

    figures: list[str]
    source: str
    checked: datetime.date


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """A device as its YAML file states it; every other key is refused.

    Attributes:
        name: as people say it; the file's name in the catalogue.
        kind: "cuda", "cpu", ...
        memory: what the driver reports, with its unit (``24564MiB``), or bytes.
        driver_names: every name that a driver reports for exactly this device. Variants of other memory may share one.
        pci_ids: ``vendor:device``, or ``vendor:device:revision`` where that alone tells two devices apart; hexadecimal.
        aliases: other names that people and clouds use for it.
        compute_capability: ``[major, minor]``; of a CUDA device only, which must have it.
        memory_bandwidth_bytes_per_second: peak; None if unknown.
        peak_flops: dense FLOP/s by dtype, 16-bit products summed in float32 as PyTorch does, float32 without TF32.
        supports: what the hardware can do; of other kinds than CUDA only, where it does not follow from the capability.
        power_watts: typical draw under load: the board power that its maker states.
        price_class: who buys it; None if nobody said.
        price_usd_per_hour: what renting one costs, at the moment and place that its source names; None if unknown.
        sources: of every figure, in the catalogue's own files.
        source: where a user's file has its figures from, as one text.
        checked: when that was read.
    """

    name: str
    kind: DeviceKind
    memory: str | int
    driver_names: list[str] = field(default_factory=list)
    pci_ids: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    compute_capability: tuple[int, int] | None = None
    memory_bandwidth_bytes_per_second: float | None = None
    peak_flops: dict[Dtype, float] = field(default_factory=dict)
    supports: list[Feature] | None = None
    power_watts: float | None = None
    price_class: PriceClass | None = None
    price_usd_per_hour: float | None = None
    sources: list[FigureSource] = field(default_factory=list)
    source: str = ""
    checked: datetime.date | None = None


@dataclass(frozen=True, kw_only=True)
class CudaFeatures:
    """The least compute capability for each feature, with the sources."""

    bfloat16: tuple[int, int]
    float16: tuple[int, int]
    int8: tuple[int, int]
    nf4: tuple[int, int]
    flash_attention: tuple[int, int]
    source: str
    checked: datetime.date


@functools.cache
def cuda_features() -> CudaFeatures:
    """Returns the table of ``profiles/cuda_features.yaml``."""
    return read_record(resource_folder("profiles") / "cuda_features.yaml", CudaFeatures)


def supported_features(compute_capability: tuple[int, int]) -> set[Feature]:
    """Returns what follows from a CUDA device's compute capability."""
    least = cuda_features()
    needs: dict[Feature, tuple[int, int]] = {
        "bfloat16": least.bfloat16,
        "float16": least.float16,
        "int8": least.int8,
        "nf4": least.nf4,
        "flash_attention": least.flash_attention,
    }
    return {feature for feature, capability in needs.items() if compute_capability >= capability}


def read_device(path: Path) -> DeviceRecord:
    """Returns the device that a YAML file describes.

    Raises:
        HardwareError: naming the file and the wrong keys.
    """
    try:
        record = read_record(path, DeviceRecord)
    except InvalidInputError as error:
        # PyYAML follows YAML 1.1, where a number with an exponent needs both the dot and the sign.
        hint = "; YAML reads 1e12 as text, write 1.0e+12" if "Expected `float" in str(error) else ""
        raise HardwareError(f"{error}{hint}") from error
    problems = list(_problems(record))
    if problems:
        raise HardwareError(f"{path}: {'; '.join(problems)}")
    return record


def _problems(record: DeviceRecord) -> Iterator[str]:
    if not record.name.strip():
        yield "name is empty; write what people call the device"
    try:
        parse_bytes(str(record.memory))
    except InvalidInputError as error:
        yield f"memory: {error}"
    for name in ("memory_bandwidth_bytes_per_second", "power_watts", "price_usd_per_hour"):
        figure = getattr(record, name)
        if figure is not None and not 0 < figure < math.inf:
            yield f"{name} must be positive and finite, not {figure:g}; leave it out if it is unknown"
    for dtype, flops in record.peak_flops.items():
        if not 0 < flops < math.inf:
            yield f"peak_flops: {dtype} must be positive and finite, not {flops:g}; leave it out if it is unknown"
    yield from _kind_problems(record)


def _kind_problems(record: DeviceRecord) -> Iterator[str]:
    if record.kind == "cuda":
        if record.compute_capability is None:
            yield "compute_capability is missing; write it as [8, 9] (nvidia-smi --query-gpu=compute_cap tells it)"
        elif not (1 <= record.compute_capability[0] < 100 and 0 <= record.compute_capability[1] < 10):
            yield f"compute_capability {list(record.compute_capability)} is none; write it as [8, 9]"
        if record.supports is not None:
            yield "supports does not belong to a cuda device, where it follows from compute_capability"
    else:
        if record.compute_capability is not None:
            yield f"compute_capability belongs to cuda devices, not to kind {record.kind!r}"
        if record.supports is None:
            yield f"supports is missing; a device of kind {record.kind!r} lists what it can do, [] for nothing"


def to_device(record: DeviceRecord) -> Device:
    """Returns a checked record as one idle device."""
    memory_bytes = parse_bytes(str(record.memory))
    capability = record.compute_capability
    features = set(record.supports or ()) if capability is None else supported_features(capability)
    return Device(
        name=record.driver_names[0] if record.driver_names else record.name,
        kind=record.kind,
        total_memory_bytes=memory_bytes,
        free_memory_bytes=memory_bytes,
        compute_capability=capability,
        memory_bandwidth_bytes_per_second=record.memory_bandwidth_bytes_per_second,
        peak_flops=dict(record.peak_flops.items()),
        supports_bfloat16="bfloat16" in features,
        supports_float16="float16" in features,
        supports_int8="int8" in features,
        supports_nf4="nf4" in features,
        supports_flash_attention="flash_attention" in features,
        power_watts=record.power_watts,
        price_class=record.price_class,
        price_usd_per_hour=record.price_usd_per_hour,
    )


def to_profile(record: DeviceRecord, origin: Literal["catalogue", "file"]) -> HardwareProfile:
    """Returns a checked record as the profile of one idle device."""
    dates = [entry.checked for entry in record.sources] or ([record.checked] if record.checked else [])
    texts = [f"{', '.join(entry.figures)}: {entry.source.strip()}" for entry in record.sources]
    oldest = min(dates, default=None)
    return HardwareProfile(
        name=record.name,
        origin=origin,
        devices=(to_device(record),),
        source="\n".join(texts) or record.source.strip(),
        checked=oldest.isoformat() if oldest else None,
    )


@functools.cache
def catalogue() -> dict[str, DeviceRecord]:
    """Returns every device that the project ships by its name, in alphabetical order."""
    return {name: _shipped(name) for name in _texts()}


def find_by_driver_name(driver_name: str, memory_bytes: int | None = None) -> DeviceRecord | None:
    """Returns the device whose driver reports exactly this name, and of its variants the one with this memory.

    A part of a name is never enough: "NVIDIA L40" is the beginning of "NVIDIA L40S", which is another device.

    Args:
        driver_name: as the driver reports it.
        memory_bytes: as the driver reports it; without it, a name that several variants share has no answer. Apple's
            chips have the memory of their computer, so that its size says nothing.
    """
    named = [record for record in _mentioning(driver_name) if driver_name in record.driver_names]
    if memory_bytes is None or (named and named[0].kind == "mps"):
        return named[0] if len(named) == 1 else None
    fitting = [record for record in named if _memory_distance(record, memory_bytes) <= MEMORY_TOLERANCE]
    return min(fitting, key=lambda record: _memory_distance(record, memory_bytes), default=None)


def variants_of(driver_name: str) -> tuple[DeviceRecord, ...]:
    """Returns the devices that share this driver name: none, one, or the variants of one name."""
    return tuple(record for record in _mentioning(driver_name) if driver_name in record.driver_names)


def find_by_pci_id(pci_id: str, memory_bytes: int | None = None) -> DeviceRecord | None:
    """Returns the device of ``vendor:device:revision``, whose record may leave the revision out."""
    device_id = pci_id.rpartition(":")[0]
    named = [record for record in _mentioning(device_id) if {pci_id, device_id} & set(record.pci_ids)]
    if memory_bytes is not None:
        named = [record for record in named if _memory_distance(record, memory_bytes) <= MEMORY_TOLERANCE]
    return named[0] if len(named) == 1 else None


def find_by_spoken_name(spoken_name: str) -> DeviceRecord | None:
    """Returns the device of this name or alias; upper case and blanks count as lower case and hyphens."""
    name = "-".join(spoken_name.lower().split())
    if name in yaml_files(FOLDER):
        return _shipped(name)
    return next((record for record in _mentioning(name) if name in record.aliases), None)


def _memory_distance(record: DeviceRecord, memory_bytes: int) -> float:
    expected = parse_bytes(str(record.memory))
    return abs(memory_bytes - expected) / expected


def _mentioning(text: str) -> Iterator[DeviceRecord]:
    """Yields the devices whose file holds this text anywhere; parsing the others would cost a tenth of a second."""
    yield from (_shipped(name) for name, content in _texts().items() if text and text in content)


@functools.cache
def _texts() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in yaml_files(FOLDER).items()}


@functools.cache
def _shipped(name: str) -> DeviceRecord:
    return read_device(yaml_files(FOLDER)[name])
