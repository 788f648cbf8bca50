"""What happens before the first block."""

from __future__ import annotations

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.attention import Heads
from autopeft.memory.ledger.autograd import Leaf, Tensor
from autopeft.memory.ledger.blocks import Block, Family
from autopeft.memory.ledger.gpt import torch_norm
from autopeft.memory.ledger.linear import Step
from autopeft.memory.ledger.tape import LENGTH, ONE, TOKENS
from autopeft.specs import ModelSpec


def embed(s: Step, weight: Tensor, model: ModelSpec, family: Family, *, dropped: bool) -> Tensor:
    """Returns the states that the first block reads.

    With checkpointing over a frozen base, the embedding's output is made to require gradients, so that the blocks'
    inputs do; it keeps one of its own size to the end.
    """
    words = _looked_up(s, weight, TOKENS, model.hidden_size)
    if family.scaled_embedding:
        words = ops.same(s.g, words)
    if s.mode.checkpointing and not s.mode.trained:
        words.node = Leaf(variable=words.storage)
    if family.kind == "llama":
        return words
    x = _with_positions(s, words, model, family)
    return ops.dropout(s.g, x, on_host=s.mode.on_host) if dropped else x


def _looked_up(s: Step, weight: Tensor, unit: int, width: int) -> Tensor:
    meta, g = weight.meta, s.g
    return g.apply((weight,), (unit, width, weight.item), lambda _: (g.tensor(meta),))


def _with_positions(s: Step, words: Tensor, model: ModelSpec, family: Family) -> Tensor:
    """GPT adds positions; BERT adds types and positions and normalizes."""
    hidden, trained = model.hidden_size, s.mode.trained
    x = words
    if family.kind != "gpt" and model.config.get("type_vocab_size", 2):
        types = s.parameter(ONE, model.config.get("type_vocab_size", 2) * hidden, s.mode.rest, trained=trained)
        x = ops.add(s.g, x, _looked_up(s, types, TOKENS, hidden))
    if family.kind != "deberta" or model.config.get("position_biased_input", True):
        table = s.parameter(ONE, (model.context_length or 0) * hidden, s.mode.rest, trained=trained)
        x = _plus_rows(s, x, _looked_up(s, table, LENGTH, hidden))
    if family.kind == "gpt":
        return x
    outside = Block(
        family=family, hidden=hidden, intermediate=0, heads=Heads(heads=1, key_heads=1, head_dim=1), layers={}
    )
    return torch_norm(s, x, outside, "norm")


def _plus_rows(s: Step, x: Tensor, row: Tensor) -> Tensor:
    """Returns x with the same row added to each of its rows."""
    g, meta = s.g, row.meta
    return g.apply((x, row), x.meta, lambda grads: (grads[0], g.tensor(meta)))
