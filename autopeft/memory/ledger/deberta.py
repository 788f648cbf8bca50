"""Blocks of DeBERTa v2 and v3: attention between contents and relative positions, always with matrices of scores."""

from __future__ import annotations

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.attention import batched, softmax
from autopeft.memory.ledger.autograd import Tensor
from autopeft.memory.ledger.blocks import Block
from autopeft.memory.ledger.encoder import encoder_block
from autopeft.memory.ledger.gpt import residual_dropout
from autopeft.memory.ledger.linear import Step, linear
from autopeft.memory.ledger.tape import ONE, ROWS, SCORES, SQUARE, TOKENS

INDEX_BYTES = 8


def deberta_block(s: Step, x: Tensor, block: Block) -> Tensor:
    """Returns a block's output."""
    return encoder_block(s, x, block, _attention)


def _attention(s: Step, x: Tensor, block: Block) -> tuple[Tensor, None]:
    g, heads = s.g, block.heads
    query, key, value = (
        ops.copy(g, linear(s, x, block.layers[f"attention.self.{name}_proj"])) for name in ("query", "key", "value")
    )
    scores = batched(s, query, ops.same(g, key), (SCORES, heads.heads, query.item))
    embedded = _dropped_positions(s, block)
    bias = _position_bias(s, query, key, embedded, block) if block.positions.count else None
    if bias is not None:
        scores = ops.add(g, scores, bias)
    mask = g.tensor((SCORES, 1, 1))
    scores = _filled(s, scores)
    chances = softmax(s, scores, heads, value.item)
    if heads.dropout:
        chances = ops.dropout(g, chances, on_host=s.mode.on_host)
    answer = batched(s, chances, value, (TOKENS, heads.query, value.item))
    answer = ops.copy(g, answer)
    del mask, bias, embedded
    return answer, None


def _filled(s: Step, scores: Tensor) -> Tensor:
    """``masked_fill`` keeps its mask, one byte for each pair of tokens of a row."""
    g, meta = s.g, scores.meta
    inverted = g.tensor((SCORES, 1, 1))
    return g.apply((scores,), meta, lambda _: (g.tensor(meta),), saves=(inverted,))


def _dropped_positions(s: Step, block: Block) -> Tensor:
    positions = block.positions
    item = 4 if positions.normed and s.mode.float32_functions else s.mode.rest
    return residual_dropout(s, Tensor((ONE, positions.count * block.hidden, item), None), block)


def _position_bias(s: Step, query: Tensor, key: Tensor, embedded: Tensor, block: Block) -> Tensor | None:
    """Returns the scores between contents and positions, in the directions that the model takes."""
    g, positions = s.g, block.positions
    tables = [_table(s, embedded, block, layer) for _, layer in positions.layers]
    total: Tensor | None = None
    picked = []
    for (direction, _), table in zip(positions.layers, tables, strict=True):
        picked.append(_picked(s, query if direction == "c2p" else key, table, block))
        part = ops.same(g, picked[-1])
        total = ops.copy(g, part) if total is None else ops.add_(g, total, part)
        del part
    return total


def _table(s: Step, embedded: Tensor, block: Block, layer: str) -> Tensor:
    """Returns the projected positions, once for each row of the batch."""
    g, width = s.g, block.positions.count * block.heads.query
    # The layer's own width is that of one position.
    projected = ops.copy(g, linear(s, embedded, block.layers[f"attention.self.{layer}"], times=block.positions.count))
    meta = projected.meta
    return g.apply((projected,), (ROWS, width, projected.item), lambda _: (g.tensor(meta),))


def _picked(s: Step, contents: Tensor, table: Tensor, block: Block) -> Tensor:
    """Returns a product with all positions, of which each pair of tokens picks one; gathering keeps what it reads."""
    g, heads = s.g, block.heads
    wide = batched(s, contents, table, (TOKENS, heads.heads * block.positions.count, contents.item))
    index = g.tensor((SQUARE, 1, INDEX_BYTES))
    meta = wide.meta
    return g.apply((wide,), (SCORES, heads.heads, wide.item), lambda _: (g.tensor(meta),), saves=(wide, index))
