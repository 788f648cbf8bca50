from autopeft.memory.overhead import overhead_bytes
from autopeft.specs import Device
from autopeft.units import GIB


def test_a_gpu_needs_its_context_and_three_percent():
    found = overhead_bytes(None, 100 * GIB)
    assert found.context_bytes == GIB // 2
    assert found.fragmentation_bytes == 3 * GIB
    assert found.total_bytes == found.context_bytes + found.fragmentation_bytes


def test_on_a_host_processor_the_process_itself_counts():
    cpu = Device(name="cpu", kind="cpu", total_memory_bytes=GIB, free_memory_bytes=GIB)
    found = overhead_bytes(cpu, 0)
    assert found.total_bytes == GIB
    assert "process" in found.assumption
