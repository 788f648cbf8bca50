"""What a device must have free beside the tensors of the training step."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.specs import Device
from autopeft.units import GIB, MIB

ACCELERATOR_CONTEXT_BYTES = GIB // 2
"""CUDA context with the kernels of torch, cuBLAS and bitsandbytes: 0.3 to 0.8 GiB, by driver and GPU generation
(nvidia-smi against torch's reserved memory; recalled, unverified); the middle."""

HOST_RESIDENT_BYTES = 1024 * MIB
"""Resident memory of a training process beside its tensors: libraries (518 MiB after importing torch, transformers,
peft, trl and bitsandbytes) and the working memory of threads and kernels. Measured with torch 2.13 on two cores:
maximum resident set of three steps of a SmolLM2-135M-shaped float32 LoRA training less the traced peak, 991 MiB
(transformers' loss) and 1057 MiB (trl's)."""

FRAGMENTATION_SHARE = 0.03
"""Share of the peak that the caching allocator holds without a tensor in it. Hugging Face's PEFT method comparison
(L40S, max reserved) lies 1 to 3 % above what a trace of the allocated bytes finds."""


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


def overhead_bytes(device: Device | None, peak_memory_bytes: int) -> Overhead:
    """Returns what must be free beside ``peak_memory_bytes`` of tensors; None means an unnamed accelerator."""
    fragmentation = int(FRAGMENTATION_SHARE * peak_memory_bytes)
    on_host = device is not None and device.kind == "cpu"
    context = HOST_RESIDENT_BYTES if on_host else ACCELERATOR_CONTEXT_BYTES
    what = "the process with its libraries" if on_host else "the device context"
    text = f"{what} takes {context // MIB} MiB, fragmentation {FRAGMENTATION_SHARE:.0%} of the peak"
    return Overhead(fragmentation, context, text)
