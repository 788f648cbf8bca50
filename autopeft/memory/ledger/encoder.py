"""Blocks of BERT and RoBERTa as transformers 5.23 computes them: each half ends in a layer norm."""

from __future__ import annotations

from collections.abc import Callable

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.attention import attend
from autopeft.memory.ledger.autograd import Tensor
from autopeft.memory.ledger.blocks import Block
from autopeft.memory.ledger.gpt import residual_dropout, torch_norm
from autopeft.memory.ledger.linear import Step, linear, plain
from autopeft.memory.ledger.tape import ONE, ROWS

Attention = Callable[[Step, Tensor, Block], tuple[Tensor, Tensor | None]]
"""From a block's input to the joined heads, and the probabilities that are handed back with them."""


def bert_block(s: Step, x: Tensor, block: Block) -> Tensor:
    """Returns a block's output."""
    return encoder_block(s, x, block, _attention)


def encoder_block(s: Step, x: Tensor, block: Block, attention: Attention) -> Tensor:
    """Returns a block's output, its attention as given, whose probabilities live as long as the block's call."""
    answer, _chances = attention(s, x, block)
    attended = _finished(s, answer, x, block, "attention.output")
    del answer
    inner = linear(s, attended, block.layers["intermediate.dense"])
    inner = ops.unary(s.g, inner)
    return _finished(s, inner, attended, block, "output")


def _finished(s: Step, x: Tensor, residual: Tensor, block: Block, name: str) -> Tensor:
    x = linear(s, x, block.layers[f"{name}.dense"])
    x = residual_dropout(s, x, block)
    return torch_norm(s, ops.add(s.g, x, residual), block, f"{name}.norm")


def _attention(s: Step, x: Tensor, block: Block) -> tuple[Tensor, Tensor | None]:
    query, key, value = (linear(s, x, block.layers[f"attention.self.{name}"]) for name in ("query", "key", "value"))
    return attend(s, query, key, value, block.heads)


def classify(s: Step, x: Tensor, labels: int, *, whole: bool) -> Tensor:
    """Returns the loss of a classification head that reads each row's first token.

    ``whole``: peft trains the head's dense layer too, not the last layer alone.
    """
    g, mode, hidden = s.g, s.mode, x.width
    item = mode.base if mode.trained else mode.adapter
    states = x.meta
    first = g.apply((x,), (ROWS, hidden, x.item), lambda _: (g.tensor(states),))
    dense_trained = mode.trained or whole
    dense = s.parameter(ONE, hidden * hidden, item if dense_trained else mode.base, trained=dense_trained)
    pool = ops.unary(g, plain(s, first, dense, hidden), keeps="result")
    out = plain(s, pool, s.parameter(ONE, hidden * labels, item, trained=True), labels)
    meta = out.meta
    return g.apply((out,), (ONE, 1, 4), lambda _: (g.tensor(meta),))
