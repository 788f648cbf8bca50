"""What follows the blocks: head, logits, loss."""

from __future__ import annotations

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.autograd import Tensor
from autopeft.memory.ledger.linear import Step, plain
from autopeft.memory.ledger.tape import CHUNK, LOGITS, ONE, TOKENS

TRL_VOCABULARY_CHUNK = 32768
"""Vocabulary entries of a tile of trl's fused head (``_CHUNKED_LOGPROB_CHUNK_SIZE`` in trl.trainer.utils, trl 1.16)."""

TRL_TOKEN_CHUNK = 4096
"""Tokens of such a tile (``TOKEN_CHUNK_SIZE`` in trl/kernels/chunked_logprob.py)."""


def full_logits_loss(s: Step, x: Tensor, weight: Tensor, vocabulary: int, *, soft_capped: bool) -> Tensor:
    """Returns transformers' loss: logits, their float32 copy, its log-softmax."""
    g = s.g
    g.tape.part = LOGITS
    logits = plain(s, x, weight, vocabulary)
    if soft_capped:
        logits = ops.same(g, logits)
        logits = ops.unary(g, logits, keeps="result")
        logits = ops.same(g, logits)
    wide = ops.cast(g, logits, 4)
    chances = ops.unary(g, wide, keeps="result")
    meta = chances.meta
    return g.apply((chances,), (ONE, 1, 4), lambda _: (g.tensor(meta),), saves=(chances,))


def fused_loss(s: Step, x: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    """Returns trl's loss: logits one tile at a time, again in the backward, and gradients added in float32."""
    g = s.g
    whole = x.meta
    cut = g.apply((x,), whole, lambda _: (g.tensor(whole),))
    g.tape.part = LOGITS
    item = s.mode.base if s.mode.autocast else x.item
    needs = x.node is not None, weight.node is not None
    x_meta, weight_meta = cut.meta, weight.meta

    def backward(_: list[Tensor]) -> tuple[Tensor | None, ...]:
        metas = x_meta, weight_meta
        summed = [g.tensor((*meta[:2], 4)) if each else None for meta, each in zip(metas, needs, strict=True)]
        tile = _tile(s, x_meta, weight_meta, item, vocabulary, chunks=2)
        found = tuple(each and ops.converted(g, each, meta) for each, meta in zip(summed, metas, strict=True))
        del tile
        return found

    node = g.begin((cut, weight), backward, (cut, None))
    vectors = g.tensor((TOKENS, 7, 4))
    tile = _tile(s, x_meta, weight_meta, item, vocabulary, chunks=1)
    del tile, vectors
    loss = g.tensor((ONE, 1, 4))
    loss.node = node
    return loss


def _tile(
    s: Step, x: tuple[int, float, int], weight: tuple[int, float, int], item: int, vocabulary: int, *, chunks: int
) -> list[Tensor]:
    """Returns a tile of logits and what its product reads in another dtype."""
    g = s.g
    held = [g.tensor((CHUNK, TRL_VOCABULARY_CHUNK, item))]
    if x[2] != item:
        held.append(g.tensor((CHUNK, x[1], item)))
    width = weight[1] / vocabulary
    if weight[2] != item:
        held.append(g.tensor((ONE, min(vocabulary, chunks * TRL_VOCABULARY_CHUNK) * width, item)))
    if s.mode.on_host:
        entries = min(vocabulary, TRL_VOCABULARY_CHUNK)
        held.append(g.tensor((CHUNK, entries, 13 if chunks == 1 else 29)))
    return held
