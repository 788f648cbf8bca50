"""Attention: rotary positions, fused kernels, and the eager way with its matrices of scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.autograd import Tensor
from autopeft.memory.ledger.linear import Step, autocast_input
from autopeft.memory.ledger.tape import LENGTH, SCORES, TOKENS

SIXTEEN_BIT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """How attention is divided, and how its eager form is written.

    Attributes:
        softmax_dtype: "float32" asks softmax for it, "input" leaves it to autocast.
        casts_back: whether the probabilities are cast to the values' dtype.
        soft_capped: whether scores go through tanh.
        by_head: whether the query is laid out by head, so that joining the heads of the output copies it.
        dropout: whether probabilities are dropped out.
        masked: whether a mask is added to the scores.
    """

    heads: int
    key_heads: int
    head_dim: int
    softmax_dtype: str = "float32"
    casts_back: bool = True
    soft_capped: bool = False
    by_head: bool = False
    dropout: bool = False
    masked: bool = True
    joins: bool = True

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads."""
        return self.key_heads * self.head_dim


def rotate(s: Step, x: Tensor, *, joined: bool) -> Tensor:
    """Returns x with rotary positions; ``joined``: what is rotated and what passes are cut out and joined again."""
    g = s.g
    whole = x
    turned = ops.mul(g, x, _angles(x))
    half = x.width / 2
    first, second = ops.slices(g, x, (half, half))
    second = ops.same(g, second)
    swapped = _join(s, second, first, x.meta)
    del first, second
    swapped = ops.mul(g, swapped, _angles(x))
    result = ops.add(g, turned, swapped)
    del turned, swapped
    if not joined:
        return result
    (nothing,) = ops.slices(g, whole, (0,))
    return _join(s, result, nothing, whole.meta)


def _angles(x: Tensor) -> Tensor:
    """Cosines and sines are made once for all blocks."""
    return Tensor((LENGTH, 1, x.item), None)


def _join(s: Step, a: Tensor, b: Tensor, meta: tuple[int, float, int]) -> Tensor:
    metas = a.meta, b.meta

    def backward(grads: list[Tensor]) -> tuple[Tensor | None, ...]:
        return tuple(Tensor(each, grads[0].storage) for each in metas)

    return s.g.apply((a, b), meta, backward)


def attend(
    s: Step, query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, window: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Returns the attention's output, heads joined, and the eager form's probabilities.

    ``window``: a fused kernel is given a mask, since rows are longer than the window that a token sees.
    """
    if s.mode.eager:
        return _eager(s, query, key, value, heads)
    if s.mode.on_host and heads.dropout:
        return _spelled_out(s, query, key, value, heads), None
    if not window:
        return _fused(s, query, key, value, heads), None
    # With a mask, transformers repeats keys and values for the heads, and the kernel keeps the mask as a bias.
    keys, values = repeated(s, key, heads), repeated(s, value, heads)
    alike = replace(heads, key_heads=heads.heads)
    return _fused(s, query, keys, values, alike, biased=True), None


def _fused(s: Step, query: Tensor, key: Tensor, value: Tensor, heads: Heads, *, biased: bool = False) -> Tensor:
    """Fused kernels keep query, key, value, their output and one float32 a head and token.

    Their backward borrows a float32 accumulator of the query's gradient and one float32 a head and token, and gradients
    of keys and values for every query head where heads share them (``mha_bwd`` in flash_api.cpp).
    """
    g = s.g
    query, key, value = (autocast_input(s, each) for each in (query, key, value))
    metas = query.meta, key.meta, value.meta
    query_item = query.item

    def backward(_: list[Tensor]) -> tuple[Tensor | None, ...]:
        borrowed = [g.tensor((TOKENS, heads.heads, 4))]
        if query_item == SIXTEEN_BIT:
            borrowed.append(g.tensor((TOKENS, heads.heads * -(-heads.head_dim // 32) * 32, 4)))
        found = tuple(g.tensor(each) for each in metas)
        if heads.heads != heads.key_heads:
            borrowed += [g.tensor((TOKENS, heads.query, query_item)) for _ in range(2)]
        borrowed.clear()
        return found

    bias = g.tensor((SCORES, 1, query_item)) if biased else None
    node = g.begin((query, key, value), backward, (query, key, value))
    result = g.tensor(metas[0])
    statistics = g.tensor((TOKENS, heads.heads, 4))
    if node is not None:
        g.save(node, result)
        g.save(node, statistics)
        if bias is not None:
            g.save(node, bias)
        result.node = node
    return ops.copy(g, result) if heads.by_head else result


def _spelled_out(s: Step, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
    """Returns what torch's kernel for host processors leaves to elementary functions: attention with dropout.

    In float32, with query and key scaled each (``_scaled_dot_product_attention_math`` in ATen's attention.cpp).
    """
    g = s.g
    key, value = repeated(s, key, heads), repeated(s, value, heads)
    narrow = [autocast_input(s, each) for each in (query, key, value)]
    item = narrow[0].item
    query, key, value = (ops.cast(g, each, 4) for each in narrow)
    del narrow
    query, key = ops.same(g, query), ops.same(g, key)
    scores = _plain_product(s, ops.copy(g, query), ops.copy(g, key), (SCORES, heads.heads, 4))
    hidden = g.tensor((SCORES, heads.heads, 1))
    chances = ops.unary(g, scores, keeps="result")
    del hidden, scores
    chances = ops.dropout(g, chances, on_host=True)
    result = _plain_product(s, chances, ops.copy(g, value), (TOKENS, heads.query, 4))
    del chances
    return ops.copy(g, ops.cast(g, result, item))


def repeated(s: Step, x: Tensor, heads: Heads) -> Tensor:
    """Returns keys or values once for each query head."""
    if heads.heads == heads.key_heads:
        return x
    meta = x.meta
    return s.g.apply((x,), (TOKENS, heads.query, x.item), lambda _: (s.g.tensor(meta),))


def _eager(s: Step, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    g = s.g
    groups = heads.heads != heads.key_heads
    keys, values = repeated(s, key, heads), repeated(s, value, heads)
    scores = batched(s, ops.copy(g, query), keys if groups else ops.copy(g, keys), (SCORES, heads.heads, query.item))
    scores = ops.same(g, scores)
    if heads.soft_capped:
        scores = ops.unary(g, ops.same(g, scores), keeps="result")
        scores = ops.same(g, scores)
    if heads.masked:
        scores = ops.copy(g, scores)
    scores = softmax(s, scores, heads, value.item)
    if heads.dropout:
        scores = ops.dropout(g, scores, on_host=s.mode.on_host)
    result = batched(s, scores, values if groups else ops.copy(g, values), (TOKENS, heads.query, value.item))
    return ops.copy(g, result) if heads.joins else result, scores


def softmax(s: Step, scores: Tensor, heads: Heads, item: int) -> Tensor:
    """Returns probabilities, which are kept; ``item`` is that of the values, which some models cast them to."""
    g = s.g
    if heads.softmax_dtype == "float32" or s.mode.float32_functions:
        scores = ops.cast(g, scores, 4)
    scores = ops.unary(g, scores, keeps="result")
    return ops.cast(g, scores, item) if heads.casts_back else scores


def batched(s: Step, a: Tensor, b: Tensor, out: tuple[int, float, int]) -> Tensor:
    """Returns a batched product; each factor is kept for the other's gradient."""
    a, b = autocast_input(s, a), autocast_input(s, b)
    return _plain_product(s, a, b, (*out[:2], max(a.item, b.item)))


def _plain_product(s: Step, a: Tensor, b: Tensor, out: tuple[int, float, int]) -> Tensor:
    g, metas = s.g, (a.meta, b.meta)
    needs = a.node is not None, b.node is not None

    def backward(_: list[Tensor]) -> tuple[Tensor | None, ...]:
        return tuple(g.tensor(each) if needed else None for each, needed in zip(metas, needs, strict=True))

    return g.apply((a, b), out, backward, saves=((b,) if needs[0] else ()) + ((a,) if needs[1] else ()))
