"""Facts of the host: its processor and the memory and cores that this process may really use."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from autopeft.profiling._system_files import system_text
from autopeft.specs import HostProfile
from autopeft.units import format_gib

# "bf16" is how arm64 Linux spells it; the other two are x86's. A processor without any of them converts in software.
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_INSTRUCTION_SETS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "sve", "bf16", "i8mm"),
)
"""As Linux spells what matters for matrix products, x86's first, then arm64's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What this process may use of the host.

    Attributes:
        profile: as a hardware profile holds it.
        total_memory_bytes: physical memory or the container's limit, whichever is less.
        has_bfloat16: whether the instruction set computes in bfloat16; None where the system does not tell.
    """

    profile: HostProfile
    total_memory_bytes: int
    has_bfloat16: bool | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What limits this process, one sentence each."""
        found = []
        if self.profile.memory_limit_bytes is not None:
            limit, whole = format_gib(self.profile.memory_limit_bytes), format_gib(self.profile.physical_memory_bytes)
            found.append(f"a container or job limit leaves {limit} of the host's {whole} of memory")
        if self.profile.is_wsl:
            found.append(
                "this is WSL: Windows and its programs hold device memory too, and the driver names none of them"
            )
        return tuple(found)


def probe_host(root: Path = Path("/")) -> HostFacts:
    """Returns the facts of this host.

    Args:
        root: folder under which ``proc``, ``sys`` and ``dev`` are looked up.
    """
    cpuinfo = system_text(root / "proc/cpuinfo")
    flags = (_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split()
    physical = int(psutil.virtual_memory().total)
    total, free = _usable_memory(root)
    cores = _usable_cores(root)
    return HostFacts(
        total_memory_bytes=total,
        has_bfloat16=bool(_BFLOAT16_FLAGS & set(flags)) if flags else None,
        profile=HostProfile(
            processor=_field(cpuinfo, "model name")
            or platform.processor()
            or platform.machine()
            or "unknown processor",
            physical_memory_bytes=physical,
            memory_limit_bytes=total if total < physical else None,
            free_memory_bytes=free,
            physical_cores=_physical_cores(root, cores),
            logical_cores=cores,
            instruction_sets=tuple(name for name in _INSTRUCTION_SETS if name in flags),
            is_wsl="microsoft" in system_text(root / "proc/sys/kernel/osrelease").lower(),
        ),
    )


def _physical_cores(root: Path, usable: int) -> int | None:
    """Returns how many cores the usable logical ones stand for: siblings of one core count once."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        found = psutil.cpu_count(logical=False)
        return None if found is None else min(found, usable)
    topology = root / "sys/devices/system/cpu"
    siblings = {system_text(topology / f"cpu{cpu}/topology/thread_siblings_list").strip() for cpu in affinity(0)}
    return None if "" in siblings else min(len(siblings), usable)


def _usable_memory(root: Path) -> tuple[int, int]:
    """Returns the total and the free bytes, both within every control group that holds this process."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for limit, used in _memory_limits(root):
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return total, min(free, total)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yields the limit and the use in bytes of each control group; page cache that can be dropped is no use."""
    for folder in _control_groups(root, "memory"):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = system_text(folder / limit_name).strip()
            if limit.isdigit():
                used = int(system_text(folder / used_name).strip() or 0)
                yield int(limit), used - _counter(system_text(folder / "memory.stat"), cache_name)


def _usable_cores(root: Path) -> int:
    """Returns the cores of the affinity mask, cut down to whole cores of the smallest container quota."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else psutil.cpu_count() or 1
    for quota, period in _core_quotas(root):
        cores = min(cores, quota // period)
    return max(cores, 1)


def _core_quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Yields quota and period in microseconds of each control group that sets them (-1 and "max" mean no quota)."""
    for folder in _control_groups(root, "cpu"):
        limits = system_text(folder / "cpu.max").split() or [
            system_text(folder / "cpu.cfs_quota_us").strip(),
            system_text(folder / "cpu.cfs_period_us").strip(),
        ]
        if len(limits) == 2 and all(limit.isdigit() for limit in limits) and int(limits[1]) > 0:
            yield int(limits[0]), int(limits[1])


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yields the folders of the control groups (version 1 and 2) that hold this process, with all their parents."""
    mounts = root / "sys/fs/cgroup"
    for line in system_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _with_parents(mounts, path)
            yield from _with_parents(mounts / "unified", path)
        elif controller in controllers.split(","):
            yield from _with_parents(mounts / controller, path)


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    """Yields the folder of a control group and of its parents; a limit anywhere above binds too.

    A container often sees its own group as the mount although the kernel names it by the path outside: what does not
    exist is passed over, the mount itself always comes last.
    """
    folder = mount / path.lstrip("/")
    yield from (part for part in (folder, *folder.parents) if part.is_relative_to(mount) and part.is_dir())


def _field(cpuinfo: str, name: str) -> str:
    """Returns the first value of a ``name : value`` line, or nothing."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _counter(statistics: str, name: str) -> int:
    """Returns the value of a ``name value`` line, or 0."""
    for line in statistics.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
