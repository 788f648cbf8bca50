"""Watches every tensor storage of a traced step come and go, and finds the peak of each of its parts."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autopeft.memory.allocator import MIN_BLOCK_BYTES
from autopeft.memory.tracing.costs import KernelLedger
from autopeft.memory.tracing.values import value_read


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in the step something happens.

    Attributes:
        phase: "load", "init", "warm-up", "forward", "backward", "optimizer".
        part: place within the phase: "head", "last", "inner", "second", "first", or "".
        block: index of the transformer block; None outside the blocks.
    """

    phase: str
    part: str = ""
    block: int | None = None

    @property
    def name(self) -> str:
        """Phase and part as one text: "backward last"."""
        return f"{self.phase} {self.part}".rstrip()


@dataclass(slots=True, eq=False)
class Allocation:
    """One storage.

    Attributes:
        size: bytes, rounded up to whole blocks.
        moment: when it appeared.
        last_dimension: width of the tensor that it appeared with; 0 for a scalar.
        component: what it is, where that is known from outside; "" otherwise.
    """

    size: int
    moment: Moment
    last_dimension: int
    component: str = ""


@dataclass(slots=True)
class PartPeak:
    """The highest mark of one part of the step.

    Attributes:
        bytes: what lived then.
        event: how many events had happened by then.
        operation: what was running.
    """

    bytes: int
    event: int
    operation: str


class AllocationRecorder(TorchDispatchMode):  # type: ignore[misc]  # torch is not type-checked here
    """Records each new storage under the moment that is current, and each storage's end.

    torch's own MemTracker breaks on frozen parameters; this one knows nothing of modules.

    Attributes:
        ledger: floating-point operations and bytes moved, by kernel class.
        events: every allocation and every release (True means allocated) with its moment, in order.
        peaks: moment -> its highest mark.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spares every operation the wrapper that torch puts around modes for its compiler, which nothing here uses."""
        return False

    def __init__(self, now: Callable[[], Moment], describe: Callable[[str], str] = str) -> None:
        super().__init__()
        self.ledger = KernelLedger()
        self.events: list[tuple[bool, Allocation, Moment]] = []
        self.peaks: dict[Moment, PartPeak] = {}
        self._now = now
        self._describe = describe
        self._live: dict[int, Allocation] = {}
        self._live_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known, value = value_read(func, args, kwargs or {})
        result = value if known else func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        moment = self._now()
        self.add(leaves, operation=func, moment=moment)
        self.ledger.book(moment, func, args, kwargs or {}, leaves)
        return result

    def add(
        self, tensors: Iterable[torch.Tensor], component: str = "", *, operation: Any = "", moment: Moment | None = None
    ) -> None:
        """Counts the storages of some tensors that are not counted yet."""
        now = moment or self._now()
        grown = False
        for tensor in _stored(tensors):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._live:
                continue
            size = -(-storage.nbytes() // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
            allocation = Allocation(size, now, tensor.shape[-1] if tensor.dim() else 0, component)
            self._live[key] = allocation
            self._live_bytes += size
            self.events.append((True, allocation, now))
            weakref.finalize(storage, self._drop, key)
            grown = True
        if grown or now not in self.peaks:
            self._mark(now, operation)

    def name(self, tensors: Iterable[torch.Tensor], component: str) -> None:
        """Says what the storages of some counted tensors are."""
        for tensor in tensors:
            allocation = self._live.get(tensor.untyped_storage()._cdata)
            if allocation is not None:
                allocation.component = component

    @contextlib.contextmanager
    def borrowed(self, size: int, component: str, operation: str) -> Iterator[None]:
        """Counts bytes that no tensor of the trace stands for: a library's workspace."""
        allocation = Allocation(-(-size // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES, self._now(), 0, component)
        self._live_bytes += allocation.size
        self.events.append((True, allocation, allocation.moment))
        self._mark(allocation.moment, operation)
        try:
            yield
        finally:
            self._end(allocation)

    def live_at(self, event: int) -> list[Allocation]:
        """Returns the storages that were alive after so many events."""
        alive: dict[int, Allocation] = {}
        for allocated, allocation, _ in self.events[:event]:
            if allocated:
                alive[id(allocation)] = allocation
            else:
                del alive[id(allocation)]
        return list(alive.values())

    def _mark(self, moment: Moment, operation: Any) -> None:
        peak = self.peaks.get(moment)
        if peak is None or self._live_bytes > peak.bytes:
            what = self._describe(str(operation))
            self.peaks[moment] = PartPeak(self._live_bytes, len(self.events), what)

    def _drop(self, key: int) -> None:
        self._end(self._live.pop(key))

    def _end(self, allocation: Allocation) -> None:
        moment = self._now()
        self._live_bytes -= allocation.size
        self.events.append((False, allocation, moment))


def _stored(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Puts the positions and the values of a sparse tensor in its place, and leaves out what the host holds.

    The trace plays the device on the host processor, and the host on the meta device.
    """
    for tensor in tensors:
        if tensor.device.type == "meta":
            continue
        if tensor.layout is torch.sparse_coo:
            yield tensor._indices()
            yield tensor._values()
        else:
            yield tensor
