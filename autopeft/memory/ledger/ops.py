"""Element-wise operations, norms and products: what each makes, keeps and hands back."""

from __future__ import annotations

from collections.abc import Callable

from autopeft.memory.ledger.autograd import Graph, Meta, Tensor
from autopeft.memory.ledger.tape import ONE, TOKENS


def cast(g: Graph, x: Tensor, item: int) -> Tensor:
    """Returns x in another dtype; x itself if it has it already."""
    if x.item == item:
        return x
    back = x.meta
    return g.apply((x,), (x.unit, x.width, item), lambda _: (g.tensor(back),))


def converted(g: Graph, gradient: Tensor, meta: Meta) -> Tensor:
    """Returns a gradient in the wanted form; itself if it has it already."""
    return gradient if gradient.meta == meta else g.tensor(meta)


def same(g: Graph, x: Tensor, *, item: int | None = None) -> Tensor:
    """Returns a function of x that keeps nothing and whose gradient is a new tensor: scaling, negation, a copy."""
    meta = x.meta
    return g.apply((x,), (x.unit, x.width, item or x.item), lambda _: (g.tensor(meta),))


def copy(g: Graph, x: Tensor) -> Tensor:
    """Returns a copy, whose gradient is passed on as it is (clone, contiguous)."""
    return g.apply((x,), x.meta, lambda grads: (grads[0],))


def unary(g: Graph, x: Tensor, *, keeps: str = "input", temporaries: int = 0) -> Tensor:
    """Returns an element-wise function of x that keeps its input or its result.

    ``temporaries``: tensors of x's size that the backward holds beside the new gradient.
    """
    meta = x.meta

    def backward(_: list[Tensor]) -> tuple[Tensor]:
        held = [g.tensor(meta) for _ in range(temporaries)]
        gradient = g.tensor(meta)
        del held
        return (gradient,)

    saves = (x,) if keeps == "input" else ()
    return g.apply((x,), meta, backward, saves=saves, saves_out=keeps == "result")


def add(g: Graph, a: Tensor, b: Tensor) -> Tensor:
    """Returns the sum of two tensors of one shape; the gradient is passed on, cast where a summand is narrower."""
    out = (a.unit, a.width, max(a.item, b.item))
    metas = a.meta, b.meta

    return g.apply((a, b), out, lambda grads: (grads[0], grads[0]), metas=metas)


def add_scaled(g: Graph, a: Tensor, b: Tensor) -> Tensor:
    """Returns ``a + c b`` of one operation; b's gradient is a new tensor."""
    out = (a.unit, a.width, max(a.item, b.item))
    metas = a.meta, b.meta

    return g.apply((a, b), out, lambda grads: (grads[0], g.tensor(out)), metas=metas)


def add_(g: Graph, a: Tensor, b: Tensor) -> Tensor:
    """Returns a after b was added to it in place."""
    assert a.storage is not None
    return g.apply((a, b), a.storage, lambda grads: (grads[0], grads[0]), metas=(a.meta, b.meta))


def mul(g: Graph, a: Tensor, b: Tensor) -> Tensor:
    """Returns the product of two tensors, the smaller one broadcast to the larger; each keeps the other.

    The gradient of a broadcast factor exists at full size before it is summed.
    """
    big = a if _larger(a, b) else b
    out = (big.unit, big.width, max(a.item, b.item))
    metas = a.meta, b.meta
    needs = a.node is not None, b.node is not None

    def backward(_: list[Tensor]) -> tuple[Tensor | None, ...]:
        return tuple(g.tensor(out) if needed else None for needed in needs)

    saves = ((b,) if needs[0] else ()) + ((a,) if needs[1] else ())
    return g.apply((a, b), out, backward, saves=saves, metas=metas)


def _larger(a: Tensor, b: Tensor) -> bool:
    """Whether a is at least as large as b: a vector or a column is broadcast along a matrix of tokens."""
    if a.unit == b.unit:
        return a.width >= b.width
    return a.unit != ONE if ONE in (a.unit, b.unit) else a.width * (a.unit == TOKENS) >= b.width * (b.unit == TOKENS)


def dropout(g: Graph, x: Tensor, *, on_host: bool) -> Tensor:
    """Returns x with entries dropped: CUDA keeps one byte an entry, a host processor a tensor of factors."""
    mask = g.tensor((x.unit, x.width, x.item if on_host else 1)) if x.node is not None else None
    meta = x.meta
    return g.apply((x,), meta, lambda _: (g.tensor(meta),), saves=(mask,) if mask else ())


def split(g: Graph, x: Tensor, widths: tuple[float, ...]) -> list[Tensor]:
    """Returns views of x side by side; their gradients are joined in a new tensor."""
    meta = x.meta
    node = g.begin((x,), lambda _: (g.tensor(meta),))
    return [Tensor((x.unit, width, x.item), x.storage, node, slot) for slot, width in enumerate(widths)]


def slices(g: Graph, x: Tensor, widths: tuple[float, ...]) -> list[Tensor]:
    """Returns views of x, each cut out by itself; each gradient is padded with zeros to the whole of x."""
    meta = x.meta
    nodes = [g.begin((x,), lambda _: (g.tensor(meta),)) for _ in widths]
    return [Tensor((x.unit, width, x.item), x.storage, node) for node, width in zip(nodes, widths, strict=True)]


def product(g: Graph, x: Tensor, weight: Tensor, out_width: float, *, bias: Tensor | None = None) -> Tensor:
    """Returns ``x @ weight.T (+ bias)``; x is kept for the weight's gradient, the weight for that of x."""
    x_meta, weight_meta = x.meta, weight.meta
    needs_x, needs_weight = x.node is not None, weight.node is not None

    def backward(_: list[Tensor]) -> tuple[Tensor | None, ...]:
        bias_grad = (g.tensor(bias.meta),) if bias is not None and bias.node is not None else (None,)
        x_grad = g.tensor(x_meta) if needs_x else None
        weight_grad = g.tensor(weight_meta) if needs_weight else None
        return (x_grad, weight_grad) + (bias_grad if bias is not None else ())

    saves = ((x,) if needs_weight else ()) + ((_if_stored(weight),) if needs_x else ())
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return g.apply(inputs, _product_meta(x, weight, out_width), backward, saves=saves)


def _product_meta(x: Tensor, weight: Tensor, out_width: float) -> tuple[int, float, int]:
    from autopeft.memory.ledger.tape import RANK, TOKEN_RANKS

    if weight.unit == RANK and x.unit == TOKENS:
        return TOKEN_RANKS, out_width, x.item
    if weight.unit == RANK and x.unit == TOKEN_RANKS:
        return TOKENS, out_width, x.item
    if weight.unit == RANK and x.unit == ONE:
        return RANK, out_width, x.item
    if weight.unit == RANK and x.unit == RANK:
        return ONE, out_width, x.item
    return x.unit, out_width, x.item


def _if_stored(weight: Tensor) -> Tensor | None:
    return weight if weight.storage is not None else None


def rms_norm(g: Graph, x: Tensor, weight: Tensor, *, float_weight: bool, groups: int = 1) -> Tensor:
    """Returns x over its root mean square times a weight, computed in float32 by hand.

    With ``float_weight`` the product with the weight is in float32 too, and cast down afterwards (gemma); ``groups``
    are heads that are normalized each by itself.
    """
    item = x.item
    wide = cast(g, x, 4)
    del x
    mean = _mean(g, _square(g, wide), groups)
    root = unary(g, mean, keeps="result", temporaries=2)
    del mean
    normed = mul(g, wide, root)
    del wide, root
    if float_weight:
        factor = same(g, cast(g, weight, 4)) if weight.node is not None else weight
        return cast(g, mul(g, normed, Tensor((ONE, weight.width, 4), factor.storage, factor.node)), item)
    return mul(g, Tensor(weight.meta, None, weight.node), cast(g, normed, item))


def _square(g: Graph, x: Tensor) -> Tensor:
    """``pow(2)``: its backward copies x, doubles it and multiplies, one tensor each."""
    return unary(g, x, temporaries=2)


def _mean(g: Graph, x: Tensor, groups: int) -> Tensor:
    meta = x.meta
    return g.apply((x,), (x.unit, groups, x.item), lambda _: (g.tensor(meta),))


def layer_norm(g: Graph, x: Tensor, weight: Tensor, bias: Tensor, *, in_float32: bool) -> Tensor:
    """Returns torch's layer norm; it keeps its input and two float32 a row."""
    x = cast(g, x, 4) if in_float32 else x
    meta = x.meta
    statistics = g.tensor((x.unit, 2, 4)) if x.node is not None or weight.node is not None else None

    def backward(_: list[Tensor]) -> tuple[Tensor | None, ...]:
        x_grad = g.tensor(meta)
        vectors = [g.tensor(each.meta) if each.node is not None else None for each in (weight, bias)]
        return x_grad, *vectors

    return g.apply((x, weight, bias), meta, backward, saves=(x, None, statistics))


def mark(g: Graph, x: Tensor, call: Callable[[], object]) -> Tensor:
    """Returns x; ``call`` is called when its gradient has come."""

    def backward(grads: list[Tensor]) -> tuple[Tensor]:
        call()
        return (grads[0],)

    assert x.storage is not None
    return g.apply((x,), x.storage, backward)
