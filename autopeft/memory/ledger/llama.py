"""Blocks of the Llama kind as transformers 5.23 computes them: RMS norms, rotary positions, gated MLP.

Locals live as long here as there: what a function of transformers still names, is still there.
"""

from __future__ import annotations

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.attention import attend, rotate
from autopeft.memory.ledger.autograd import Tensor
from autopeft.memory.ledger.blocks import Block
from autopeft.memory.ledger.experts import experts
from autopeft.memory.ledger.linear import Step, linear


def llama_block(s: Step, x: Tensor, block: Block) -> Tensor:
    """Returns a block's output; with four norms (gemma 2 and 3) each half ends in one too."""
    residual = x
    x = _norm(s, x, block, "input")
    x, _weights = _attention(s, x, block)
    if block.family.norms == 4:
        x = _norm(s, x, block, "post_attention")
    x = ops.add(s.g, residual, x)
    residual = x
    x = _norm(s, x, block, "pre_feedforward")
    x = experts(s, x, block) if block.family.experts else _mlp(s, x, block)
    if block.family.norms == 4:
        x = _norm(s, x, block, "post_feedforward")
    return ops.add(s.g, residual, x)


def _norm(s: Step, x: Tensor, block: Block, name: str) -> Tensor:
    return ops.rms_norm(s.g, x, block.vector(s, name, block.hidden), float_weight=block.family.float_weight)


def _head_norm(s: Step, x: Tensor, block: Block, name: str) -> Tensor:
    width = block.heads.head_dim
    weight = block.vector(s, name, width)
    return ops.rms_norm(s.g, x, weight, float_weight=block.family.float_weight, groups=int(x.width // width))


def _attention(s: Step, x: Tensor, block: Block) -> tuple[Tensor, Tensor | None]:
    heads = block.heads
    query, key, value = _projections(s, x, block)
    rotated = rotate(s, query, joined=block.family.fused), rotate(s, key, joined=block.family.fused)
    query, key = rotated
    del rotated
    x_out, weights = attend(s, query, key, value, heads, window=block.window)
    return linear(s, x_out, block.layers["self_attn.o_proj"]), weights


def _projections(s: Step, x: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    heads = block.heads
    if block.family.fused:
        together = linear(s, x, block.layers["self_attn.qkv_proj"])
        query, key, value = ops.slices(s.g, together, (heads.query, heads.key, heads.key))
        return query, key, value
    query = linear(s, x, block.layers["self_attn.q_proj"])
    if block.family.norm_first:
        query = _head_norm(s, query, block, "query")
    key = linear(s, x, block.layers["self_attn.k_proj"])
    if block.family.norm_first:
        key = _head_norm(s, key, block, "key")
    value = linear(s, x, block.layers["self_attn.v_proj"])
    if block.family.head_norms and not block.family.norm_first:
        query = _head_norm(s, query, block, "query")
        key = _head_norm(s, key, block, "key")
    return query, key, value


def _mlp(s: Step, x: Tensor, block: Block) -> Tensor:
    if block.family.fused:
        up = linear(s, x, block.layers["mlp.gate_up_proj"])
        gate, up = ops.split(s.g, up, (up.width / 2, up.width / 2))
        up = ops.mul(s.g, up, ops.unary(s.g, gate))
        return linear(s, up, block.layers["mlp.down_proj"])
    return linear(s, _gated(s, x, block), block.layers["mlp.down_proj"])


def _gated(s: Step, x: Tensor, block: Block) -> Tensor:
    active = ops.unary(s.g, linear(s, x, block.layers["mlp.gate_proj"]))
    return ops.mul(s.g, active, linear(s, x, block.layers["mlp.up_proj"]))
