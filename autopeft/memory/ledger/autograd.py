"""Automatic differentiation without values: it keeps and frees what torch's engine keeps and frees.

Lifetimes are Python's own: a storage ends when the last tensor, saved tensor or gradient that refers to it does.
"""

from __future__ import annotations

import heapq
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from autopeft.memory.ledger.tape import GRADIENTS, TEMPORARIES, Storage, Tape

Meta = tuple[int, float, int]
"""Unit, width (entries a unit) and bytes of an entry."""


class Tensor:
    """A shape without values: ``width`` entries of ``item`` bytes a unit.

    Attributes:
        storage: its memory; None for weights, which are counted elsewhere.
        node: what made it, or its leaf; None if it needs no gradient.
        slot: which of the node's results it is.
    """

    __slots__ = ("item", "node", "slot", "storage", "unit", "width")

    def __init__(self, meta: Meta, storage: Storage | None, node: Node | Leaf | None = None, slot: int = 0) -> None:
        self.unit, self.width, self.item = meta
        self.storage = storage
        self.node = node
        self.slot = slot

    @property
    def meta(self) -> Meta:
        """Its unit, width and item."""
        return self.unit, self.width, self.item


class Leaf:
    """Where the gradient of a trained parameter, or of another tensor that no operation made, is collected.

    Attributes:
        grad: its gradient, once there is one.
        variable: the tensor's memory, which the graph keeps as long as it lasts; None for weights.
    """

    __slots__ = ("grad", "variable")

    def __init__(self, grad: Storage | None = None, variable: Storage | None = None) -> None:
        self.grad = grad
        self.variable = variable

    def collect(self, gradient: Tensor) -> None:
        """Keeps the first gradient as it is; later ones are added in place."""
        if self.grad is None:
            assert gradient.storage is not None
            gradient.storage.rename(GRADIENTS)
            self.grad = gradient.storage


Saved = list[Tensor | None]
Backward = Callable[[list[Any]], tuple[Tensor | None, ...]]


class Node:
    """One operation of the graph."""

    __slots__ = ("__weakref__", "backward", "edges", "frame", "grads", "kept", "metas", "order", "saved")

    def __init__(self, order: int, edges: list[tuple[Node | Leaf | None, int]], backward: Backward) -> None:
        self.order = order
        self.edges = edges
        self.backward = backward
        self.saved: Saved = []
        self.frame: tuple[Frame, int, int] | None = None
        self.kept: Tensor | None = None
        self.metas: tuple[Meta, ...] = ()
        self.grads: list[Tensor | None] | None = None


class _Recomputed(Exception):  # noqa: N818  # not an error: it ends a recomputation early, as torch does
    pass


class Frame:
    """A checkpointed call: it remembers how many tensors it would have saved, and how to make them again."""

    __slots__ = ("again", "owners", "recomputed", "released")

    def __init__(self) -> None:
        self.owners: list[weakref.ref[Node]] = []
        self.released = 0
        self.again: Callable[[], Any] | None = None
        self.recomputed: Saved | None = None

    def release(self, start: int, end: int) -> None:
        """Lets go of some tensors that were made again, and with the last of them of the call's argument."""
        assert self.recomputed is not None
        self.recomputed[start:end] = [None] * (end - start)
        self.released += end - start
        if self.released == sum(owner() is not None for owner in self.owners):
            self.again = None

    @property
    def count(self) -> int:
        """Tensors that the call saved."""
        return len(self.owners)


def _nothing() -> None:
    pass


class Graph:
    """Runs operations, remembers what they save, and runs them backwards.

    Attributes:
        when_recomputed: called when a checkpointed call was made again (autocast then forgets its casts).
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.when_recomputed: Callable[[], None] = _nothing
        self._order = 0
        self._frame: Frame | None = None
        self._recomputing: Frame | None = None

    def tensor(self, meta: Meta, part: int | None = None) -> Tensor:
        """Returns a new tensor that needs no gradient."""
        unit, width, item = meta
        return Tensor(meta, self.tape.take(unit, width * item, part))

    def apply(
        self,
        inputs: Sequence[Tensor],
        out: Meta | Storage,
        backward: Backward,
        *,
        saves: Sequence[Tensor | None] = (),
        saves_out: bool = False,
        metas: tuple[Meta, ...] = (),
    ) -> Tensor:
        """Returns the result of an operation.

        Args:
            inputs: what it reads that may need a gradient.
            out: what it makes; a storage where it works in place or makes a view (then with the first input's meta).
            backward: from the gradients of its results and what was saved to the gradients of ``inputs``.
            saves: inputs kept for the backward; None for weights, which are there anyway.
            saves_out: whether the result is kept as well.
            metas: of the inputs, where the backward makes gradients that are summed or cast to them afterwards.
        """
        node = self.begin(inputs, backward, saves)
        result = Tensor(inputs[0].meta, out) if isinstance(out, Storage) else self.tensor(out)
        if node is not None:
            result.node = node
            node.metas = metas
            if saves_out:
                self.save(node, Tensor(result.meta, result.storage))
        return result

    def begin(self, inputs: Sequence[Tensor], backward: Backward, saves: Sequence[Tensor | None] = ()) -> Node | None:
        """Returns the node of an operation about to run, its inputs saved; None if nothing needs a gradient."""
        for each in inputs:
            if each.node is not None:
                break
        else:
            return None
        self._order += 1
        node = Node(self._order, [(each.node, each.slot) for each in inputs], backward)
        for tensor in saves:
            self.save(node, tensor)
        return node

    def save(self, node: Node, tensor: Tensor | None) -> None:
        """Keeps a tensor for the node's backward, or only its place inside a checkpointed call."""
        plain = tensor and Tensor(tensor.meta, tensor.storage)
        if self._recomputing is not None:
            self._recompute(node, self._recomputing, plain)
        elif self._frame is not None:
            start = node.frame[1] if node.frame else self._frame.count
            self._frame.owners.append(weakref.ref(node))
            node.frame = (self._frame, start, self._frame.count)
        else:
            node.saved.append(plain)

    def _recompute(self, node: Node, frame: Frame, tensor: Tensor | None) -> None:
        assert frame.recomputed is not None
        # What belonged to a graph that is gone (the matrices of DoRA's norm) is made again, but not kept.
        owner = frame.owners[len(frame.recomputed)]()
        frame.recomputed.append(tensor if owner is not None else None)
        node.saved.append(tensor)
        if len(frame.recomputed) == frame.count:
            raise _Recomputed

    def checkpoint(self, function: Callable[[Tensor], Tensor], argument: Tensor) -> Tensor:
        """Returns ``function(argument)``; what it would save is made again in the backward (not reentrant)."""
        frame = Frame()
        plain = Tensor(argument.meta, argument.storage, argument.node, argument.slot)
        frame.again = lambda: function(plain)
        outer, self._frame = self._frame, frame
        result = function(argument)
        self._frame = outer
        return result

    def backward(self, loss: Tensor) -> None:
        """Runs the graph backwards, the latest operation first, as torch's engine does."""
        root = loss.node
        assert isinstance(root, Node)
        root.grads = [self.tensor(loss.meta)]
        waiting = [(-root.order, root)]
        while waiting:
            _, node = heapq.heappop(waiting)
            results = self._gradients(node)
            for index, (target, slot) in enumerate(node.edges):
                gradient, results[index] = results[index], None
                if target is None or gradient is None:
                    continue
                if isinstance(target, Leaf):
                    target.collect(gradient)
                    continue
                if target.grads is None:
                    target.grads = []
                    heapq.heappush(waiting, (-target.order, target))
                self._add(target.grads, slot, gradient)
            gradient = None

    def _gradients(self, node: Node) -> list[Tensor | None]:
        """Returns what the node's backward makes; its gradients and saved tensors end here."""
        gradients, node.grads = node.grads, None
        saved = self._saved(node)
        results = list(node.backward(gradients or []))
        del saved
        if node.frame:
            # What was made again is held by nothing but the backward's own variables.
            frame, start, end = node.frame
            frame.release(start, end)
        for index, meta in enumerate(node.metas):
            gradient = results[index]
            if gradient is not None and gradient.meta != meta:
                results[index] = self.tensor(meta)
            gradient = None
        del gradients
        node.saved.clear()
        return results

    def _saved(self, node: Node) -> Saved:
        if not node.frame:
            return list(node.saved)
        frame, start, end = node.frame
        if frame.recomputed is None:
            self._run_again(frame)
        assert frame.recomputed is not None
        return frame.recomputed[start:end]

    def _run_again(self, frame: Frame) -> None:
        assert frame.again is not None
        frame.recomputed = []
        self._recomputing = frame
        part, self.tape.part = self.tape.part, TEMPORARIES
        try:
            frame.again()
        except _Recomputed:
            pass
        finally:
            self._recomputing = None
            self.tape.part = part
            self.when_recomputed()

    def _add(self, grads: list[Tensor | None], slot: int, gradient: Tensor) -> None:
        grads.extend([None] * (slot + 1 - len(grads)))
        before = grads[slot]
        if before is None:
            grads[slot] = gradient
        else:
            grads[slot] = self.tensor(gradient.meta)
