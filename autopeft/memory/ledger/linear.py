"""Linear layers as transformers, bitsandbytes and peft compute them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from autopeft.memory.ledger import ops
from autopeft.memory.ledger.autograd import Graph, Leaf, Node, Tensor
from autopeft.memory.ledger.tape import GRADIENTS, ONE, RANK

NF4_SCALE_WEIGHTS = 64
"""Weights of one scale of nf4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """How a whole step computes.

    Attributes:
        base: bytes of an entry of the base weights and of what is computed with them.
        adapter: bytes of an entry of an adapter weight.
        adapter_kind: "lora" for everything that peft builds like LoRA; "dora" with the norm from the factors,
            "dense-dora" with peft's own.
        autocast: whether products run in 16 bits on float32 trained weights.
        on_host: a host processor's kernels instead of CUDA's.
        quantization: storage of the base.
        double_quantization: whether nf4's scales are quantized.
        float_norms: whether ``prepare_model_for_kbit_training`` made all that is not quantized float32.
        dropout: whether the adapter's inputs are dropped out.
        trained: whether the base itself is trained.
        gradients_exist: whether an earlier forward of the step left gradients.
        checkpointing: whether blocks are computed again in the backward.
        eager: whether attention builds its matrices of scores.
        windowed: whether rows are longer than the window of the layers that have one.
        fused_head: whether trl's head computes the loss in tiles.
        penalized: whether the method adds to the loss, whose backward makes every gradient at once.
    """

    base: int
    adapter: int
    adapter_kind: str
    autocast: bool
    on_host: bool
    quantization: str
    double_quantization: bool
    float_norms: bool
    dropout: bool
    trained: bool
    gradients_exist: bool
    checkpointing: bool
    eager: bool
    windowed: bool
    fused_head: bool
    penalized: bool

    @property
    def rest(self) -> int:
        """Bytes of an entry of weights that are not quantized: norms, embeddings, heads."""
        return 4 if self.float_norms else self.base

    @property
    def float32_functions(self) -> bool:
        """Whether autocast runs torch's norms and softmax in float32, as it does on CUDA only."""
        return self.autocast and not self.on_host


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What peft adds to one linear layer; its gradients are leaves.

    Attributes:
        share: rank as a multiple of the candidate's rank.
        extra: bytes that the method's forward keeps beside LoRA's, independent of the tokens.
    """

    a: Tensor
    b: Tensor
    share: float
    rest: Tensor | None = None
    extra: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear layer of the base.

    Attributes:
        times: vectors that a unit of its input holds.
    """

    inputs: int
    outputs: int
    weight: Tensor
    bias: Tensor | None
    quantized: bool
    adapter: Adapter | None = None
    times: int = 1

    @property
    def width(self) -> int:
        """Entries of its output a unit of its input."""
        return self.outputs * self.times


@dataclass(slots=True)
class Step:
    """What the operations of one step share."""

    g: Graph
    mode: Mode
    casts: dict[int, Tensor] = field(default_factory=dict)
    shares: int = 0

    def parameter(self, unit: int, width: float, item: int, *, trained: bool) -> Tensor:
        """Returns a weight; its gradient exists already where an earlier forward of the step left one."""
        if not trained:
            return Tensor((unit, width, item), None)
        exists = self.mode.gradients_exist
        return Tensor(
            (unit, width, item), None, Leaf(self.g.tape.take(unit, width * item, GRADIENTS) if exists else None)
        )

    def shared(self, parameter: Tensor) -> Tensor:
        """Returns a parameter that is used in several places, whose gradients are summed before its leaf sees them."""
        if parameter.node is None:
            return parameter
        self.shares += 1
        node = Node(-self.shares, [(parameter.node, 0)], lambda grads: (grads[0],))
        return Tensor(parameter.meta, None, node)

    def forget_casts(self) -> None:
        """Autocast forgets its copies of weights where it ends."""
        self.casts.clear()


def plain(s: Step, x: Tensor, weight: Tensor, outputs: float, bias: Tensor | None = None) -> Tensor:
    """Returns ``functional.linear`` of x, under autocast in 16 bits."""
    x = autocast_input(s, x)
    if s.mode.autocast:
        weight = autocast_weight(s, weight)
    return ops.product(s.g, x, weight, outputs, bias=bias)


def autocast_input(s: Step, x: Tensor) -> Tensor:
    """Returns what a product reads of x: 16 bits under autocast."""
    return ops.cast(s.g, x, s.mode.base) if s.mode.autocast and x.item == 4 else x


def autocast_weight(s: Step, weight: Tensor) -> Tensor:
    """Returns the 16-bit copy of a weight; autocast makes one of each trained parameter and remembers it."""
    if weight.item == s.mode.base:
        return weight
    is_parameter = isinstance(weight.node, Leaf) or (weight.node is not None and weight.node.order < 0)
    if not is_parameter:
        return ops.cast(s.g, weight, s.mode.base)
    key = id(weight.node)
    if key not in s.casts:
        s.casts[key] = ops.cast(s.g, weight, s.mode.base)
    return s.casts[key]


def linear(s: Step, x: Tensor, layer: Linear, *, times: int = 1) -> Tensor:
    """Returns the output of a layer with its adapter; ``times``: vectors a unit of x, where that is not one."""
    layer = layer if times == 1 else replace(layer, times=times)
    result = base_output(s, x, layer)
    if layer.adapter is None:
        return result
    if layer.quantized and s.mode.quantization == "nf4":
        result = ops.copy(s.g, result)
    if s.mode.adapter_kind == "adalora":
        return _adalora(s, x, result, layer, layer.adapter)
    return _lora(s, x, result, layer, layer.adapter)


def base_output(s: Step, x: Tensor, layer: Linear) -> Tensor:
    """Returns what the base layer answers."""
    if not layer.quantized:
        return plain(s, x, layer.weight, layer.width, layer.bias)
    if s.mode.quantization == "nf4":
        return _nf4(s, x, layer)
    return _int8(s, x, layer)


def _nf4(s: Step, x: Tensor, layer: Linear) -> Tensor:
    return ops.cast(s.g, _nf4_product(s, x, layer), x.item)


def _nf4_product(s: Step, x: Tensor, layer: Linear) -> Tensor:
    """Bitsandbytes rebuilds the weight in the backward, and casts it to the gradient's dtype."""
    g, mode = s.g, s.mode
    count = layer.inputs * layer.outputs
    x = ops.cast(g, x, mode.base)
    meta = x.meta

    def backward(_: list[Tensor]) -> tuple[Tensor]:
        scales = g.tensor((ONE, count / NF4_SCALE_WEIGHTS, 4)) if mode.double_quantization else None
        rebuilt = g.tensor((ONE, count, mode.base))
        del scales
        return (_with(g.tensor(meta), rebuilt),)

    return g.apply((x,), (x.unit, layer.width, mode.base), backward)


def _int8(s: Step, x: Tensor, layer: Linear) -> Tensor:
    """Bitsandbytes keeps the input where autograd does not see it, so that checkpointing cannot drop it."""
    g, mode, meta = s.g, s.mode, x.meta
    count = layer.inputs * layer.outputs

    def backward(_: list[Tensor]) -> tuple[Tensor]:
        rebuilt = g.tensor((ONE, count, meta[2]))
        return (_with(g.tensor(meta), rebuilt),)

    node = g.begin((x,), backward)
    if mode.on_host:
        held = [g.tensor((ONE, count, meta[2]))]
    else:
        half = [g.tensor((x.unit, x.width, 2))]
        held = [g.tensor((x.unit, x.width, 1)), g.tensor((x.unit, 1, 4))]
        half.clear()
    result = g.tensor((x.unit, layer.width, x.item))
    held.clear()
    if node is not None:
        node.kept = Tensor(meta, x.storage)
        result.node = node
    return result


def _with(gradient: Tensor, *held: Tensor) -> Tensor:
    """Returns the gradient; ``held`` lives until here."""
    del held
    return gradient


def _converts(s: Step, layer: Linear) -> bool:
    """Peft's quantized layers ask whether CUDA's autocast is on; plain ones always cast."""
    return not layer.quantized or not s.mode.float32_functions


def _lora(s: Step, x: Tensor, result: Tensor, layer: Linear, adapter: Adapter) -> Tensor:
    g, item = s.g, result.item
    converts = _converts(s, layer)
    if converts:
        x = ops.cast(g, x, s.mode.adapter)
    if s.mode.adapter_kind.endswith("dora"):
        dense = s.mode.adapter_kind == "dense-dora"
        answer = (_dense_dora if dense else _dora)(s, x, result, layer, adapter)
        return ops.cast(g, answer, item) if converts else answer
    # x itself lives as long as this call, as in peft.
    dropped = ops.dropout(g, x, on_host=s.mode.on_host) if s.mode.dropout else x
    update = ops.same(g, low_rank(s, dropped, layer, adapter))
    del dropped
    if layer.quantized and converts:
        update = ops.cast(g, update, item)
    answer = ops.add(g, result, update)
    return ops.cast(g, answer, item) if not layer.quantized else answer


def low_rank(s: Step, x: Tensor, layer: Linear, adapter: Adapter) -> Tensor:
    """Returns ``B (A x)``."""
    inner = plain(s, x, adapter.a, adapter.share * layer.times)
    if adapter.extra and inner.node is not None:
        inner = s.g.apply((inner,), inner.meta, lambda grads: (grads[0],), saves=(s.g.tensor((ONE, adapter.extra, 1)),))
    return plain(s, inner, adapter.b, layer.width)


def _adalora(s: Step, x: Tensor, result: Tensor, layer: Linear, adapter: Adapter) -> Tensor:
    g, mode, item = s.g, s.mode, result.item
    assert adapter.rest is not None
    converts = _converts(s, layer)
    if converts:
        x = ops.cast(g, x, 4 if mode.quantization == "int8" else mode.adapter)
    dropped = ops.dropout(g, x, on_host=mode.on_host) if mode.dropout else x
    factor = ops.mul(g, adapter.a, adapter.rest)
    update = plain(s, plain(s, dropped, factor, adapter.share * layer.times), adapter.b, layer.width)
    del dropped, factor
    if layer.quantized and converts:
        update = ops.cast(g, update, item)
    scaled = ops.same(g, update)
    if not layer.quantized:
        del update  # one expression there, without a name for it
    # peft makes the count in float32 and moves it to the dtype of the base weight, unless that holds packed integers.
    update = _divided(g, scaled, 4 if layer.quantized else mode.base)
    del scaled
    if layer.quantized and mode.quantization == "int8":
        return ops.add(g, result, update)
    return ops.add_(g, result, update)


def _divided(g: Graph, x: Tensor, item: int) -> Tensor:
    """Returns x over the count of ranks, a vector of one entry of ``item`` bytes, which widens what is narrower."""
    wide = (x.unit, x.width, max(x.item, item))
    return g.apply((x,), wide, lambda _: (g.tensor(wide),), metas=(x.meta,))


def _dora(s: Step, x: Tensor, result: Tensor, layer: Linear, adapter: Adapter) -> Tensor:
    """Returns ``m (base + update)`` with ``m`` the magnitude over the norm, which takes matrices of width r only."""
    g, mode = s.g, s.mode
    assert adapter.rest is not None
    g.tensor((RANK, layer.outputs * adapter.share, 4))
    change = g.apply((adapter.rest,), (ONE, layer.outputs, 4), _vector_gradient(s, adapter.rest))
    if mode.dropout:
        return ops.add(g, result, _beside_the_base(s, ops.dropout(g, x, on_host=mode.on_host), change, layer, adapter))
    unbiased = ops.copy(g, result) if layer.bias is not None else result
    changed = _scaled_rows(g, ops.add_scaled(g, unbiased, low_rank(s, x, layer, adapter)), change)
    return ops.copy(g, changed) if layer.bias is not None else changed


def _scaled_rows(g: Graph, values: Tensor, change: Tensor) -> Tensor:
    """The backward multiplies gradient and values before it sums them."""

    def backward(_: list[Tensor]) -> tuple[Tensor, Tensor]:
        product = g.tensor(values_meta)
        of_change = g.tensor(change_meta)
        del product
        return g.tensor(values_meta), of_change

    values_meta, change_meta = values.meta, change.meta
    return g.apply((values, change), values_meta, backward, saves=(values, change))


def _beside_the_base(s: Step, x: Tensor, change: Tensor, layer: Linear, adapter: Adapter) -> Tensor:
    """Returns ``(m - 1) base + m update`` with a second product of the base weight with what was not dropped."""
    g = s.g
    if layer.quantized and s.mode.quantization == "nf4":
        weight, base = None, _nf4_product(s, x, layer)
    else:
        weight = _weight_matrix(s, x.item, layer)
        base = plain(s, x, weight or layer.weight, layer.width)
    update = low_rank(s, x, layer, adapter)
    answer = ops.add(g, ops.mul(g, change, base), ops.same(g, ops.mul(g, ops.copy(g, change), update)))
    del weight
    return answer


def _dense_dora(s: Step, x: Tensor, result: Tensor, layer: Linear, adapter: Adapter) -> Tensor:
    """Returns ``base + (m - 1) base + m update`` with ``m`` the magnitude over the norm of the sum, as peft does.

    The norm needs base weight, update, scaled update and their sum as matrices ``(out, in)``; the update is the
    adapter applied to an identity matrix ``(in, in)``.
    """
    g, mode = s.g, s.mode
    assert adapter.rest is not None
    update = _update_matrix(s, x.item, layer, adapter)
    weight = _weight_matrix(s, x.item, layer)
    held = [g.tensor((ONE, layer.inputs * layer.outputs, x.item)) for _ in range(2)]
    held.clear()
    magnitude = g.apply(
        (adapter.rest,), (ONE, layer.outputs, max(mode.adapter, x.item)), _vector_gradient(s, adapter.rest)
    )
    if mode.dropout:
        x = ops.dropout(g, x, on_host=mode.on_host)
    change = low_rank(s, x, layer, adapter)
    if mode.dropout:
        base = plain(s, x, weight or layer.weight, layer.width)
    else:
        base = ops.copy(g, result) if layer.bias is not None else result
    answer = ops.add(g, ops.mul(g, ops.copy(g, magnitude), base), ops.same(g, ops.mul(g, magnitude, change)))
    del update, weight
    return ops.add(g, result, answer)


def _vector_gradient(s: Step, vector: Tensor):  # type: ignore[no-untyped-def]
    return lambda _: (s.g.tensor(vector.meta),)


def _update_matrix(s: Step, item: int, layer: Linear, adapter: Adapter) -> Tensor:
    g = s.g
    identity = g.tensor((ONE, layer.inputs * layer.inputs, adapter.a.item))
    inner = plain(s, identity, adapter.a, layer.inputs * adapter.share)
    del identity
    return ops.cast(g, plain(s, inner, adapter.b, layer.inputs * layer.outputs), item)


def _weight_matrix(s: Step, item: int, layer: Linear) -> Tensor | None:
    """Returns the base weight as a matrix of the wanted dtype; None where it is there already."""
    g, count = s.g, layer.inputs * layer.outputs
    if not layer.quantized:
        return None if s.mode.base == item else g.tensor((ONE, count, item))
    stored = 4 if s.mode.quantization == "int8" else s.mode.base
    rebuilt = g.tensor((ONE, count, stored))
    return rebuilt if stored == item else g.tensor((ONE, count, item))
