"""Watches every tensor storage of a traced step come and go, and finds the peak of each of its parts."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autopeft.memory.allocator import MIN_BLOCK_BYTES
from autopeft.memory.tracing.costs import KernelLedger, bookings_of
from autopeft.memory.tracing.shapes import Remembered, ShapeMemory, made
from autopeft.memory.tracing.values import value_read

_DEVICE = torch.ops.prim.device.default


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]


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

    def __init__(
        self,
        now: Callable[[], Moment],
        describe: Callable[[str], str] = str,
        fakes: tuple[FakeTensorMode, ShapeMemory] | None = None,
    ) -> None:
        """Makes a recorder.

        Args:
            now: returns the current moment.
            describe: returns an operation's name for people.
            fakes: the mode of the fake tensors that are watched, and what is known of their shapes; None watches
                tensors of any kind, and every call is made.
        """
        super().__init__()
        self._fakes = fakes
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
        if func is _DEVICE:
            return args[0].device  # the autograd engine asks for it as often as for everything else together
        named = kwargs or {}
        result, remembered = self._result(func, args, named)
        leaves = _tensors(result)
        moment = self._now()
        self.add(leaves, operation=func, moment=moment)
        in_optimizer = moment.phase == "optimizer"
        bookings = None if remembered is None else remembered.bookings.get(in_optimizer)
        if bookings is None:
            bookings = bookings_of(func, args, named, leaves, in_optimizer=in_optimizer)
            if remembered is not None:
                remembered.bookings[in_optimizer] = bookings
        self.ledger.book(moment.name, bookings)
        return result

    def _result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Remembered | None]:
        """Returns what an operator makes, from memory where it depends on shapes alone, and what is remembered."""
        mode, shapes = self._fakes or (None, None)
        call = shapes.call(func, args, kwargs) if shapes else None
        remembered = shapes.recall(call) if shapes and call else None
        if call and remembered:
            return made(remembered, call, mode), remembered
        known, value = value_read(func, args, kwargs)
        result = value if known else func(*args, **kwargs)
        return result, shapes.learn(func, call, result) if shapes and call else None

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
