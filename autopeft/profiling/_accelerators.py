"""Accelerators of other makers than NVIDIA, by what the operating system says of them: no torch, no vendor's tool."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from autopeft.profiling._catalogue import DeviceRecord, find_by_driver_name, find_by_pci_id, to_device
from autopeft.profiling._system_files import system_text
from autopeft.profiling._visible import hides_all, visible_indices
from autopeft.specs import DeviceKind
from autopeft.units import GIB, MIB, format_gib

LEAST_MEMORY = 3 * GIB
"""Graphics units inside processors own less, and nothing trains on them."""

_INTEL = "0x8086"
_KFD = "sys/class/kfd/kfd/topology/nodes"
_SMALL_MAC = 36 * GIB

Sysctl = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One accelerator; fields as in ``specs.Device``.

    Attributes:
        record: what the catalogue knows of it; None if nothing.
        selector: the variable that leaves a process this device alone, as ``NAME=value``; None if there is no other.
    """

    name: str
    kind: DeviceKind
    total_memory_bytes: int
    free_memory_bytes: int
    record: DeviceRecord | None = None
    uuid: str | None = None
    selector: str | None = None
    power_limit_watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerators:
    """What was found (nothing is a valid answer), and what the caller must be told, one sentence each."""

    devices: tuple[Accelerator, ...] = ()
    notes: tuple[str, ...] = ()
    driver_version: str | None = None


def probe_accelerators(environment: Mapping[str, str], root: Path = Path("/")) -> Accelerators:
    """Returns the AMD GPUs, else the Intel GPUs, else the Apple GPU that this process may use.

    Args:
        environment: whose ROCR_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES choose among AMD GPUs.
        root: folder under which ``sys`` is looked up.

    Raises:
        HardwareError: if such a variable names no device.
    """
    amd = _amd(environment, root)
    intel = _intel(root) if not amd.devices else Accelerators()
    apple = _apple(_sysctl) if _is_apple() and not (amd.devices or intel.devices) else Accelerators()
    found = next((each for each in (amd, intel, apple) if each.devices), Accelerators())
    notes = tuple(note for each in (amd, intel, apple) for note in each.notes)
    return Accelerators(devices=found.devices, notes=notes, driver_version=found.driver_version)


def _amd(environment: Mapping[str, str], root: Path) -> Accelerators:
    """Reads the compute driver's list of nodes; processors stand in it too, without SIMD units."""
    nodes = sorted((root / _KFD).glob("*/properties"), key=lambda path: int(path.parent.name))
    facts = [(path.parent, _properties(path)) for path in nodes]
    gpus = [_amd_gpu(node, entries, root) for node, entries in facts if entries.get("simd_count", 0)]
    if not gpus:
        return Accelerators()
    # The small ones are left out afterwards: the variables number them too.
    for variable in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        visible = environment.get(variable)
        if hides_all(visible):
            return Accelerators(notes=(f"{variable}={visible!r} hides every AMD GPU",))
        chosen = visible_indices(visible, [gpu.uuid or "" for gpu in gpus], variable=variable)
        gpus = [gpus[index] for index in chosen]
    usable = [gpu for gpu in gpus if gpu.total_memory_bytes >= LEAST_MEMORY]
    notes = [_too_small(gpu) for gpu in gpus if gpu not in usable]
    if not usable:
        return Accelerators(notes=tuple(notes))
    version = system_text(root / "sys/module/amdgpu/version") or None
    return Accelerators(devices=tuple(usable), notes=tuple(notes), driver_version=version)


def _amd_gpu(node: Path, entries: dict[str, int], root: Path) -> Accelerator:
    device = root / f"sys/class/drm/renderD{entries.get('drm_render_minor', 0)}/device"
    banks = sum(_properties(path).get("size_in_bytes", 0) for path in sorted(node.glob("mem_banks/*/properties")))
    total = _number(device / "mem_info_vram_total") or banks
    used = _number(device / "mem_info_vram_used") or 0
    revision = system_text(device / "revision").removeprefix("0x") or "00"
    record = find_by_pci_id(f"{entries.get('vendor_id', 0):04x}:{entries.get('device_id', 0):04x}:{revision}")
    architecture = system_text(node / "name") or f"gfx {entries.get('gfx_target_version', 0)}"
    name = to_device(record).name if record else system_text(device / "product_name") or f"AMD GPU ({architecture})"
    unique = entries.get("unique_id", 0)
    cap = next((_number(path) for path in sorted(device.glob("hwmon/hwmon*/power1_cap"))), None)
    return Accelerator(
        name=name,
        kind="rocm",
        total_memory_bytes=total,
        free_memory_bytes=max(total - used, 0),
        record=record,
        uuid=f"GPU-{unique:016x}" if unique else None,
        selector=f"ROCR_VISIBLE_DEVICES=GPU-{unique:016x}" if unique else None,
        power_limit_watts=cap / 1e6 if cap else None,
    )


def _intel(root: Path) -> Accelerators:
    """Reads the cards of the graphics drivers; their memory is the catalogue's where the driver does not tell it."""
    cards = sorted((root / "sys/class/drm").glob("card[0-9]*/device/vendor"))
    ids = [(path.parent, _pci_id(path.parent)) for path in cards if system_text(path) == _INTEL]
    found = [(device, record) for device, pci_id in ids if (record := find_by_pci_id(pci_id)) is not None]
    unknown = [pci_id for _, pci_id in ids if find_by_pci_id(pci_id) is None]
    notes = [f"an Intel GPU ({pci_id}) that the catalogue lacks is left out" for pci_id in unknown]
    if found:
        notes.append("how much of an Intel GPU's memory is free is not told without its libraries; taken as all of it")
    devices = tuple(_intel_gpu(place, device, record) for place, (device, record) in enumerate(found))
    return Accelerators(devices=devices, notes=tuple(notes))


def _intel_gpu(place: int, device: Path, record: DeviceRecord) -> Accelerator:
    known = to_device(record)
    total = _number(device / "tile0/physical_vram_size_bytes") or known.total_memory_bytes
    return Accelerator(
        name=known.name,
        kind="xpu",
        total_memory_bytes=total,
        free_memory_bytes=total,
        record=record,
        selector=f"ZE_AFFINITY_MASK={place}",
    )


def _pci_id(device: Path) -> str:
    parts = [system_text(device / name).removeprefix("0x") for name in ("vendor", "device", "revision")]
    return ":".join(part or "00" for part in parts)


def _is_apple() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _apple(ask: Sysctl) -> Accelerators:
    """Returns the GPU of an Apple chip, with the share of the memory that Metal recommends at most to a process."""
    chip, memory = ask("machdep.cpu.brand_string"), int(ask("hw.memsize") or 0)
    limit = int(ask("iogpu.wired_limit_mb") or 0) * MIB
    working_set = limit or (memory * 2 // 3 if memory <= _SMALL_MAC else memory * 3 // 4)
    note = (
        f"Metal's limit for one process is taken as {format_gib(working_set)} of {format_gib(memory)}"
        f"{' (iogpu.wired_limit_mb)' if limit else ', its usual share'}; torch.mps.recommended_max_memory() tells it"
    )
    gpu = Accelerator(
        name=chip,
        kind="mps",
        total_memory_bytes=working_set,
        free_memory_bytes=min(working_set, int(psutil.virtual_memory().available)),
        record=find_by_driver_name(chip, memory),
    )
    return Accelerators(devices=(gpu,), notes=(note,), driver_version=f"macOS {platform.mac_ver()[0]}")


def _too_small(gpu: Accelerator) -> str:
    return f"{gpu.name} is left out: its {format_gib(gpu.total_memory_bytes)} of memory are too little to train on"


def _properties(path: Path) -> dict[str, int]:
    """Returns the ``name number`` lines of a node's file."""
    pairs = (line.split() for line in system_text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _number(path: Path) -> int | None:
    text = system_text(path)
    return int(text) if text.isdecimal() else None
