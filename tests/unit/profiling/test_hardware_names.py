"""Several devices of one machine by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import HardwareError, UnknownNameError
from autopeft.profiling.hardware import load_hardware
from autopeft.specs import HardwareProfile, from_json, to_json


@pytest.mark.parametrize(
    ("text", "name", "devices"),
    [
        ("2x rtx-4090", "2x rtx-4090", ["NVIDIA GeForce RTX 4090"] * 2),
        ("8 x H100-80GB-SXM", "8x h100-80gb-sxm", ["NVIDIA H100 80GB HBM3"] * 8),
        ("2xT4", "2x t4", ["Tesla T4"] * 2),
        ("rtx-4090+rtx-3090", "rtx-4090 + rtx-3090", ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3090"]),
        ("2* a10 + L4", "2x a10 + l4", ["NVIDIA A10", "NVIDIA A10", "NVIDIA L4"]),
        ("rtx-4090 + mi300x", "rtx-4090 + mi300x", ["NVIDIA GeForce RTX 4090", "AMD Instinct MI300X"]),
    ],
)
def test_counts_and_plus_signs_name_several_devices(text: str, name: str, devices: list[str]) -> None:
    profile = load_hardware(text)
    assert (profile.name, profile.origin, profile.device_count) == (name, "catalogue", len(devices))
    assert [device.name for device in profile.devices] == devices
    assert from_json(to_json(profile), HardwareProfile, text) == profile
    assert any("what links the devices" in note for note in profile.notes)


def test_one_device_is_the_same_with_and_without_its_count() -> None:
    assert load_hardware("1x rtx-4090") == load_hardware("rtx-4090")


@given(st.integers(2, 64))
def test_like_devices_are_as_many_as_asked_for_and_a_plan_uses_the_first(count: int) -> None:
    profile = load_hardware(f"{count}x l4")
    assert (profile.device_count, profile.device_index) == (count, 0)
    assert all(device == profile.device for device in profile.devices)


def test_the_sources_of_all_devices_are_kept_and_the_oldest_date() -> None:
    profile = load_hardware("rtx-4090 + mi300x")
    assert "rtx-4090: memory: " in profile.source
    assert "mi300x: memory: " in profile.source
    assert profile.checked == min(filter(None, (load_hardware(name).checked for name in ("rtx-4090", "mi300x"))))


def test_files_can_be_multiplied_and_combined(tmp_path: Path) -> None:
    file = tmp_path / "mine+yours.yaml"
    text = "name: my-card\nkind: cuda\nmemory: 24GiB\ncompute_capability: [8, 6]\n"
    file.write_text(text)
    other = tmp_path / "mine.yaml"
    other.write_text(text)
    assert load_hardware(str(file)).device_count == 1
    profile = load_hardware(f"2x {other} + t4")
    assert (profile.name, profile.origin, profile.device_count) == ("2x my-card + t4", "file", 3)
    assert profile.device.name == "my-card"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0x t4", "0 devices are not possible; allowed are 1 to 64"),
        ("65x t4", "65 devices are not possible"),
        ("t4 +", "names no hardware between its"),
        ("", "names no hardware"),
        ("2x auto", "means this machine as it is"),
        ("cpu + t4", "means this machine as it is"),
    ],
)
def test_what_names_no_devices_is_refused_with_what_is_allowed(text: str, words: str) -> None:
    with pytest.raises(HardwareError, match=words):
        load_hardware(text)


def test_a_name_as_the_driver_writes_it_is_understood() -> None:
    assert load_hardware("NVIDIA GeForce RTX 4090").name == "rtx-4090"
    assert load_hardware("2x Tesla T4 + NVIDIA L40").name == "2x t4 + l40"


def test_a_driver_name_of_several_sizes_is_refused_with_the_variants() -> None:
    with pytest.raises(HardwareError, match="name one of them: rtx-3080-10gb or rtx-3080-12gb"):
        load_hardware("NVIDIA GeForce RTX 3080")


def test_an_unknown_part_is_refused_with_the_closest_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown hardware 'rtx-309'.*mean 'rtx-3090'"):
        load_hardware("2x rtx-4090 + rtx-309")


def test_this_machines_processor_can_be_asked_for_alone() -> None:
    profile = load_hardware("cpu")
    assert (profile.origin, profile.device.kind, profile.device_count) == ("probed", "cpu", 1)
    assert any("not looked for, as asked" in note for note in profile.notes)
