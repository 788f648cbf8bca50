"""Mixture-of-experts MLP as transformers 5.23 trains it: all experts in one grouped product."""

from __future__ import annotations

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.autograd import Tensor
from autopeft.memory.ledger.blocks import Block
from autopeft.memory.ledger.linear import Step, plain
from autopeft.memory.ledger.tape import TOKENS


def experts(s: Step, x: Tensor, block: Block) -> Tensor:
    """Returns the experts' weighted answers; each token goes to ``block.chosen`` of them.

    The grouped product is not known to autocast: it reads its input in the weights' dtype. Experts are no linear
    modules, so that bitsandbytes leaves them in 16 bits and peft's aliases leave them alone.
    """
    g, item = s.g, x.item
    weights = _route(s, x, block)
    chosen = _gather(s, x, block.chosen)
    wide, narrow = 2 * block.intermediate, block.hidden
    up = _grouped(s, chosen, block, "gate_up", (wide, narrow))
    gate, other = ops.split(g, up, (up.width / 2, up.width / 2))
    active = ops.mul(g, ops.unary(g, gate), other)
    del gate, other
    answers = _grouped(s, active, block, "down", (narrow, block.intermediate))
    weighted = ops.mul(g, answers, weights)
    weighted = _permuted(s, weighted)
    total = g.apply((weighted,), (TOKENS, block.hidden, weighted.item), lambda grads: (grads[0],))
    return ops.cast(g, total, item)


def _route(s: Step, x: Tensor, block: Block) -> Tensor:
    """Returns the float32 weight of each chosen expert of each token."""
    g = s.g
    weight = block.vector(s, "router", block.expert_count * block.hidden)
    chances = ops.unary(g, ops.cast(g, plain(s, x, weight, block.expert_count), 4), keeps="result")
    meta = chances.meta
    picked = g.apply((chances,), (TOKENS, block.chosen, 4), lambda _: (g.tensor(meta),))
    return ops.same(g, picked)


def _gather(s: Step, x: Tensor, chosen: int) -> Tensor:
    """Returns each token once for each of its experts."""
    meta = x.meta
    return s.g.apply((x,), (TOKENS, chosen * x.width, x.item), lambda _: (s.g.tensor(meta),))


def _permuted(s: Step, x: Tensor) -> Tensor:
    return ops.same(s.g, x)


def _grouped(s: Step, x: Tensor, block: Block, name: str, shape: tuple[int, int]) -> Tensor:
    weight = block.vector(s, name, block.expert_count * shape[0] * shape[1])
    return ops.product(s.g, ops.cast(s.g, x, weight.item), weight, block.chosen * shape[0])
