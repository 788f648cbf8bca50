"""Blocks of GPT-2 and GPTBigCode as transformers 5.23 computes them: layer norms, one matrix for query, key, value."""

from __future__ import annotations

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.attention import attend
from autopeft.memory.ledger.autograd import Tensor
from autopeft.memory.ledger.blocks import Block
from autopeft.memory.ledger.linear import Step, linear


def gpt_block(s: Step, x: Tensor, block: Block) -> Tensor:
    """Returns a block's output."""
    residual = x
    x = torch_norm(s, x, block, "ln_1")
    answer, _weights = _attention(s, x, block)
    x = ops.add(s.g, answer, residual)
    residual = x
    x = torch_norm(s, x, block, "ln_2")
    return ops.add(s.g, residual, _mlp(s, x, block))


def torch_norm(s: Step, x: Tensor, block: Block, name: str) -> Tensor:
    """Returns torch's layer norm of x."""
    weight, bias = (block.vector(s, f"{name}.{part}", block.hidden) for part in ("weight", "bias"))
    return ops.layer_norm(s.g, x, weight, bias, in_float32=s.mode.float32_functions)


def _attention(s: Step, x: Tensor, block: Block) -> tuple[Tensor, Tensor | None]:
    heads = block.heads
    together = linear(s, x, block.layers["attn.c_attn"])
    query, key, value = ops.split(s.g, together, (heads.query, heads.key, heads.key))
    del together
    answer, weights = attend(s, query, key, value, heads)
    answer = linear(s, answer, block.layers["attn.c_proj"])
    return residual_dropout(s, answer, block), weights


def _mlp(s: Step, x: Tensor, block: Block) -> Tensor:
    x = linear(s, x, block.layers["mlp.c_fc"])
    x = spelled_gelu(s, x) if block.family.spelled_gelu else ops.unary(s.g, x)
    x = linear(s, x, block.layers["mlp.c_proj"])
    return residual_dropout(s, x, block)


def residual_dropout(s: Step, x: Tensor, block: Block) -> Tensor:
    """Returns a branch with entries dropped, where the model has dropout."""
    return ops.dropout(s.g, x, on_host=s.mode.on_host) if block.dropout else x


def spelled_gelu(s: Step, x: Tensor) -> Tensor:
    """Returns GELU in elementary functions; autocast takes the cube in float32 on CUDA."""
    g = s.g
    half = ops.same(g, x)
    cube = ops.unary(g, ops.cast(g, x, 4) if s.mode.float32_functions else x, temporaries=2)
    inner = ops.same(g, ops.add(g, x, ops.same(g, cube)))
    del cube
    factor = ops.unary(g, inner, keeps="result")
    del inner
    return ops.mul(g, half, ops.copy(g, factor))
