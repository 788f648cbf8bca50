"""AMD, Intel and Apple GPUs, by folders that look like another machine's /sys and by what sysctl would say."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.errors import HardwareError
from autopeft.profiling._accelerators import Accelerators, _apple, probe_accelerators
from autopeft.profiling._host import probe_host
from autopeft.profiling._probe import _accelerator_profile
from autopeft.units import GIB, MIB
from tests.unit.profiling.system_folders import write

NODES = "sys/class/kfd/kfd/topology/nodes"
# Names and formats of the amdgpu driver's files (kfd topology, mem_info_vram_*), ids of an MI300X.
MI300X = "simd_count 1216\nvendor_id 4098\ndevice_id 29857\ngfx_target_version 90402\n"


def amd_machine(root: Path, gpus: int = 2) -> Path:
    files = {f"{NODES}/0/properties": "cpu_cores_count 96\nsimd_count 0\n"}
    for place in range(1, gpus + 1):
        device = f"sys/class/drm/renderD{127 + place}/device"
        files |= {
            f"{NODES}/{place}/properties": f"{MI300X}drm_render_minor {127 + place}\nunique_id {place}\n",
            f"{NODES}/{place}/name": "gfx942\n",
            f"{device}/mem_info_vram_total": f"{196592 * MIB}\n",
            f"{device}/mem_info_vram_used": f"{(place - 1) * 96 * GIB}\n",
            f"{device}/revision": "0x00\n",
            f"{device}/hwmon/hwmon7/power1_cap": "750000000\n",
        }
    return write(root, {**files, "sys/module/amdgpu/version": "6.12.12\n"})


def test_amd_gpus_are_found_with_name_memory_and_limit_without_any_tool(tmp_path: Path) -> None:
    found = probe_accelerators({}, amd_machine(tmp_path))
    assert [(gpu.name, gpu.kind) for gpu in found.devices] == [("AMD Instinct MI300X", "rocm")] * 2
    free, taken = found.devices
    assert (free.total_memory_bytes, free.free_memory_bytes) == (196592 * MIB, 196592 * MIB)
    assert taken.free_memory_bytes == 196592 * MIB - 96 * GIB
    assert (free.power_limit_watts, found.driver_version) == (750, "6.12.12")
    assert (free.uuid, taken.selector) == ("GPU-0000000000000001", "ROCR_VISIBLE_DEVICES=GPU-0000000000000002")


def test_the_profile_of_an_amd_machine_uses_the_freer_gpu_with_the_catalogues_speeds(tmp_path: Path) -> None:
    profile = _accelerator_profile(probe_accelerators({}, amd_machine(tmp_path)), probe_host())
    assert (profile.device_count, profile.device_index, profile.device.kind) == (2, 0, "rocm")
    assert profile.device.peak_flops["bfloat16"] == 1.307e15
    assert (profile.device.supports_nf4, profile.device.supports_bfloat16) == (True, True)
    assert profile.device.compute_capability is None


@pytest.mark.parametrize(
    ("environment", "uuids"),
    [
        ({"HIP_VISIBLE_DEVICES": "1"}, ["GPU-0000000000000002"]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0000000000000002"}, ["GPU-0000000000000002"]),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "0"}, ["GPU-0000000000000002"]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
    ],
)
def test_amds_variables_choose_among_its_gpus(tmp_path: Path, environment: dict[str, str], uuids: list[str]) -> None:
    found = probe_accelerators(environment, amd_machine(tmp_path))
    assert [gpu.uuid for gpu in found.devices] == uuids
    assert uuids or any("hides every AMD GPU" in note for note in found.notes)


def test_a_variable_that_names_no_amd_gpu_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="HIP_VISIBLE_DEVICES='5'"):
        probe_accelerators({"HIP_VISIBLE_DEVICES": "5"}, amd_machine(tmp_path))


def test_the_graphics_unit_of_a_processor_is_left_out_and_said(tmp_path: Path) -> None:
    properties = "simd_count 4\nvendor_id 4098\ndevice_id 5710\ndrm_render_minor 128\n"
    files = {
        f"{NODES}/1/properties": properties,
        f"{NODES}/1/mem_banks/0/properties": f"heap_type 1\nsize_in_bytes {512 * MIB}\n",
    }
    found = probe_accelerators({}, write(tmp_path, files))
    assert found.devices == ()
    assert any("too little to train on" in note for note in found.notes)


def test_the_variables_number_the_graphics_unit_of_a_processor_too(tmp_path: Path) -> None:
    small = "simd_count 4\nvendor_id 4098\ndevice_id 5710\ndrm_render_minor 200\nunique_id 9\n"
    machine = write(amd_machine(tmp_path, gpus=2), {f"{NODES}/0/properties": small})
    found = probe_accelerators({"ROCR_VISIBLE_DEVICES": "1"}, machine)
    assert [gpu.uuid for gpu in found.devices] == ["GPU-0000000000000001"]
    alone = probe_accelerators({"ROCR_VISIBLE_DEVICES": "0"}, machine)
    assert alone.devices == ()
    assert any("too little to train on" in note for note in alone.notes)


def test_an_amd_gpu_that_the_catalogue_lacks_is_used_and_said_to_be_unknown(tmp_path: Path) -> None:
    root = amd_machine(tmp_path, gpus=2)
    for place in (1, 2):
        text = (root / f"{NODES}/{place}/properties").read_text()
        write(root, {f"{NODES}/{place}/properties": text.replace("device_id 29857", "device_id 1")})
    profile = _accelerator_profile(probe_accelerators({}, root), probe_host())
    assert profile.device.peak_flops == {}
    assert sum("the catalogue has no 'AMD GPU (gfx942)'" in note for note in profile.notes) == 1


def test_intel_gpus_of_the_catalogue_are_found_and_others_are_said(tmp_path: Path) -> None:
    files = {}
    for place, device_id in enumerate(("0xe20b", "0x4680")):
        folder = f"sys/class/drm/card{place}/device"
        files |= {f"{folder}/vendor": "0x8086\n", f"{folder}/device": f"{device_id}\n", f"{folder}/revision": "0x00\n"}
    found = probe_accelerators({}, write(tmp_path, files))
    assert [(gpu.name, gpu.kind, gpu.selector) for gpu in found.devices] == [
        ("Intel(R) Arc(TM) B580 Graphics", "xpu", "ZE_AFFINITY_MASK=0")
    ]
    assert any("8086:4680:00" in note and "left out" in note for note in found.notes)
    assert any("how much" in note and "free" in note for note in found.notes)


@pytest.mark.parametrize(
    ("memory_gib", "limit_mib", "expected_bytes"),
    [(16, 0, 16 * GIB * 2 // 3), (64, 0, 48 * GIB), (64, 60000, 60000 * MIB)],
)
def test_an_apple_gpu_has_the_share_of_the_memory_that_metal_gives_one_process(
    memory_gib: int, limit_mib: int, expected_bytes: int
) -> None:
    answers = {
        "machdep.cpu.brand_string": "Apple M1 Max",
        "hw.memsize": str(memory_gib * GIB),
        "iogpu.wired_limit_mb": str(limit_mib),
    }
    found = _apple(answers.__getitem__)
    (gpu,) = found.devices
    assert (gpu.name, gpu.kind, gpu.total_memory_bytes) == ("Apple M1 Max", "mps", expected_bytes)
    assert 0 < gpu.free_memory_bytes <= gpu.total_memory_bytes
    profile = _accelerator_profile(found, probe_host())
    assert profile.device.unified_memory
    assert profile.device.memory_bandwidth_bytes_per_second == 4.096e11
    assert any("Metal's limit" in note for note in profile.notes)


def test_a_machine_without_accelerators_has_none(tmp_path: Path) -> None:
    assert probe_accelerators({}, tmp_path) == Accelerators()
