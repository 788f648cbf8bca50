import pytest

from autopeft.memory.overhead import (
    WORKSPACES,
    context_assumption,
    context_bytes,
    cuda_context,
    overhead_bytes,
    workspace_bytes,
)
from autopeft.profiling.hardware import hardware_names, load_hardware
from autopeft.specs import Device
from autopeft.units import GIB, MIB, parse_bytes

MEASURED = cuda_context().measured


def cuda(name: str, capability: tuple[int, int]) -> Device:
    return Device(name=name, kind="cuda", total_memory_bytes=GIB, free_memory_bytes=GIB, compute_capability=capability)


def test_an_unnamed_gpu_needs_half_a_gib_and_three_percent():
    found = overhead_bytes(None, 100 * GIB)
    assert found.context_bytes == GIB // 2
    assert found.fragmentation_bytes == 3 * GIB
    assert found.total_bytes == found.context_bytes + found.fragmentation_bytes


def test_on_a_host_processor_the_process_itself_counts():
    cpu = Device(name="cpu", kind="cpu", total_memory_bytes=GIB, free_memory_bytes=GIB)
    found = overhead_bytes(cpu, 0)
    assert found.total_bytes == GIB
    assert "process" in found.assumption
    assert workspace_bytes(cpu) == 0


def test_contexts_were_measured_on_most_generations():
    assert {entry.compute_capability for entry in MEASURED} >= {(7, 0), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0)}


@pytest.mark.parametrize("entry", MEASURED, ids=lambda entry: entry.device)
def test_the_rule_meets_every_published_context_within_five_percent(entry):
    table = cuda_context()
    found = table.empty_context_bytes(table.generation(entry.compute_capability), entry.multiprocessors)
    assert found == pytest.approx(parse_bytes(entry.context), rel=0.05)
    assert entry.source.startswith("https://github.com/")


@pytest.mark.parametrize(
    ("name", "capability", "context_mib"),
    [
        # multiprocessors x resident threads x 2 KiB, and 164 MiB of loaded kernels
        ("Tesla T4", (7, 5), 40 * 2 + 164),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 108 * 4 + 164),
        ("NVIDIA L40S", (8, 9), 142 * 3 + 164),
        ("NVIDIA H100 80GB HBM3", (9, 0), 132 * 4 + 164),
        ("NVIDIA GeForce RTX 5090", (12, 0), 170 * 3 + 164),
    ],
)
def test_a_context_follows_from_the_hardware(name, capability, context_mib):
    assert context_bytes(cuda(name, capability)) == context_mib * MIB


def test_a_device_that_is_not_listed_gets_the_largest_of_its_generation_and_is_told():
    unknown = cuda("NVIDIA L4X", (8, 9))
    assert context_bytes(unknown) == context_bytes(cuda("NVIDIA L40S", (8, 9)))
    assert "largest device of its generation" in overhead_bytes(unknown, 0).assumption


def test_a_generation_that_is_not_listed_gets_the_next_older_one_and_is_told():
    assert context_bytes(cuda("NVIDIA B200", (10, 1))) == context_bytes(cuda("NVIDIA B200", (10, 0)))
    assert "10.1 is not listed; 10.0 was taken" in context_assumption(cuda("NVIDIA B200", (10, 1)))
    assert "6.1 is not listed; 6.0 was taken" in context_assumption(cuda("GeForce GTX 1080", (6, 1)))
    assert "5.2 is not listed; 6.0 was taken" in context_assumption(cuda("GeForce GTX 980", (5, 2)))


def test_every_catalogued_gpu_is_listed_by_its_own_name_and_generation():
    devices = [load_hardware(name).device for name in hardware_names()]
    gpus = [device for device in devices if device.kind == "cuda"]
    assert gpus
    for device in gpus:
        assert context_assumption(device) == f"the device context takes {context_bytes(device) // MIB} MiB"
        # From an A2 (10 multiprocessors) to a B200 (148).
        assert 190 * MIB < context_bytes(device) < GIB


def test_workspaces_are_those_of_torch():
    # 8,519,680: https://discuss.pytorch.org/t/178671; 32 MiB on Hopper: pytorch pull request 89027
    assert workspace_bytes(None) == workspace_bytes(cuda("NVIDIA A100-SXM4-80GB", (8, 0))) == 8_519_680
    assert workspace_bytes(cuda("NVIDIA H100 PCIe", (9, 0))) == 32 * MIB
    assert WORKSPACES == 2
