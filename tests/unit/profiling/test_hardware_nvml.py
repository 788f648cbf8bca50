"""The CUDA probe, through the real pynvml, against a small libnvidia-ml.so.1 that is compiled here."""

from __future__ import annotations

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
from autopeft.profiling._nvml import visible_indices
from autopeft.specs import HardwareProfile, from_json
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


def test_a_gpu_split_into_mig_instances_is_refused_and_an_undivided_one_is_not(run_probe: Prober) -> None:
    assert "MIG" in error_of(run_probe("mig"))
    assert profile_of(run_probe("a100")).device.total_memory_bytes == 40960 * MIB


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
