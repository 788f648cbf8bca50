"""The CUDA probe, through the real pynvml, against a small libnvidia-ml.so.1 that is compiled here."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autopeft.errors
from autopeft.errors import HardwareError
from autopeft.profiling._visible import visible_indices
from autopeft.specs import DeviceProcess, HardwareProfile, from_json
from autopeft.units import GIB, MIB

SOURCE_ROOT = Path(autopeft.errors.__file__).parents[1]
PROBE = """
import sys
from autopeft.errors import HardwareError
from autopeft.profiling.hardware import probe_hardware
from autopeft.specs import to_json
try:
    sys.stdout.write(to_json(probe_hardware()))
except HardwareError as error:
    sys.exit(str(error))
"""

Prober = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run_probe(tmp_path_factory: pytest.TempPathFactory) -> Prober:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is missing: the fake libnvidia-ml.so.1 cannot be compiled")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", source], check=True)

    @functools.cache
    def run(machine: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        environment |= {"FAKE_NVML": machine, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(SOURCE_ROOT)}
        command = [sys.executable, "-W", "error", "-c", PROBE]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)

    return run


def profile_of(process: subprocess.CompletedProcess[str]) -> HardwareProfile:
    assert process.returncode == 0, process.stderr
    return from_json(process.stdout, HardwareProfile, "the probe")


def error_of(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    return process.stderr


def test_a_probed_rtx_4090_has_the_drivers_memory_and_the_catalogues_speeds(run_probe: Prober) -> None:
    profile = profile_of(run_probe("rtx4090"))
    device = profile.device
    assert (profile.name, profile.origin, profile.device_count) == ("NVIDIA GeForce RTX 4090", "probed", 1)
    assert (device.kind, device.compute_capability) == ("cuda", (8, 9))
    assert (device.total_memory_bytes, device.free_memory_bytes) == (24564 * MIB, 24564 * MIB - 2 * GIB)
    # Bandwidth and dense bfloat16 figure: waredb.com/processor/nvidia-geforce-rtx-4090, as the catalogue has them.
    assert device.memory_bandwidth_bytes_per_second == 1.008e12
    assert device.peak_flops["bfloat16"] == 1.65e14
    assert device.supports_bfloat16
    assert device.supports_flash_attention
    assert profile.host_memory_bytes is not None
    assert profile.host_memory_bytes <= psutil.virtual_memory().total
    assert "rtx-4090" in profile.source
    assert profile.checked is None
    assert profile.notes == ()


def test_a_gpu_without_memory_of_its_own_has_the_processors(run_probe: Prober) -> None:
    profile = profile_of(run_probe("gb10"))
    (device,) = profile.devices
    assert (device.name, device.kind, device.unified_memory) == ("NVIDIA GB10", "cuda", True)
    assert device.total_memory_bytes == profile.host_memory_bytes
    assert 0 < device.free_memory_bytes <= device.total_memory_bytes
    assert any("the driver reports no memory of NVIDIA GB10" in note for note in profile.notes)


def test_a_machine_without_a_driver_is_its_processor_and_says_why(run_probe: Prober) -> None:
    profile = profile_of(run_probe("no-driver"))
    assert profile.device.kind == "cpu"
    assert "the NVIDIA driver is not loaded, so no CUDA GPU can be used" in profile.notes


def test_a_driver_without_a_gpu_is_the_processor_and_says_why(run_probe: Prober) -> None:
    profile = profile_of(run_probe("no GPU of this name is in the fake"))
    assert profile.device.kind == "cpu"
    assert "the NVIDIA driver is loaded but reports no GPU" in profile.notes


def test_a_driver_and_a_library_that_differ_are_an_error_that_says_what_to_do(run_probe: Prober) -> None:
    error = error_of(run_probe("mismatch"))
    assert "different versions" in error
    assert "reboot" in error


def test_hidden_gpus_leave_the_processor_and_say_why(run_probe: Prober) -> None:
    profile = profile_of(run_probe("rtx4090", CUDA_VISIBLE_DEVICES=""))
    assert profile.device.kind == "cpu"
    assert "CUDA_VISIBLE_DEVICES='' hides every CUDA GPU" in profile.notes


def test_all_gpus_are_found_and_their_doubtful_order_is_said(run_probe: Prober) -> None:
    profile = profile_of(run_probe("two"))
    assert [device.name for device in profile.devices] == ["NVIDIA GeForce RTX 3090", "NVIDIA Imaginary 9000"]
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in profile.notes)
    assert not any("ORDER" in note for note in profile_of(run_probe("two", CUDA_DEVICE_ORDER="PCI_BUS_ID")).notes)


@pytest.mark.parametrize("visible", ["1", "GPU-90000000-bbbb", "GPU-9", "1,-1,0"])
def test_an_unknown_gpu_picked_by_index_or_uuid_has_only_what_its_capability_tells(
    run_probe: Prober, visible: str
) -> None:
    profile = profile_of(run_probe("two", CUDA_VISIBLE_DEVICES=visible))
    (device,) = profile.devices
    assert device.name == "NVIDIA Imaginary 9000"
    assert (device.memory_bandwidth_bytes_per_second, device.peak_flops) == (None, {})
    # 7.5 is Turing: float16 tensor cores and LLM.int8(), but no bfloat16 and no FlashAttention-2.
    assert (device.supports_float16, device.supports_int8, device.supports_nf4) == (True, True, True)
    assert (device.supports_bfloat16, device.supports_flash_attention) == (False, False)
    assert any("NVIDIA Imaginary 9000" in note and "unknown" in note for note in profile.notes)


def test_visible_devices_are_reordered_as_cuda_does(run_probe: Prober) -> None:
    profile = profile_of(run_probe("two", CUDA_VISIBLE_DEVICES="1,0"))
    assert [device.name for device in profile.devices] == ["NVIDIA Imaginary 9000", "NVIDIA GeForce RTX 3090"]


def test_an_l40_is_not_taken_for_an_l40s(run_probe: Prober) -> None:
    # Half the tensor throughput of an L40S.
    assert profile_of(run_probe("l40")).device.peak_flops["bfloat16"] < 2e14


def test_a_smaller_variant_of_the_same_driver_name_has_its_own_speeds(run_probe: Prober) -> None:
    assert profile_of(run_probe("rtx3060-8gb")).device.memory_bandwidth_bytes_per_second == 2.4e11


def test_a_variant_that_the_catalogue_lacks_takes_no_speeds_from_it(run_probe: Prober) -> None:
    profile = profile_of(run_probe("rtx4090-48gb"))
    assert profile.device.memory_bandwidth_bytes_per_second is None
    assert any("another variant" in note and "47.99 GiB here and 23.99 GiB" in note for note in profile.notes)


def test_a_single_gpu_tells_its_driver_its_limits_its_link_and_who_else_is_on_it(run_probe: Prober) -> None:
    profile = profile_of(run_probe("rtx4090"))
    device = profile.device
    assert (profile.driver_version, profile.cuda_version) == ("580.65.06", "13.0")
    assert (profile.interconnect, profile.interconnect_bytes_per_second) == (None, None)
    assert device.processes == (DeviceProcess(pid=1001, name="Xorg", memory_bytes=400 * MIB),)
    assert device.used_memory_bytes == 2 * GIB
    # GeForce cards have no ECC; 450 W is the card's own limit, so nothing slows it down.
    assert (device.has_ecc, device.power_limit_watts, device.power_watts, device.clock_limit_mhz) == (
        None,
        450,
        450,
        None,
    )
    # 16 lanes of PCIe 4.0, 1.969 GB/s each and direction.
    assert device.host_link is not None
    assert (device.host_link.kind, device.host_link.generation, device.host_link.count) == ("pcie", "4.0", 16)
    assert device.host_link.bytes_per_second == pytest.approx(31.5e9, rel=0.01)


def test_eight_gpus_joined_by_nvlink_tell_its_bandwidth(run_probe: Prober) -> None:
    profile = profile_of(run_probe("h100x8"))
    assert (profile.device_count, profile.device.name) == (8, "NVIDIA H100 80GB HBM3")
    assert len({device.uuid for device in profile.devices}) == 8
    # 18 links of 25 GB/s: 450 GB/s a direction, the 900 GB/s of the data sheet in both.
    assert (profile.interconnect, profile.interconnect_bytes_per_second) == ("NVLink 4.0 x18", 450e9)
    assert profile.device.has_ecc is True
    assert not any("different GPUs" in note or "NVLink" in note for note in profile.notes)


def test_different_gpus_without_nvlink_are_joined_by_the_narrowest_slot(run_probe: Prober) -> None:
    profile = profile_of(run_probe("two"))
    assert profile.interconnect == "PCIe 3.0 x8"


def test_a_gpu_half_taken_by_others_has_the_other_half_and_says_who_they_are(run_probe: Prober) -> None:
    profile = profile_of(run_probe("t4"))
    device = profile.device
    assert (device.total_memory_bytes, device.free_memory_bytes) == (15360 * MIB, 7680 * MIB)
    # The second one's name is not told to this user.
    named = [(process.pid, process.name, process.memory_bytes) for process in device.processes]
    assert named == [(4242, "python", 7000 * MIB), (77, None, 300 * MIB)]
    assert (device.power_limit_watts, device.clock_limit_mhz) == (60, 300)
    assert any("limited to 60 of 70 W" in note for note in profile.notes)
    assert any("limited to 300 of 1590 MHz" in note for note in profile.notes)


def test_mig_instances_are_devices_of_their_own_with_their_share_of_the_speed(run_probe: Prober) -> None:
    profile = profile_of(run_probe("mig"))
    assert [device.name for device in profile.devices] == [
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A100-SXM4-40GB",
    ]
    large, small, whole = profile.devices
    assert (large.partition_of, whole.partition_of) == ("NVIDIA A100-SXM4-40GB", None)
    assert (large.total_memory_bytes, large.free_memory_bytes) == (20096 * MIB, 20059 * MIB)
    assert small.power_watts == pytest.approx((whole.power_watts or 0) / 7)
    assert small.peak_flops["bfloat16"] == pytest.approx(whole.peak_flops["bfloat16"] / 7)
    assert (large.memory_bandwidth_bytes_per_second or 0) < 0.5 * (whole.memory_bandwidth_bytes_per_second or 0)
    assert any("single MIG instance" in note for note in profile.notes)
    # The undivided neighbour has most memory, so it is the one that a plan uses.
    assert profile.device == whole


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("MIG-11111111-aaaa", ["NVIDIA A100-SXM4-40GB MIG 1g.5gb"]),
        ("0", ["NVIDIA A100-SXM4-40GB MIG 3g.20gb"]),
        ("1,MIG-33333333-aaaa", ["NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB MIG 3g.20gb"]),
    ],
)
def test_mig_instances_are_chosen_by_their_uuid_and_a_split_gpu_stands_for_its_first(
    run_probe: Prober, visible: str, names: list[str]
) -> None:
    assert [device.name for device in profile_of(run_probe("mig", CUDA_VISIBLE_DEVICES=visible)).devices] == names


def test_a_gpu_in_mig_mode_without_an_instance_is_an_error_that_says_what_to_do(run_probe: Prober) -> None:
    assert "has no instance" in error_of(run_probe("mig-empty"))


def test_a_gpu_in_mig_mode_without_an_instance_is_passed_over_where_another_can_be_used(run_probe: Prober) -> None:
    profile = profile_of(run_probe("mig-half-empty"))
    assert [device.uuid for device in profile.devices] == ["GPU-10000000-bbbb"]
    assert any("(GPU 0) is in MIG mode but has no instance" in note for note in profile.notes)


def test_a_visible_device_that_does_not_exist_is_an_error(run_probe: Prober) -> None:
    error = error_of(run_probe("rtx4090", CUDA_VISIBLE_DEVICES="3"))
    assert "CUDA_VISIBLE_DEVICES='3'" in error
    assert "GPU-40900000-aaaa" in error


@pytest.mark.parametrize("visible", ["2", "0,0", "GPU-", "GPU-x", "MIG-1", "first", "0,,1"])
def test_entries_that_name_no_single_device_are_refused(visible: str) -> None:
    with pytest.raises(HardwareError, match="CUDA_VISIBLE_DEVICES"):
        visible_indices(visible, ["GPU-1a", "GPU-1b"])


@settings(deadline=None)
@given(st.permutations(range(5)), st.integers(1, 5), st.booleans())
def test_indices_and_uuids_select_the_same_devices_in_the_same_order(
    order: list[int], count: int, as_uuids: bool
) -> None:
    uuids = [f"GPU-{index}f" for index in range(5)]
    chosen = order[:count]
    value = ",".join(uuids[index] if as_uuids else str(index) for index in chosen)
    assert visible_indices(value, uuids) == chosen
