"""Watches every tensor storage of a traced step come and go, and finds the peak of each of its segments."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK_BYTES = 512
"""CUDA's caching allocator hands out multiples of this (``kMinBlockSize``, c10/core/AllocatorConfig.h)."""


@dataclass(slots=True, eq=False)
class Allocation:
    """One storage.

    Attributes:
        size: bytes, rounded up to whole blocks.
        segment: part of the step in which it appeared.
        last_dimension: width of the tensor that it appeared with; 0 for a scalar.
        component: what it is, where that is known from outside; "" otherwise.
    """

    size: int
    segment: str
    last_dimension: int
    component: str = ""


@dataclass(slots=True)
class SegmentPeak:
    """The highest mark of one segment: bytes, and how many events had happened by then."""

    bytes: int
    event: int


class AllocationRecorder(TorchDispatchMode):  # type: ignore[misc]  # torch is not type-checked here
    """Records each new storage under the segment that is current, and each storage's end.

    torch's own MemTracker breaks on frozen parameters; this one knows nothing of modules.

    Attributes:
        events: every allocation and every release (True means allocated), in order.
        peaks: segment -> its highest mark.
    """

    def __init__(self, current_segment: Callable[[], str]) -> None:
        super().__init__()
        self.events: list[tuple[bool, Allocation]] = []
        self.peaks: dict[str, SegmentPeak] = {}
        self._current_segment = current_segment
        self._live: dict[int, Allocation] = {}
        self._now_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result

    def add(self, tensors: Iterable[torch.Tensor], component: str = "") -> None:
        """Counts the storages of some tensors that are not counted yet."""
        segment = self._current_segment()
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._live:
                continue
            size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
            allocation = Allocation(size, segment, tensor.shape[-1] if tensor.dim() else 0, component)
            self._live[key] = allocation
            self._now_bytes += size
            self.events.append((True, allocation))
            weakref.finalize(storage, self._drop, key)
        self._mark(segment)

    def name(self, tensors: Iterable[torch.Tensor], component: str) -> None:
        """Says what the storages of some counted tensors are."""
        for tensor in tensors:
            allocation = self._live.get(tensor.untyped_storage()._cdata)
            if allocation is not None:
                allocation.component = component

    def live_at(self, event: int) -> list[Allocation]:
        """Returns the storages that were alive after so many events."""
        alive: dict[int, Allocation] = {}
        for allocated, allocation in self.events[:event]:
            if allocated:
                alive[id(allocation)] = allocation
            else:
                del alive[id(allocation)]
        return list(alive.values())

    def _mark(self, segment: str) -> None:
        peak = self.peaks.get(segment)
        if peak is None or self._now_bytes > peak.bytes:
            self.peaks[segment] = SegmentPeak(self._now_bytes, len(self.events))

    def _drop(self, key: int) -> None:
        allocation = self._live.pop(key)
        self._now_bytes -= allocation.size
        self.events.append((False, allocation))
