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
from autopeft.profiling._catalogue import (
    DeviceRecord,
    catalogue,
    find_by_driver_name,
    find_by_pci_id,
    supported_features,
    to_device,
)
from autopeft.profiling.hardware import catalogue_entry, hardware_names, load_hardware, probe_hardware
from autopeft.specs import Dtype, HardwareProfile, from_json, to_json
from autopeft.units import GIB, MIB

DRIVER_NAMES = sorted({name for record in catalogue().values() for name in record.driver_names})
CUDA_NAMES = [name for name, record in catalogue().items() if record.kind == "cuda"]
ACCELERATORS = [name for name, record in catalogue().items() if record.kind != "cpu"]
# Names and aliases of the first release, which keep their meaning.
PROMISED = {
    **dict.fromkeys(("a10", "nvidia-a10"), "NVIDIA A10"),
    **dict.fromkeys(("a10g", "nvidia-a10g"), "NVIDIA A10G"),
    **dict.fromkeys(("a100-40gb", "a100-40gb-sxm"), "NVIDIA A100-SXM4-40GB"),
    "a100-40gb-pcie": "NVIDIA A100-PCIE-40GB",
    **dict.fromkeys(("a100-80gb", "a100-80gb-sxm"), "NVIDIA A100-SXM4-80GB"),
    "a100-80gb-pcie": "NVIDIA A100 80GB PCIe",
    **dict.fromkeys(("h100-80gb-pcie", "h100-pcie"), "NVIDIA H100 PCIe"),
    **dict.fromkeys(("h100-80gb-sxm", "h100-sxm", "h100-80gb-sxm5"), "NVIDIA H100 80GB HBM3"),
    **dict.fromkeys(("l4", "nvidia-l4"), "NVIDIA L4"),
    **dict.fromkeys(("l40s", "nvidia-l40s"), "NVIDIA L40S"),
    **dict.fromkeys(("rtx-3060-12gb", "rtx-3060", "rtx3060"), "NVIDIA GeForce RTX 3060"),
    **dict.fromkeys(("rtx-3090", "rtx3090", "3090"), "NVIDIA GeForce RTX 3090"),
    **dict.fromkeys(("rtx-4090", "rtx4090", "4090"), "NVIDIA GeForce RTX 4090"),
    **dict.fromkeys(("rtx-5090", "rtx5090", "5090"), "NVIDIA GeForce RTX 5090"),
    **dict.fromkeys(("t4", "tesla-t4", "nvidia-tesla-t4"), "Tesla T4"),
    **dict.fromkeys(("v100-16gb", "v100-16gb-sxm", "v100-16gb-sxm2"), "Tesla V100-SXM2-16GB"),
    **dict.fromkeys(("v100-32gb", "v100-32gb-sxm", "v100-32gb-sxm2"), "Tesla V100-SXM2-32GB"),
    "v100-16gb-pcie": "Tesla V100-PCIE-16GB",
    "v100-32gb-pcie": "Tesla V100-PCIE-32GB",
    "cpu-16gb": "cpu-16gb",
}
# What people have, by a part of its name.
FAMILIES = [
    "t4", "p100", "v100", "a10", "a10g", "a30", "a40", "a100-40gb", "a100-80gb", "l4", "l40", "l40s",
    "h100-80gb-pcie", "h100-80gb-sxm", "h100-94gb-nvl", "h200", "b200", "gb200", "rtx-2080-ti", "rtx-3090",
    "rtx-4090", "rtx-5090", "rtx-a4000", "rtx-a5000", "rtx-a6000", "rtx-6000-ada", "rtx-pro-6000", "mi210", "mi300x",
    "mi355x", "m1-16gb", "m2-16gb", "m3-16gb", "m4-16gb", "m4-max", "arc-", "cpu-",
]  # fmt: skip


def test_the_catalogue_holds_the_devices_that_people_have() -> None:
    assert len(hardware_names()) >= 45
    missing = [family for family in FAMILIES if not any(name.startswith(family) for name in hardware_names())]
    assert missing == []


@pytest.mark.parametrize(("name", "driver_name"), PROMISED.items())
def test_the_names_of_the_first_release_keep_their_meaning(name: str, driver_name: str) -> None:
    assert load_hardware(name).device.name == driver_name


@pytest.mark.parametrize("name", hardware_names())
def test_every_catalogue_file_loads_under_its_own_name_with_a_source_and_a_date(name: str) -> None:
    profile = load_hardware(name)
    assert (profile.name, profile.origin, profile.device_count) == (name, "catalogue", 1)
    assert profile.source
    assert profile.checked is not None
    assert profile.device.free_memory_bytes == profile.device.total_memory_bytes > 0
    assert from_json(to_json(profile), HardwareProfile, name) == profile


def figures(record: DeviceRecord) -> set[str]:
    stated = {"memory"} | {name for name in ("driver_names", "pci_ids", "peak_flops") if getattr(record, name)}
    optional = (
        "compute_capability",
        "memory_bandwidth_bytes_per_second",
        "power_watts",
        "price_usd_per_hour",
        "supports",
    )
    return stated | {name for name in optional if getattr(record, name) is not None}


@pytest.mark.parametrize("name", hardware_names())
def test_every_figure_of_the_catalogue_has_exactly_one_source_with_its_date(name: str) -> None:
    record = catalogue()[name]
    sourced = [figure for entry in record.sources for figure in entry.figures]
    assert sorted(sourced) == sorted(figures(record))
    assert all(entry.source.strip() for entry in record.sources)


def test_no_name_or_alias_stands_for_two_devices() -> None:
    spoken = Counter(name for record in catalogue().values() for name in (record.name, *record.aliases))
    assert [name for name, count in spoken.items() if count > 1] == []
    assert all(alias == "-".join(alias.lower().split()) for alias in spoken)
    assert not set(spoken) & set(DRIVER_NAMES)


@pytest.mark.parametrize("reserved", [0.0, 0.03, -0.03])
def test_a_driver_name_with_its_memory_stands_for_one_device(reserved: float) -> None:
    for name in ACCELERATORS:
        record = catalogue()[name]
        memory_bytes = int(to_device(record).total_memory_bytes * (1 - reserved))
        found = [find_by_driver_name(each, memory_bytes) for each in record.driver_names]
        assert {each and each.name for each in found} == {name}


def test_a_driver_name_that_variants_share_is_no_answer_without_their_memory() -> None:
    shared = "NVIDIA GeForce RTX 3080"
    assert catalogue_entry(shared) is None
    found = [catalogue_entry(shared, size * MIB) for size in (10240, 12288, 20480)]
    assert [profile and profile.name for profile in found] == ["rtx-3080-10gb", "rtx-3080-12gb", None]


def test_both_forms_of_the_a100_with_40_gb_have_their_own_power() -> None:
    found = {name: load_hardware(name).device for name in ("a100-40gb", "a100-40gb-pcie")}
    assert {name: device.power_watts for name, device in found.items()} == {"a100-40gb": 400, "a100-40gb-pcie": 250}
    assert catalogue_entry("NVIDIA A100-PCIE-40GB") == load_hardware("a100-40gb-pcie")


def test_without_tensor_cores_float16_that_is_summed_in_float32_is_no_faster_than_float32() -> None:
    old = [record for record in catalogue().values() if (record.compute_capability or (7, 0)) < (7, 0)]
    assert old
    assert all(record.peak_flops["float16"] == record.peak_flops["float32"] for record in old)


def test_an_apple_chip_is_known_whatever_the_size_of_its_memory() -> None:
    profile = catalogue_entry("Apple M4 Max", 96 * GIB)
    assert profile is not None
    assert profile.name == "m4-max-64gb"


def test_a_pci_id_stands_for_one_device_and_a_revision_tells_cards_of_one_chip_apart() -> None:
    ids = Counter(pci_id for record in catalogue().values() for pci_id in record.pci_ids)
    assert [pci_id for pci_id, count in ids.items() if count > 1] == []
    found = [find_by_pci_id(each) for each in ("1002:744c:c8", "1002:744c:cc", "1002:744c:00", "1002:74a1:00")]
    assert [record and record.name for record in found] == ["rx-7900-xtx", "rx-7900-xt", None, "mi300x"]


@pytest.mark.parametrize("name", ACCELERATORS)
def test_a_device_of_the_catalogue_states_its_speeds_power_and_class_and_they_are_plausible(name: str) -> None:
    record, device = catalogue()[name], load_hardware(name).device
    # From an Apple M1 (68 GB/s, 2.6 TFLOP/s, 20 W) to a B200 (8 TB/s, 2.25 PFLOP/s dense) and an MI355X (1,400 W).
    assert 6e10 <= (device.memory_bandwidth_bytes_per_second or 0) <= 1e13
    assert 2e12 <= device.peak_flops["float32"] <= device.peak_flops["float16"] <= 3e15
    assert 20 <= (device.power_watts or 0) <= 1500
    assert record.price_class == device.price_class is not None
    assert 0.05 <= (device.price_usd_per_hour or 1) <= 20
    # A figure for bfloat16 belongs to hardware that has it, and there it runs at the speed of float16.
    expected = device.peak_flops["float16"] if device.supports_bfloat16 else None
    assert device.peak_flops.get("bfloat16") == expected


@pytest.mark.parametrize(
    ("name", "dtype", "flops"),
    [
        # Makers' sheets for dense products: GA102 and AD102 white papers (GeForce: float32 sums), A30, A40, L40 and
        # RTX 6000 Ada data sheets without sparsity.
        ("rtx-3090", "bfloat16", 71e12),
        ("rtx-4090", "bfloat16", 165.2e12),
        ("rtx-5090", "bfloat16", 209.5e12),
        ("rtx-2080-ti", "float16", 53.8e12),
        ("a30", "bfloat16", 165e12),
        ("a40", "bfloat16", 149.7e12),
        ("l40", "bfloat16", 181e12),
        ("rtx-6000-ada", "bfloat16", 364.2e12),
        ("mi300x", "bfloat16", 1307.4e12),
    ],
)
def test_speeds_are_dense_ones_with_float32_sums(name: str, dtype: Dtype, flops: float) -> None:
    assert load_hardware(name).device.peak_flops[dtype] == pytest.approx(flops, rel=0.02)


@pytest.mark.parametrize(
    ("name", "driver_name", "memory_mib"),
    [
        # nvidia-smi of each, from the page named in its YAML file.
        ("t4", "Tesla T4", 15360),
        ("l4", "NVIDIA L4", 23034),
        ("l40s", "NVIDIA L40S", 46068),
        ("rtx-3090", "NVIDIA GeForce RTX 3090", 24576),
        ("rtx-4090", "NVIDIA GeForce RTX 4090", 24564),
        ("rtx-4060-ti-16gb", "NVIDIA GeForce RTX 4060 Ti", 16380),
        ("b200", "NVIDIA B200", 183359),
        ("a100-80gb", "NVIDIA A100-SXM4-80GB", 81920),
        ("h100-80gb-sxm", "NVIDIA H100 80GB HBM3", 81559),
    ],
)
def test_a_driver_name_finds_its_device_with_the_memory_that_the_driver_reports(
    name: str, driver_name: str, memory_mib: int
) -> None:
    profile = catalogue_entry(driver_name, memory_mib * MIB)
    assert profile is not None
    assert (profile.name, profile.device.total_memory_bytes) == (name, memory_mib * MIB)
    assert profile.device.name == driver_name


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(DRIVER_NAMES), st.data())
def test_only_a_whole_driver_name_finds_a_device(driver_name: str, data: st.DataObject) -> None:
    part = driver_name[: data.draw(st.integers(0, len(driver_name) - 1))]
    longer = driver_name + data.draw(st.text(min_size=1, max_size=5))
    for other in {part, longer, driver_name.lower()} - set(DRIVER_NAMES):
        assert catalogue_entry(other) is None


def test_aliases_and_ways_of_writing_mean_the_same_device() -> None:
    assert load_hardware("4090") == load_hardware("RTX 4090") == load_hardware(" rtx-4090 ")


def test_an_unknown_name_is_refused_with_the_closest_names() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown hardware 'rtx-4099'; `autopeft hardware` .* mean 'rtx-4090'"):
        load_hardware("rtx-4099")


def test_a_name_with_several_variants_is_refused_with_these() -> None:
    with pytest.raises(UnknownNameError, match="mean 'h100-80gb-pcie' or 'h100-80gb-sxm' or 'h100-94gb-nvl'"):
        load_hardware("h100")
    with pytest.raises(UnknownNameError, match="mean 'rtx-4060-ti-16gb' or 'rtx-4060-ti-8gb'"):
        load_hardware("RTX 4060 Ti")


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
        (("9.0e+11", "-1.0"), "memory_bandwidth_bytes_per_second must be positive and finite, not -1"),
        (("9.0e+11", "9e11"), r"memory_bandwidth_bytes_per_second.*write 1\.0e\+12"),
        (("9.0e+11", ".inf"), "memory_bandwidth_bytes_per_second must be positive and finite, not inf"),
        (("kind: cuda", "kind: cuda\npeak_flops: {bfloat16: .nan}"), "bfloat16 must be positive and finite, not nan"),
        (("[8, 6]", "[-8, 6]"), r"compute_capability \[-8, 6\] is none"),
        (("kind: cuda", "kind: cuda\nkind: cpu"), "line 4 .*the key 'kind' stands there twice"),
        (("kind: cuda", "kind: cuda\npower_watts: 0"), "power_watts must be positive"),
        (("kind: cuda", "kind: cuda\nprice_class: cheap"), "price_class"),
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


def test_hardware_needs_no_heavy_import_and_a_named_device_neither_a_probe_nor_the_whole_catalogue() -> None:
    code = (
        "import sys; from autopeft.profiling.hardware import load_hardware; load_hardware('tesla-t4');"
        "from autopeft.profiling._catalogue import _shipped; assert _shipped.cache_info().currsize == 1;"
        "found = {'pynvml', 'psutil', 'torch', 'transformers', 'optuna'} & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    root = Path(autopeft.errors.__file__).parents[1]
    process = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
