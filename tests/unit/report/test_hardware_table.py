"""The hardware table: what it shows, and that it fits a terminal of 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from autopeft.profiling.hardware import hardware_names, load_hardware
from autopeft.report import hardware_table
from autopeft.specs import DeviceProcess, HardwareProfile, HostProfile, Link
from autopeft.units import GIB


def printed(profile: HardwareProfile) -> str:
    screen = io.StringIO()
    Console(file=screen, width=80, color_system=None).print(hardware_table(profile))
    return screen.getvalue()


def probed() -> HardwareProfile:
    """Returns two GPUs as a probe finds them, the first one half taken."""
    profile = load_hardware("2x h100-80gb-sxm")
    first, second = profile.devices
    taken = replace(
        first,
        free_memory_bytes=40 * GIB,
        processes=(DeviceProcess(pid=4242, name="python", memory_bytes=39 * GIB), DeviceProcess(pid=77)),
    )
    idle = replace(second, has_ecc=True, power_limit_watts=500, max_clock_mhz=1980, clock_limit_mhz=1200)
    host = HostProfile(
        processor="AMD EPYC 9654 96-Core Processor",
        physical_memory_bytes=1024 * GIB,
        memory_limit_bytes=64 * GIB,
        free_memory_bytes=60 * GIB,
        physical_cores=8,
        logical_cores=16,
        instruction_sets=("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    )
    link = Link(kind="pcie", generation="5.0", count=16, bytes_per_second=63e9)
    return replace(
        profile,
        origin="probed",
        devices=(taken, replace(idle, host_link=link)),
        interconnect="NVLink 4.0 x18",
        interconnect_bytes_per_second=450e9,
        driver_version="580.65.06",
        cuda_version="13.0",
        host=host,
    )


def test_a_probed_machine_shows_its_devices_the_chosen_one_and_the_host() -> None:
    text = " ".join(printed(probed()).split())
    for words in (
        "NVLink 4.0 x18, 450 GB/s a direction",
        "device 1, NVIDIA H100 80GB HBM3: it has the most free memory",
        "580.65.06, CUDA up to 13.0",
        "60.00 GiB free of 64.00 GiB (machine: 1024.00 GiB)",
        "16 logical, on 8 physical ones",
        "avx512_bf16",
        "40/79.65",
        "ECC on",
        "up to 1980 MHz, applications limited to 1200 MHz",
        "PCIe 5.0 x16, 63 GB/s a direction",
        "700 W, limit 500 W",
        "datacenter class",
    ):
        assert words in text, words


def test_other_processes_are_listed_also_where_the_driver_hides_their_name_and_size() -> None:
    machine = probed()
    text = " ".join(printed(replace(machine, devices=machine.devices[:1])).split())
    assert "4242 python: 39.00 GiB" in text
    assert "77 (name not told): unknown memory" in text


@pytest.mark.parametrize("name", ["m4-max", "mi300x", "arc-b580"])
def test_what_nothing_was_checked_on_is_called_unverified(name: str) -> None:
    assert "unverified" in printed(load_hardware(name))


def test_every_device_and_every_pair_of_devices_fits_80_columns() -> None:
    for name in hardware_names():
        for text in (name, f"2x {name} + rtx-pro-6000-server"):
            assert max(len(line.rstrip()) for line in printed(load_hardware(text)).splitlines()) <= 80
    assert max(len(line.rstrip()) for line in printed(probed()).splitlines()) <= 80
