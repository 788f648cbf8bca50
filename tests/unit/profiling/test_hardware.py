"""The catalogue, a user's own file, and the probe of this machine."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from ctypes.util import find_library
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autopeft.errors
from autopeft.errors import HardwareError, UnknownNameError
from autopeft.profiling._catalogue import catalogue, supported_features
from autopeft.profiling.hardware import catalogue_entry, hardware_names, load_hardware, probe_hardware
from autopeft.specs import HardwareProfile, from_json, to_json
from autopeft.units import GIB, MIB

DRIVER_NAMES = sorted({name for record in catalogue().values() for name in record.driver_names})
CUDA_NAMES = [name for name, record in catalogue().items() if record.kind == "cuda"]
# The names that issue 1 promises to keep.
PROMISED = ("t4", "l4", "l40s", "rtx-3090", "rtx-4090", "a100-40gb", "a100-80gb", "h100-80gb-sxm")


def test_the_catalogue_holds_at_least_fourteen_devices_and_the_promised_names() -> None:
    assert len(hardware_names()) >= 14
    assert set(PROMISED) <= set(hardware_names())


@pytest.mark.parametrize("name", hardware_names())
def test_every_catalogue_file_loads_under_its_own_name_with_a_source_and_a_date(name: str) -> None:
    profile = load_hardware(name)
    assert (profile.name, profile.origin, profile.device_count) == (name, "catalogue", 1)
    assert profile.source
    assert profile.checked is not None
    assert profile.device.free_memory_bytes == profile.device.total_memory_bytes > 0
    assert from_json(to_json(profile), HardwareProfile, name) == profile


def test_no_name_alias_or_driver_name_stands_for_two_devices() -> None:
    spoken = Counter(name for record in catalogue().values() for name in (record.name, *record.aliases))
    driver = Counter(name for record in catalogue().values() for name in record.driver_names)
    assert [name for name, count in (spoken + driver).items() if count > 1] == []
    assert all(alias == "-".join(alias.lower().split()) for alias in spoken)


@pytest.mark.parametrize("name", CUDA_NAMES)
def test_a_cuda_device_of_the_catalogue_states_its_speeds_and_they_are_plausible(name: str) -> None:
    record, device = catalogue()[name], load_hardware(name).device
    assert record.driver_names
    # From a GeForce RTX 3060 (360 GB/s) and Tesla T4 (8.1 TFLOP/s) to a B200 (8 TB/s, 2.25 PFLOP/s dense).
    assert 2e11 <= (device.memory_bandwidth_bytes_per_second or 0) <= 1e13
    assert 5e12 <= device.peak_flops["float32"] < device.peak_flops["float16"] <= 3e15
    # A figure for bfloat16 belongs to hardware that has it, and there it runs at the speed of float16.
    expected = device.peak_flops["float16"] if device.supports_bfloat16 else None
    assert device.peak_flops.get("bfloat16") == expected


@pytest.mark.parametrize(
    ("name", "driver_name", "memory_mib"),
    [
        # nvidia-smi of each, from the page named in its YAML file.
        ("t4", "Tesla T4", 15360),
        ("l4", "NVIDIA L4", 23034),
        ("l40s", "NVIDIA L40S", 46068),
        ("rtx-3090", "NVIDIA GeForce RTX 3090", 24576),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", 24564),
        ("a100-80gb", "NVIDIA A100-SXM4-80GB", 81920),
        ("h100-80gb-sxm", "NVIDIA H100 80GB HBM3", 81559),
    ],
)
def test_a_driver_name_finds_its_device_with_the_memory_that_the_driver_reports(
    name: str, driver_name: str, memory_mib: int
) -> None:
    profile = catalogue_entry(driver_name)
    assert profile is not None
    assert (profile.name, profile.device.total_memory_bytes) == (name, memory_mib * MIB)
    assert profile.device.name == driver_name


@settings(deadline=None)
@given(st.sampled_from(DRIVER_NAMES), st.data())
def test_only_a_whole_driver_name_finds_a_device(driver_name: str, data: st.DataObject) -> None:
    part = driver_name[: data.draw(st.integers(0, len(driver_name) - 1))]
    longer = driver_name + data.draw(st.text(min_size=1, max_size=5))
    for other in (part, longer, driver_name.lower()):
        assert (catalogue_entry(other) is None) == (other not in DRIVER_NAMES)


def test_aliases_and_ways_of_writing_mean_the_same_device() -> None:
    assert load_hardware("4090") == load_hardware("RTX 4090") == load_hardware(" rtx-4090 ")


def test_an_unknown_name_is_refused_with_the_closest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown hardware 'rtx-4099'.*Did you mean 'rtx-4090'"):
        load_hardware("rtx-4099")


@pytest.mark.parametrize(
    ("capability", "features"),
    [
        # bitsandbytes 0.50: NF4 from 6.0, LLM.int8() from 7.5; tensor cores from 7.0; bfloat16 and FlashAttention-2
        # from 8.0.
        ((5, 2), set()),
        ((6, 1), {"nf4"}),
        ((7, 0), {"nf4", "float16"}),
        ((7, 5), {"nf4", "float16", "int8"}),
        ((8, 0), {"nf4", "float16", "int8", "bfloat16", "flash_attention"}),
        ((12, 0), {"nf4", "float16", "int8", "bfloat16", "flash_attention"}),
    ],
)
def test_what_a_cuda_device_can_do_follows_from_its_capability(capability: tuple[int, int], features: set[str]) -> None:
    assert supported_features(capability) == features


MINE = """
name: my-card
kind: cuda
memory: 24GiB
compute_capability: [8, 6]
memory_bandwidth_bytes_per_second: 9.0e+11
"""


def test_a_users_file_describes_a_device_with_the_catalogues_keys(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    profile = load_hardware(str(file))
    assert (profile.name, profile.origin, profile.checked) == ("my-card", "file", None)
    assert profile.device.total_memory_bytes == 24 * GIB
    assert profile.device.supports_bfloat16
    assert profile.device.peak_flops == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("memory: 24GiB", "memory: 24 sheep"), "memory: '24 sheep' is no memory size"),
        (("memory: 24GiB", "vram: 24GiB"), "unknown keys vram; known: .*memory"),
        (("memory: 24GiB\n", ""), "missing required field `memory`"),
        (("kind: cuda", "kind: gpu"), "kind"),
        (("compute_capability: [8, 6]\n", ""), "compute_capability is missing"),
        (("[8, 6]", "8.6"), "compute_capability"),
        (("9.0e+11", "-1.0"), "memory_bandwidth_bytes_per_second must be positive, not -1"),
        (("9.0e+11", "9e11"), r"memory_bandwidth_bytes_per_second.*write 1\.0e\+12"),
        (("kind: cuda", "kind: cuda\npeak_flops: {bfloat16: 0}"), "peak_flops: bfloat16 must be positive"),
        (("kind: cuda", "kind: cuda\npeak_flops: {fp16: 1.0e+12}"), "fp16"),
        (("kind: cuda", "kind: cuda\nsupports: [nf4]"), "supports does not belong to a cuda device"),
        (("kind: cuda", "kind: mps"), "compute_capability belongs to cuda devices.*; supports is missing"),
        (("name: my-card", "name: ' '"), "name is empty"),
    ],
)
def test_a_wrong_key_of_a_users_file_is_named_with_the_file(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    assert change[0] in MINE
    file = tmp_path / "mine.yml"
    file.write_text(MINE.replace(*change))
    with pytest.raises(HardwareError, match=words) as caught:
        load_hardware(str(file))
    assert str(file) in str(caught.value)


def test_all_problems_of_a_users_file_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nkind: cuda\nmemory: 0\npeak_flops: {float32: -1}\n")
    with pytest.raises(HardwareError, match=r"memory: .*peak_flops: .*compute_capability is missing"):
        load_hardware(str(file))


def test_a_users_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match=r"cannot read .*nowhere\.yaml: No such file"):
        load_hardware(str(tmp_path / "nowhere.yaml"))


def test_probing_without_gpus_gives_this_machines_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    profile = load_hardware("auto")
    device = profile.device
    assert (profile.origin, device.kind, device.compute_capability) == ("probed", "cpu", None)
    assert 0 < device.free_memory_bytes <= device.total_memory_bytes <= psutil.virtual_memory().total
    assert 1 <= (profile.host_cores or 0) <= (psutil.cpu_count() or 1)
    assert profile.host_memory_bytes == device.total_memory_bytes
    assert (device.supports_int8, device.supports_nf4, device.supports_float16) == (True, True, False)
    assert (device.peak_flops, device.memory_bandwidth_bytes_per_second) == ({}, None)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert f": {device.name}\n" in cpuinfo.read_text()


@pytest.mark.skipif(find_library("nvidia-ml") is not None, reason="this machine has an NVIDIA library")
def test_a_machine_without_an_nvidia_library_says_that_no_gpu_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    profile = probe_hardware()
    assert profile.device.kind == "cpu"
    assert any("no NVIDIA management library" in note for note in profile.notes)


def test_hardware_needs_no_heavy_import_and_the_catalogue_no_probe() -> None:
    code = (
        "import sys; from autopeft.profiling.hardware import load_hardware; load_hardware('l4'); light = 'pynvml';"
        "found = {light, 'torch', 'transformers', 'optuna'} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    root = Path(autopeft.errors.__file__).parents[1]
    process = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
