"""The machine that a plan is for: probed here and now, named from the catalogue, or described in a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from autopeft.errors import HardwareError, UnknownNameError
from autopeft.profiling._catalogue import (
    FOLDER,
    DeviceRecord,
    find_by_driver_name,
    find_by_spoken_name,
    read_device,
    to_profile,
    variants_of,
)
from autopeft.resources import yaml_files
from autopeft.specs import HardwareProfile

MOST_DEVICES = 64
"""More of one device in one machine are taken for a slip of the pen."""


def probe_hardware() -> HardwareProfile:
    """Returns this machine: its visible CUDA devices, else its other accelerators, else its processor with the reason.

    Raises:
        HardwareError: if there is an NVIDIA driver but it cannot be used, or a variable names no device.
    """
    from autopeft.profiling._probe import probe_machine

    return probe_machine()


def _processor() -> HardwareProfile:
    from autopeft.profiling._probe import probe_processor

    return probe_processor()


# The probe is imported when it is wanted: for a named device it would cost a tenth of a second.
_HERE = {"auto": probe_hardware, "cpu": _processor}


def hardware_names() -> tuple[str, ...]:
    """Returns the names of the catalogue's devices, in alphabetical order."""
    return tuple(yaml_files(FOLDER))


def load_hardware(text: str) -> HardwareProfile:
    """Returns the hardware that an option such as ``--hardware`` means.

    Args:
        text: ``auto`` for this machine, ``cpu`` for its processor alone, a name or alias of the catalogue
            (``rtx-4090``) or a driver's name in it (``NVIDIA GeForce RTX 4090``), the path of a YAML file with the
            catalogue's keys (ending in .yaml or .yml), or several devices of one machine: ``2x rtx-4090``,
            ``rtx-4090 + rtx-3090``, ``4x mine.yaml``.

    Raises:
        UnknownNameError: with the closest names, if a name is none of these.
        HardwareError: if the file cannot be read, a key of it is wrong, a count is not possible, a driver's name stands
            for several devices, or this machine cannot be probed.
    """
    wanted = text.strip()
    if wanted.lower() in _HERE:
        return _HERE[wanted.lower()]()
    if _is_file(wanted) and Path(wanted).expanduser().exists():
        return _one(wanted)
    parts = [(count, name, _one(name)) for count, name in _counted(wanted)]
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][2]
    return _together(parts)


def _is_file(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml"))


def _one(name: str) -> HardwareProfile:
    if _is_file(name):
        return to_profile(read_device(Path(name).expanduser()), "file")
    record = find_by_spoken_name(name) or _driver_named(name)
    if record is not None:
        return to_profile(record, "catalogue")
    if name.lower() in _HERE:
        raise HardwareError(f"{name!r} means this machine as it is and cannot be combined or multiplied")
    raise UnknownNameError("hardware", name, (*_HERE, *hardware_names()), "autopeft hardware")


def _driver_named(name: str) -> DeviceRecord | None:
    """Returns the device whose driver writes exactly this name; without a memory, variants cannot be told apart."""
    variants = variants_of(name)
    if len(variants) > 1:
        names = " or ".join(record.name for record in variants)
        raise HardwareError(f"{name!r} stands for devices of different memory; name one of them: {names}")
    return variants[0] if variants else None


def _counted(wanted: str) -> Iterator[tuple[int, str]]:
    """Yields the parts of ``2x rtx-4090 + rtx-3090`` as counts and names."""
    for part in wanted.split("+"):
        match = re.fullmatch(r"(?:(\d+)\s*[xX\u00d7*]\s*)?(\S.*)", part.strip())
        if match is None:
            raise HardwareError(
                f"{wanted!r} names no hardware between its + signs; write for example 2x rtx-4090 + rtx-3090"
            )
        count = int(match[1] or 1)
        if not 1 <= count <= MOST_DEVICES:
            raise HardwareError(f"{part.strip()!r}: {count} devices are not possible; allowed are 1 to {MOST_DEVICES}")
        yield count, match[2]


def _together(parts: list[tuple[int, str, HardwareProfile]]) -> HardwareProfile:
    """Returns the devices of several profiles as those of one machine, in the order they were named."""
    names = [f"{count}x {profile.name}" if count > 1 else profile.name for count, _, profile in parts]
    profiles = [profile for _, _, profile in parts]
    dates = [profile.checked for profile in profiles if profile.checked]
    return HardwareProfile(
        name=" + ".join(names),
        origin="file" if any(profile.origin == "file" for profile in profiles) else "catalogue",
        devices=tuple(device for count, _, profile in parts for device in profile.devices * count),
        source="\n".join(dict.fromkeys(_sourced(profile) for profile in profiles)),
        checked=min(dates, default=None),
        notes=("what links the devices is not known",),
    )


def _sourced(profile: HardwareProfile) -> str:
    return "\n".join(f"{profile.name}: {line}" for line in profile.source.splitlines() or ["not stated"])


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
