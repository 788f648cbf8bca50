"""What a device must have free beside the tensors of the training step."""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass
from typing import Any

from autopeft.resources import read_record, resource_folder
from autopeft.specs import Device
from autopeft.units import GIB, MIB, parse_bytes

ACCELERATOR_CONTEXT_BYTES = GIB // 2
"""Context with its kernels on an accelerator of which nothing is known: the middle of what
``profiles/cuda_context.yaml`` gives for CUDA devices from a T4 to a B200 (244 to 756 MiB)."""

HOST_RESIDENT_BYTES = 1024 * MIB
"""Resident memory of a training process beside its tensors: libraries (518 MiB after importing torch, transformers,
peft, trl and bitsandbytes) and the working memory of threads and kernels. Measured with torch 2.13 on two cores:
maximum resident set of three steps of a SmolLM2-135M-shaped float32 LoRA training less the traced peak, 991 MiB
(transformers' loss) and 1057 MiB (trl's)."""

FRAGMENTATION_SHARE = 0.03
"""Share of the peak that the caching allocator holds without a tensor in it. Hugging Face's PEFT method comparison
(L40S, max reserved) lies 1 to 3 % above what a trace of the allocated bytes finds."""

WORKSPACES = 2
"""cuBLAS handles of a training process, each with a workspace of its own: torch keeps one a thread
(``aten/src/ATen/cuda/CublasHandlePool.cpp``), and the backward runs in autograd's thread."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """GPUs of one compute capability, as ``profiles/cuda_context.yaml`` states them."""

    compute_capability: tuple[int, int]
    threads_per_multiprocessor: int
    largest_multiprocessors: int
    workspace_bytes: int


@dataclass(frozen=True, kw_only=True)
class MeasuredContext:
    """The size of an empty context that someone measured, with its source."""

    device: str
    multiprocessors: int
    compute_capability: tuple[int, int]
    context: str
    source: str


@dataclass(frozen=True, kw_only=True)
class CudaContext:
    """The content of ``profiles/cuda_context.yaml``, where every key is explained."""

    bytes_per_thread: int
    library: str
    library_source: str
    generations: list[Generation]
    multiprocessors: dict[str, int]
    measured: list[MeasuredContext]
    source: str
    checked: datetime.date

    def empty_context_bytes(self, generation: Generation, multiprocessors: int) -> int:
        """Returns the size of a context without kernels: room for the stacks of all threads that can be resident."""
        return multiprocessors * generation.threads_per_multiprocessor * self.bytes_per_thread

    def generation(self, capability: tuple[int, int]) -> Generation:
        """Returns the generation of a capability; of one not listed, the next older one's, else the oldest."""
        ordered = sorted(self.generations, key=lambda generation: generation.compute_capability)
        older = [generation for generation in ordered if generation.compute_capability <= capability]
        return older[-1] if older else ordered[0]


@functools.cache
def cuda_context() -> CudaContext:
    """Returns the table of ``profiles/cuda_context.yaml``."""
    return read_record(resource_folder("profiles") / "cuda_context.yaml", CudaContext)


def context_bytes(device: Device | None) -> int:
    """Returns what a training process holds on a device beside torch's allocator: the context and loaded kernels.

    Formula: multiprocessors x resident threads x 2 KiB + 164 MiB; within 5 % of eight published sizes of the empty
    context (``profiles/cuda_context.yaml``). Left out: NCCL, cuDNN, CUDA graphs. On a host processor it is the
    resident base of the process; on an accelerator of which no compute capability is known, half a GiB.
    """
    if device is not None and device.kind == "cpu":
        return HOST_RESIDENT_BYTES
    if device is None or device.kind != "cuda" or device.compute_capability is None:
        return ACCELERATOR_CONTEXT_BYTES
    table = cuda_context()
    generation = table.generation(device.compute_capability)
    multiprocessors = table.multiprocessors.get(device.name, generation.largest_multiprocessors)
    return table.empty_context_bytes(generation, multiprocessors) + parse_bytes(table.library)


def workspace_bytes(device: Device | None) -> int:
    """Returns the workspace of one cuBLAS handle, which torch allocates in its caching allocator and keeps.

    It counts in allocated memory; a training process has ``WORKSPACES`` of them. 0 on other kinds than CUDA. An unnamed
    device is taken to be older than Hopper.

    Left out: the separate workspaces of cuBLASLt (1 to 32 MiB for the time of a call) that torch had before it let
    both share one.
    """
    if device is None:
        return min(generation.workspace_bytes for generation in cuda_context().generations)
    if device.kind != "cuda" or device.compute_capability is None:
        return 0
    return cuda_context().generation(device.compute_capability).workspace_bytes


@dataclass(frozen=True, slots=True)
class Overhead:
    """Memory beside the tensors.

    Attributes:
        fragmentation_bytes: held by the allocator without a tensor in it.
        context_bytes: driver context and libraries, or the resident base of the process on a host processor.
        assumption: one sentence about both.
    """

    fragmentation_bytes: int
    context_bytes: int
    assumption: str

    @property
    def total_bytes(self) -> int:
        """Both together: ``required_bytes - peak_memory_bytes``."""
        return self.fragmentation_bytes + self.context_bytes


def fragmentation_bytes(peak_memory_bytes: Any) -> Any:
    """Returns what the allocator holds without a tensor in it, as a float; an array of peaks gives an array."""
    return FRAGMENTATION_SHARE * peak_memory_bytes


def overhead_bytes(device: Device | None, peak_memory_bytes: int) -> Overhead:
    """Returns what must be free beside ``peak_memory_bytes`` of tensors; None means an unnamed accelerator."""
    fragmentation = int(fragmentation_bytes(peak_memory_bytes))
    context = context_bytes(device)
    text = f"{context_assumption(device)}, fragmentation {FRAGMENTATION_SHARE:.0%} of the peak"
    return Overhead(fragmentation, context, text)


def context_assumption(device: Device | None) -> str:
    """Returns what ``context_bytes`` holds for, as a clause; it says where another device's figures were taken."""
    size = f"{context_bytes(device) // MIB} MiB"
    if device is not None and device.kind == "cpu":
        return f"the process with its libraries takes {size}"
    if device is None or device.kind != "cuda" or device.compute_capability is None:
        return f"the device context takes {size}"
    table = cuda_context()
    generation = table.generation(device.compute_capability)
    if generation.compute_capability != device.compute_capability:
        wanted, taken = (
            ".".join(map(str, pair)) for pair in (device.compute_capability, generation.compute_capability)
        )
        return f"the device context takes {size} (compute capability {wanted} is not listed; {taken} was taken)"
    if device.name not in table.multiprocessors:
        return f"the device context takes {size}, that of the largest device of its generation"
    return f"the device context takes {size}"
