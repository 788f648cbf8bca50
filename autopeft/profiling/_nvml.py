"""The CUDA devices that this process may use, as NVIDIA's management library (NVML) reports them now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autopeft.errors import HardwareError

# The empty text and -1 are CUDA's own; Slurm writes NoDevFiles into jobs that asked for no GPU.
_HIDES_ALL = frozenset({"", "-1", "NoDevFiles"})
_INSTEAD = "to plan without it, name a device (autopeft hardware lists them) or set CUDA_VISIBLE_DEVICES to nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """One CUDA device, as the driver reports it."""

    name: str
    uuid: str
    total_memory_bytes: int
    free_memory_bytes: int
    compute_capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class CudaDevices:
    """The visible devices (none is a valid answer), and what the caller must be told."""

    devices: tuple[CudaDevice, ...]
    notes: tuple[str, ...] = ()


class _NoCudaError(Exception):
    """This machine has no NVIDIA driver; the text says how we know."""


def probe_cuda(environment: Mapping[str, str]) -> CudaDevices:
    """Returns the CUDA devices that a process with this environment may use, in the order CUDA numbers them.

    Raises:
        HardwareError: if there is an NVIDIA driver but it cannot be used, or CUDA_VISIBLE_DEVICES names no device.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in _HIDES_ALL:
        return CudaDevices((), (f"CUDA_VISIBLE_DEVICES={visible!r} hides every CUDA GPU",))
    try:
        with _nvml() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            return _describe(nvml, handles, environment)
    except _NoCudaError as error:
        return CudaDevices((), (str(error),))


@contextmanager
def _nvml() -> Iterator[Any]:
    """Gives the initialized library; every failure but a missing driver becomes a HardwareError."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError_LibraryNotFound as error:
        raise _NoCudaError("no NVIDIA management library (NVML) is installed, so no CUDA GPU was looked for") from error
    except pynvml.NVMLError_DriverNotLoaded as error:
        raise _NoCudaError("the NVIDIA driver is not loaded, so no CUDA GPU can be used") from error
    except pynvml.NVMLError_LibRmVersionMismatch as error:
        raise HardwareError(
            "the loaded NVIDIA driver and the installed NVIDIA library have different versions, as after an update of"
            f" the driver; reboot or reload the driver (nvidia-smi must work again); {_INSTEAD}"
        ) from error
    except pynvml.NVMLError as error:
        raise HardwareError(
            f"the NVIDIA driver is present but NVML answers {str(error)!r}; see whether nvidia-smi works; {_INSTEAD}"
        ) from error


def _describe(nvml: Any, handles: list[Any], environment: Mapping[str, str]) -> CudaDevices:
    if not handles:
        return CudaDevices((), ("the NVIDIA driver is loaded but reports no GPU",))
    uuids = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    chosen = visible_indices(environment.get("CUDA_VISIBLE_DEVICES"), uuids)
    devices = tuple(_device(nvml, handles[index], uuids[index]) for index in chosen)
    names = {str(nvml.nvmlDeviceGetName(handle)) for handle in handles}
    return CudaDevices(devices, _order_notes(names, environment))


def visible_indices(visible: str | None, uuids: list[str]) -> list[int]:
    """Returns the positions in ``uuids`` that the value of CUDA_VISIBLE_DEVICES selects, in its order.

    As in CUDA, an entry is an index or the beginning of one UUID, and -1 ends the list. CUDA also stops, in silence, at
    an entry that names no device; here that is an error, since a run would use fewer devices than its user wrote.

    Args:
        visible: None selects all.
        uuids: of all devices, in the driver's order.
    """
    if visible is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry == "-1":
            break
        index = _index_of(entry, uuids)
        if index is None or index in chosen:
            problem = "names no single device of this machine" if index is None else "stands there twice"
            raise HardwareError(
                f"CUDA_VISIBLE_DEVICES={visible!r}: {entry!r} {problem}; allowed are 0 to {len(uuids) - 1}"
                f" and {', '.join(uuids)}; {_INSTEAD}"
            )
        chosen.append(index)
    return chosen


def _index_of(entry: str, uuids: list[str]) -> int | None:
    if entry.isdecimal():
        return int(entry) if int(entry) < len(uuids) else None
    matches = [index for index, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _device(nvml: Any, handle: Any, uuid: str) -> CudaDevice:
    name = str(nvml.nvmlDeviceGetName(handle))
    if _is_partitioned(nvml, handle):
        raise HardwareError(
            f"{name} ({uuid}) is split into MIG instances, which the probe does not read yet;"
            " describe one in a YAML file with the keys of profiles/hardware/*.yaml and give --hardware FILE.yaml"
        )
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return CudaDevice(
        name=name,
        uuid=uuid,
        total_memory_bytes=int(memory.total),
        free_memory_bytes=int(memory.free),
        compute_capability=(int(major), int(minor)),
    )


def _is_partitioned(nvml: Any, handle: Any) -> bool:
    """Returns whether the device is in MIG mode; its whole memory would then be far more than CUDA can use."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False
    return bool(current)


def _order_notes(names: set[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the warning that NVML numbers by bus and CUDA, unless told otherwise, puts the fastest first."""
    if len(names) < 2 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return ()
    return (
        f"this machine has different GPUs ({', '.join(sorted(names))}), which CUDA may number in another order;"
        " set CUDA_DEVICE_ORDER=PCI_BUS_ID to be sure that the first one here is the first one there",
    )
