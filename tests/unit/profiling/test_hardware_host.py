"""The host probe against folders that look like /proc and /sys of other machines."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.profiling._host import probe_host
from autopeft.units import GIB, MIB
from tests.unit.profiling.system_folders import write

PHYSICAL_BYTES = psutil.virtual_memory().total
EPYC = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\n"
NEOVERSE = "processor\t: 0\nBogoMIPS\t: 2000.00\nFeatures\t: fp asimd bf16 i8mm\n\n"


def test_version_2_limits_bind_and_droppable_cache_counts_as_free(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/app"
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/app\n",
            f"{group}/memory.max": f"{GIB}\n",
            f"{group}/memory.current": f"{600 * MIB}\n",
            f"{group}/memory.stat": f"anon {400 * MIB}\ninactive_file {200 * MIB}\n",
            f"{group}/cpu.max": "150000 100000\n",
        },
    )
    host = probe_host(root)
    # 1 GiB - (600 - 200) MiB = 624 MiB; 1.5 cores are one whole core.
    assert (host.total_memory_bytes, host.profile.free_memory_bytes, host.profile.logical_cores) == (GIB, 624 * MIB, 1)


def test_version_1_limits_bind_when_the_container_sees_its_group_as_the_mount(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/3f2a\n2:cpu,cpuacct:/docker/3f2a\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {256 * MIB}\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    host = probe_host(root)
    assert (host.total_memory_bytes, host.profile.free_memory_bytes, host.profile.logical_cores) == (
        2 * GIB,
        GIB + 256 * MIB,
        1,
    )


def test_a_parents_limit_binds_too(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/job\n",
            "sys/fs/cgroup/slice/job/memory.max": "max\n",
            "sys/fs/cgroup/slice/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/slice/memory.current": "0\n",
        },
    )
    assert probe_host(root).total_memory_bytes == GIB


def test_unlimited_groups_leave_the_physical_machine(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n1:cpu:/\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
    )
    host = probe_host(root)
    assert host.total_memory_bytes == PHYSICAL_BYTES
    assert host.profile.logical_cores == len(os.sched_getaffinity(0))


@settings(deadline=None)
@given(limit=st.integers(0, 2**63), used=st.integers(0, 2**63))
def test_free_memory_is_never_negative_nor_above_the_total_or_the_limit(limit: int, used: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {"memory.max": str(limit), "memory.current": str(used)}
        root = write(Path(folder), {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
        host = probe_host(write(root, {"proc/self/cgroup": "0::/\n"}))
    assert host.total_memory_bytes == min(limit, PHYSICAL_BYTES)
    assert 0 <= host.profile.free_memory_bytes <= max(limit - used, 0)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (EPYC, True),
        (NEOVERSE, True),
        (EPYC.replace("avx512_bf16", "amx_bf16"), True),
        (EPYC.replace("avx512_bf16", "avx512_vnni"), False),
        ("", None),
    ],
)
def test_bfloat16_is_read_from_the_instruction_set(tmp_path: Path, cpuinfo: str, expected: bool | None) -> None:
    assert probe_host(write(tmp_path, {"proc/cpuinfo": cpuinfo})).has_bfloat16 is expected


def test_the_processor_has_its_model_name_or_at_least_some_name(tmp_path: Path) -> None:
    assert probe_host(write(tmp_path, {"proc/cpuinfo": EPYC})).profile.processor == "AMD EPYC 9B14"
    assert probe_host(write(tmp_path, {"proc/cpuinfo": NEOVERSE})).profile.processor


def test_a_system_without_proc_and_sys_is_still_probed(tmp_path: Path) -> None:
    host = probe_host(tmp_path)
    assert host.total_memory_bytes == PHYSICAL_BYTES
    assert host.profile.logical_cores >= 1


TOPOLOGY = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def test_the_limit_of_a_container_and_the_memory_of_the_machine_are_told_apart(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": "0\n",
    }
    host = probe_host(write(tmp_path, files))
    assert (host.profile.physical_memory_bytes, host.profile.memory_limit_bytes) == (PHYSICAL_BYTES, GIB)
    assert any("limit leaves 1.00 GiB" in note for note in host.notes)


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    usable = sorted(os.sched_getaffinity(0))
    root = write(tmp_path, {TOPOLOGY.format(cpu): "0-1\n" for cpu in usable})
    assert probe_host(root).profile.physical_cores == 1
    apart = write(tmp_path, {TOPOLOGY.format(cpu): f"{cpu}\n" for cpu in usable})
    assert probe_host(apart).profile.physical_cores == len(usable)


def test_physical_cores_are_unknown_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert probe_host(tmp_path).profile.physical_cores is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            "fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8",
            "avx2 avx512f avx512_bf16 amx_tile amx_int8 amx_bf16",
        ),
        ("fpu avx2 fma", "avx2"),
        ("fpu", ""),
    ],
)
def test_instruction_sets_that_matter_for_products_are_listed(tmp_path: Path, flags: str, expected: str) -> None:
    host = probe_host(write(tmp_path, {"proc/cpuinfo": f"flags\t\t: {flags}\n"}))
    assert " ".join(host.profile.instruction_sets) == expected


def test_linux_inside_windows_is_said(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/sys/kernel/osrelease": "5.15.167.4-microsoft-standard-WSL2\n"})
    assert any("WSL" in note for note in probe_host(root).notes)
    assert not any("WSL" in note for note in probe_host(tmp_path / "elsewhere").notes)
