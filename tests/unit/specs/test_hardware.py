"""Which of several devices a plan uses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.specs import Device, DeviceKind, HardwareProfile, from_json, to_json
from autopeft.units import GIB

KINDS: tuple[DeviceKind, ...] = ("cuda", "rocm", "xpu", "mps", "cpu")


def device(name: str, free_gib: float, tflops: float = 0.0, kind: DeviceKind = "cuda") -> Device:
    size = int(free_gib * GIB)
    flops = {"bfloat16": tflops * 1e12} if tflops else {}
    return Device(name=name, kind=kind, total_memory_bytes=size, free_memory_bytes=size, peak_flops=flops)


def profile(*devices: Device) -> HardwareProfile:
    return HardwareProfile(name="several", origin="file", devices=devices)


@pytest.mark.parametrize(
    ("devices", "chosen", "why"),
    [
        ([device("a", 8), device("b", 24)], "b", "most free memory"),
        ([device("slow", 24.0, 71), device("fast", 23.9, 165)], "fast", "it is the fastest"),
        (
            [device("first", 24, 71), device("second", 24, 71)],
            "first",
            "no other has noticeably more free memory or is faster",
        ),
        ([device("host", 256, kind="cpu"), device("small", 4)], "small", "only one of kind cuda"),
        ([device("amd", 192, kind="rocm"), device("small", 4)], "small", "only one of kind cuda"),
        ([device("host", 256, kind="cpu"), device("mac", 48, kind="mps")], "mac", "only one of kind mps"),
    ],
)
def test_the_device_that_fits_best_is_used_and_says_why(devices: list[Device], chosen: str, why: str) -> None:
    found = profile(*devices)
    assert found.device.name == chosen
    assert why in found.choice
    assert chosen in found.choice


@given(st.lists(st.tuples(st.floats(1, 200), st.floats(0, 100), st.sampled_from(KINDS)), min_size=1, max_size=6))
def test_no_device_of_a_preferred_kind_has_noticeably_more_memory_than_the_chosen_one(
    drawn: list[tuple[float, float, DeviceKind]],
) -> None:
    found = profile(*(device(str(place), *each) for place, each in enumerate(drawn)))
    like = [each for each in found.devices if each.kind == found.device.kind]
    assert found.device.free_memory_bytes >= 0.98 * max(each.free_memory_bytes for each in like)
    assert found.device.kind != "cpu" or all(each.kind == "cpu" for each in found.devices)


def test_a_profile_of_an_older_plan_without_the_newer_fields_is_read() -> None:
    device_json = '{"name": "Tesla T4", "kind": "cuda", "total_memory_bytes": 1, "free_memory_bytes": 1}'
    old = f'{{"name": "t4", "origin": "catalogue", "devices": [{device_json}]}}'
    read = from_json(old, HardwareProfile, "an older plan")
    assert (read.device.processes, read.host, read.driver_version) == ((), None, None)
    assert from_json(to_json(read), HardwareProfile, "again") == read
