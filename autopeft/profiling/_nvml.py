"""The CUDA devices that this process may use, as NVIDIA's management library (NVML) reports them now."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from autopeft.errors import HardwareError
from autopeft.profiling._links import link_of
from autopeft.profiling._visible import INSTEAD, hides_all, order_notes, visible_indices
from autopeft.specs import DeviceProcess, Link

# nvmlNvlinkVersion_t counts revisions.
_NVLINK_GENERATIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """What part of a GPU a MIG instance is.

    Attributes:
        gpu_name: the driver's name of the whole GPU.
        compute_share, memory_share: of the GPU's multiprocessors and memory, 0 to 1.
    """

    gpu_name: str
    compute_share: float
    memory_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """One CUDA device or MIG instance, as the driver reports it; the fields are those of ``specs.Device``.

    Attributes:
        gpu: number of the GPU that it is or is a part of, in the driver's order.
        gpu_memory_bytes: total memory of that GPU.
        default_power_watts: the limit that the board comes with; None if unknown.
        peer_link: NVLink to other devices; None without one.
        shares_host_memory: whether the driver knows of no memory of its own, as on a GB10; the three figures of memory
            are then 0, for the host to fill in.
    """

    gpu: int
    name: str
    uuid: str
    total_memory_bytes: int
    free_memory_bytes: int
    used_memory_bytes: int
    gpu_memory_bytes: int
    compute_capability: tuple[int, int]
    partition: Partition | None = None
    processes: tuple[DeviceProcess, ...] = ()
    has_ecc: bool | None = None
    default_power_watts: float | None = None
    power_limit_watts: float | None = None
    max_clock_mhz: int | None = None
    clock_limit_mhz: int | None = None
    host_link: Link | None = None
    peer_link: Link | None = None
    shares_host_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevices:
    """The visible devices (none is a valid answer), and what the caller must be told.

    Attributes:
        devices: in the order in which CUDA_VISIBLE_DEVICES names them, else the driver's.
        notes: one sentence each.
        driver_version: None where no driver was asked.
        cuda_version: the newest that the driver can run.
        all_peers: whether every pair of devices has NVLink between them.
    """

    devices: tuple[CudaDevice, ...] = ()
    notes: tuple[str, ...] = ()
    driver_version: str | None = None
    cuda_version: str | None = None
    all_peers: bool = False


class _NoCudaError(Exception):
    """This machine has no NVIDIA driver; the text says how we know."""


def probe_cuda(environment: Mapping[str, str]) -> CudaDevices:
    """Returns the CUDA devices that a process with this environment may use, in the order CUDA numbers them.

    Raises:
        HardwareError: if there is an NVIDIA driver but it cannot be used, or CUDA_VISIBLE_DEVICES names no device.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if hides_all(visible):
        return CudaDevices(notes=(f"CUDA_VISIBLE_DEVICES={visible!r} hides every CUDA GPU",))
    try:
        with _nvml() as nvml:
            return _describe(nvml, environment)
    except _NoCudaError as error:
        return CudaDevices(notes=(str(error),))


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
            f" the driver; reboot or reload the driver (nvidia-smi must work again); {INSTEAD}"
        ) from error
    except pynvml.NVMLError as error:
        raise HardwareError(
            f"the NVIDIA driver is present but NVML answers {str(error)!r}; see whether nvidia-smi works; {INSTEAD}"
        ) from error


@dataclass(frozen=True, slots=True)
class _Handle:
    """A device or MIG instance, before it is asked anything that costs time."""

    gpu: int
    whole: Any
    instance: Any | None

    @property
    def own(self) -> Any:
        return self.whole if self.instance is None else self.instance


def _describe(nvml: Any, environment: Mapping[str, str]) -> CudaDevices:
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if not gpus:
        return CudaDevices(notes=("the NVIDIA driver is loaded but reports no GPU",))
    divided = [_instances(nvml, index, gpu) for index, gpu in enumerate(gpus)]
    handles = [handle for instances in divided for handle in instances]
    undivided = tuple(_undivided(nvml, index, gpu) for index, gpu in enumerate(gpus) if not divided[index])
    if not handles:
        raise HardwareError(f"{undivided[0]}; {INSTEAD}")
    uuids = [str(nvml.nvmlDeviceGetUUID(handle.own)) for handle in handles]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    chosen = visible_indices(visible, uuids, [handle.gpu for handle in handles])
    devices = tuple(_device(nvml, handles[index], uuids[index]) for index in chosen)
    names = {str(nvml.nvmlDeviceGetName(gpu)) for gpu in gpus}
    cuda = _optional(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return CudaDevices(
        devices=devices,
        notes=(*undivided, *order_notes(names, environment), *_limits_notes(devices)),
        driver_version=_optional(nvml, nvml.nvmlSystemGetDriverVersion),
        cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        all_peers=_all_peers(nvml, [handles[index] for index in chosen]),
    )


def _undivided(nvml: Any, index: int, gpu: Any) -> str:
    return (
        f"{nvml.nvmlDeviceGetName(gpu)} (GPU {index}) is in MIG mode but has no instance, so nothing can run on it;"
        " make one (nvidia-smi mig -cgi ... -C), or leave MIG mode"
    )


def _instances(nvml: Any, index: int, gpu: Any) -> list[_Handle]:
    """Returns the GPU, or in MIG mode its instances, perhaps none: the GPU as a whole cannot be used then."""
    mode = _optional(nvml, nvml.nvmlDeviceGetMigMode, gpu)
    if mode is None or not mode[0]:
        return [_Handle(index, gpu, None)]
    places = range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu))
    found = [_optional(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, place) for place in places]
    return [_Handle(index, gpu, instance) for instance in found if instance is not None]


def _device(nvml: Any, handle: _Handle, uuid: str) -> CudaDevice:
    gpu, own = handle.whole, handle.own
    memory, whole = _memory(nvml, own), _memory(nvml, gpu)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(gpu)
    ecc = _optional(nvml, nvml.nvmlDeviceGetEccMode, gpu)
    return CudaDevice(
        gpu=handle.gpu,
        name=str(nvml.nvmlDeviceGetName(own)),
        uuid=uuid,
        total_memory_bytes=memory.total,
        free_memory_bytes=memory.free,
        used_memory_bytes=memory.used,
        gpu_memory_bytes=whole.total,
        shares_host_memory=memory.total == 0,
        compute_capability=(int(major), int(minor)),
        partition=None if handle.instance is None else _partition(nvml, handle),
        processes=_processes(nvml, own),
        has_ecc=None if ecc is None else bool(ecc[0]),
        default_power_watts=_watts(nvml, nvml.nvmlDeviceGetPowerManagementDefaultLimit, gpu),
        power_limit_watts=_watts(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, gpu),
        max_clock_mhz=_optional(nvml, nvml.nvmlDeviceGetMaxClockInfo, gpu, nvml.NVML_CLOCK_SM),
        clock_limit_mhz=_clock_limit(nvml, gpu),
        host_link=_host_link(nvml, gpu),
        peer_link=_peer_link(nvml, gpu),
    )


class _Memory(NamedTuple):
    total: int
    free: int
    used: int


def _memory(nvml: Any, handle: Any) -> _Memory:
    """Returns a device's memory; all 0 where it has none of its own.

    NVML answers "Not Supported" for a GB10 (https://github.com/kubernetes-sigs/dra-driver-nvidia-gpu/issues/1073), or
    zero in other versions of the driver (https://github.com/Syllo/nvtop/pull/411).
    """
    found = _optional(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    return _Memory(0, 0, 0) if found is None else _Memory(int(found.total), int(found.free), int(found.used))


def _clock_limit(nvml: Any, gpu: Any) -> int | None:
    """Returns the clock that applications were set to; None where it is the default, from which the device boosts."""
    applied = _optional(nvml, nvml.nvmlDeviceGetApplicationsClock, gpu, nvml.NVML_CLOCK_SM)
    default = _optional(nvml, nvml.nvmlDeviceGetDefaultApplicationsClock, gpu, nvml.NVML_CLOCK_SM)
    return applied if applied and default and applied < default else None


def _partition(nvml: Any, handle: _Handle) -> Partition:
    attributes = nvml.nvmlDeviceGetAttributes(handle.instance)
    slices = nvml.nvmlDeviceGetMaxMigDeviceCount(handle.whole)
    whole = nvml.nvmlDeviceGetMemoryInfo(handle.whole).total
    return Partition(
        gpu_name=str(nvml.nvmlDeviceGetName(handle.whole)),
        compute_share=min(1.0, attributes.computeInstanceSliceCount / slices),
        memory_share=min(1.0, nvml.nvmlDeviceGetMemoryInfo(handle.instance).total / whole),
    )


def _processes(nvml: Any, handle: Any) -> tuple[DeviceProcess, ...]:
    """Returns the other processes on a device, each once, the largest first."""
    found: dict[int, int | None] = {}
    for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in _optional(nvml, ask, handle) or ():
            found[int(process.pid)] = process.usedGpuMemory
    found.pop(os.getpid(), None)
    largest_first = sorted(found.items(), key=lambda item: (-(item[1] or 0), item[0]))
    return tuple(DeviceProcess(pid=pid, name=_name(nvml, pid), memory_bytes=size) for pid, size in largest_first)


def _name(nvml: Any, pid: int) -> str | None:
    path = _optional(nvml, nvml.nvmlSystemGetProcessName, pid)
    return None if not path else os.path.basename(str(path).split(" ")[0]) or None


def _host_link(nvml: Any, gpu: Any) -> Link | None:
    """Returns the PCIe link at the generation that device and slot reach; idle devices lower the current one."""
    generation = _optional(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, gpu)
    width = _optional(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, gpu)
    return link_of("pcie", f"{generation}.0", width) if generation and width else None


def _peer_link(nvml: Any, gpu: Any) -> Link | None:
    places = range(nvml.NVML_NVLINK_MAX_LINKS)
    active = [place for place in places if _optional(nvml, nvml.nvmlDeviceGetNvLinkState, gpu, place)]
    if not active:
        return None
    version = _optional(nvml, nvml.nvmlDeviceGetNvLinkVersion, gpu, active[0])
    return link_of("nvlink", _NVLINK_GENERATIONS.get(version, "unknown"), len(active))


def _all_peers(nvml: Any, handles: list[_Handle]) -> bool:
    """Returns whether all pairs of devices reach each other over NVLink; MIG instances cannot."""
    pairs = [(first, second) for place, first in enumerate(handles) for second in handles[:place]]
    if not pairs or any(handle.instance is not None for handle in handles):
        return False
    kind, ok = nvml.NVML_P2P_CAPS_INDEX_NVLINK, nvml.NVML_P2P_STATUS_OK
    return all(_optional(nvml, nvml.nvmlDeviceGetP2PStatus, a.whole, b.whole, kind) == ok for a, b in pairs)


def _watts(nvml: Any, ask: Callable[[Any], int], gpu: Any) -> float | None:
    milliwatts = _optional(nvml, ask, gpu)
    return None if milliwatts is None else milliwatts / 1000


def _limits_notes(devices: tuple[CudaDevice, ...]) -> Iterator[str]:
    for device in devices:
        default, limit = device.default_power_watts, device.power_limit_watts
        if default and limit and limit < default:
            yield f"the power of {device.name} is limited to {limit:g} of {default:g} W, so it is slower than predicted"
        if device.clock_limit_mhz:
            clocks = f"{device.clock_limit_mhz} of {device.max_clock_mhz} MHz"
            yield f"the clock of {device.name} is limited to {clocks}, so it may be slower than predicted"


def _optional(nvml: Any, ask: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the driver's answer; None where this device, driver or user has none."""
    try:
        return ask(*arguments)
    except (
        nvml.NVMLError_NotSupported,
        nvml.NVMLError_FunctionNotFound,
        nvml.NVMLError_NoPermission,
        nvml.NVMLError_NotFound,
        nvml.NVMLError_InvalidArgument,
    ):
        return None
