"""What is asked of a trace and what it answers, as plain data that goes to another interpreter and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from autopeft.specs.candidate import Candidate
from autopeft.specs.hardware import DeviceKind
from autopeft.specs.step_style import StepStyle


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """What is traced.

    Attributes:
        candidate: what is trained.
        model_type: transformers' name of the architecture: "llama".
        config: entries of its config.json.
        encoder: whether a classification head is trained instead of a language-model head.
        kind: device whose ways are taken.
        sequence_length: tokens of every row; of the longest row where ``style.padded``.
        style: how the loop runs the step.
        workspace_bytes: what cuBLAS takes from torch's allocator on the device.
        layers: of the whole model; None until the configuration is read.
        full_depth: trace every layer instead of extrapolating from shallow models.
        batch_orders: for a training whose batches differ, orders in which their lengths may come, up to
            ``sequence_length``; reserved memory is then the median over the orders. Empty where all batches have
            ``sequence_length``.
        model_code: path of a Python file that tells transformers' Auto classes of an architecture of its own; "" for
            transformers' own architectures.
    """

    candidate: Candidate
    model_type: str
    config: dict[str, Any]
    encoder: bool
    kind: DeviceKind
    sequence_length: int
    style: StepStyle = field(default_factory=StepStyle)
    workspace_bytes: int = 0
    layers: int | None = None
    full_depth: bool = False
    batch_orders: tuple[tuple[int, ...], ...] = ()
    model_code: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the request as JSON data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TraceRequest:
        """Returns the request that ``to_dict`` wrote."""
        candidate = dict(content["candidate"])
        candidate["target_modules"] = tuple(candidate["target_modules"])
        nested = {
            "candidate": Candidate(**candidate),
            "style": StepStyle(**content["style"]),
            "batch_orders": tuple(map(tuple, content["batch_orders"])),
        }
        return cls(**(content | nested))


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCost:
    """What the kernels of one class, dtype and approximate size do in one step.

    Attributes:
        phase: "forward", "backward", "optimizer".
        kind: kernel class: "matmul", "attention", "elementwise", "gather", "dequantize", "optimizer"; "call" counts
            calls of operators, views included, "sync" reads of values, for which the host waits, and "transfer" copies
            between the host and the device.
        dtype: of their inputs; "" of calls and reads.
        flops: floating-point operations; of elementwise kernels one an element.
        moved_bytes: bytes read and written; of transfers, those that cross.
        launches: kernels started; calls, reads or copies.
    """

    phase: str
    kind: str
    dtype: str
    flops: float
    moved_bytes: float
    launches: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAnswer:
    """One traced step of the whole model.

    Attributes:
        parts: part of the step ("load", "forward last", "backward head") -> bytes by component at its peak.
        operations: part -> what ran at its peak.
        trainable_parameters: parameters that require gradients.
        costs: what the kernels do, by class.
        peak_reserved_bytes: what CUDA's caching allocator would hold at most; None where the device has none.
        least_reserved_bytes: the same where it gives free segments back before it asks for more, as it does on a full
            device: what it cannot do without.
        depths: layers of the models that were traced.
        versions: of the libraries that the figures hold for.
        notes: what the figures take for granted, one sentence each.
    """

    parts: dict[str, dict[str, int]]
    operations: dict[str, str]
    trainable_parameters: int
    costs: tuple[KernelCost, ...]
    peak_reserved_bytes: int | None
    least_reserved_bytes: int | None
    depths: tuple[int, ...]
    versions: dict[str, str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the answer as JSON data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TraceAnswer:
        """Returns the answer that ``to_dict`` wrote."""
        nested = {
            "costs": tuple(KernelCost(**each) for each in content["costs"]),
            "depths": tuple(content["depths"]),
            "notes": tuple(content["notes"]),
        }
        return cls(**(content | nested))
