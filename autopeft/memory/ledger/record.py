"""Runs one training step of a model on paper: its tape holds every tensor that comes and goes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

from autopeft.memory.ledger import heads as head
from autopeft.memory.ledger import ops
from autopeft.memory.ledger.attention import Heads
from autopeft.memory.ledger.autograd import Graph, Tensor
from autopeft.memory.ledger.blocks import Block, Family, Positions
from autopeft.memory.ledger.deberta import deberta_block
from autopeft.memory.ledger.embedding import embed
from autopeft.memory.ledger.encoder import bert_block, classify
from autopeft.memory.ledger.gpt import gpt_block, torch_norm
from autopeft.memory.ledger.linear import Adapter, Linear, Mode, Step
from autopeft.memory.ledger.llama import llama_block
from autopeft.memory.ledger.tape import (
    GRADIENTS,
    ONE,
    RANK,
    SCORES,
    SQUARE,
    TEMPORARIES,
    Repeat,
    Tape,
)
from autopeft.specs import LinearLayer, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """The adapter of one kind of linear layer.

    Attributes:
        share: its rank as a multiple of the candidate's.
        rest: trained entries beside the two factors (DoRA's magnitudes).
        extra: bytes that its forward keeps beside LoRA's.
        blocks: indices of the blocks whose layer is adapted.
    """

    share: float
    rest: int
    rest_unit: int
    extra: int
    blocks: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is recorded.

    Attributes:
        adapted: by the path of the linear layer.
    """

    model: ModelSpec
    family: Family
    heads: Heads
    mode: Mode
    adapted: dict[str, Adapted]
    dropout: bool = False
    embedding_dropout: bool = False
    labels: int = 2
    expert_count: int = 0
    chosen: int = 0
    sliding: frozenset[int] = frozenset()
    mask_kinds: int = 1
    positions: Positions = field(default_factory=Positions)


_BLOCKS = {"llama": llama_block, "gpt": gpt_block, "bert": bert_block, "deberta": deberta_block}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A step's tape and where its backward begins."""

    tape: Tape
    backward_start: int


def record_step(plan: Plan) -> Recorded:
    """Returns the tape of one forward and backward.

    Python's search for reference cycles is off meanwhile: the graph has none, and the search doubles the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _Run(plan).run()
    finally:
        if collecting:
            gc.enable()


class _Run:
    """One recording.

    Blocks that are alike are recorded once. Over a frozen base the first one differs: nothing below it needs a
    gradient, and its input may be narrower than what adapters make of it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tape = Tape()
        self.step = Step(Graph(self.tape), plan.mode)
        self.step.g.when_recomputed = self.step.forget_casts
        self.marks: dict[str, int] = {}
        self.penalized: list[list[Tensor]] = []
        layers = plan.model.layers
        uniform = all(len(each.blocks) == layers for each in plan.adapted.values())
        uniform = uniform and (not plan.mode.windowed or len(plan.sliding) == layers)
        alike = [layers - 1] if plan.mode.trained else [0, layers - 1]
        self.indices = alike if uniform and layers > len(alike) else list(range(layers))
        self.left_out = layers - len(self.indices)
        self.casts_before_last = 0
        self.masks = self._masks()

    def run(self) -> Recorded:
        s = self.step
        embedding, weight = self._embedding_weights()
        x = self._head(self._all_blocks(self._embed(embedding)), weight)
        self._leave_autocast()
        for position, parameters in enumerate(self.penalized):
            x = self._penalty(x, parameters, repeated=position == len(self.penalized) - 1)
        start = len(self.tape.events)
        self.tape.part = TEMPORARIES
        s.g.backward(x)
        end = len(self.tape.events)
        if self.left_out:
            self.tape.repeats.append(
                Repeat(self.marks["input"], self.marks["output"], self.marks["input"], self.left_out)
            )
        del x, embedding, weight
        del self.tape.events[end:]
        return Recorded(self.tape, start)

    def _all_blocks(self, x: Tensor) -> Tensor:
        """Returns what the blocks make of the embedded tokens; the last one stands for those that are left out."""
        # DeBERTa's encoder collects the states before and after each block.
        collects = self.plan.family.kind == "deberta"
        states = [Tensor(x.meta, x.storage)] if collects else []
        for index in self.indices:
            is_last = index == self.plan.model.layers - 1
            before = len(self.tape.events)
            self.casts_before_last = len(self.step.casts)
            if is_last and x.node is not None:
                x = ops.mark(self.step.g, x, self._marker("input"))
            x = self._block(x, index)
            if is_last:
                x = ops.mark(self.step.g, x, self._marker("output"))
            if collects:
                states.append(Tensor(x.meta, x.storage))
            if is_last:
                self._repeat_since(before)
        if not self.plan.mode.checkpointing:
            self.masks = ()  # otherwise each block may be computed again, and holds them
        before = len(self.tape.events)
        del states[:1]
        self._repeat_since(before)
        del states
        return x

    def _leave_autocast(self) -> None:
        """Autocast forgets its copies; those of the last block as often as it stands for others."""
        casts, before = self.step.casts, len(self.tape.events)
        for key in list(casts)[self.casts_before_last :]:
            del casts[key]
        self._repeat_since(before)
        self.step.forget_casts()

    def _repeat_since(self, start: int) -> None:
        """What happened since then happens as often as there are blocks left out."""
        now = len(self.tape.events)
        if self.left_out and now > start:
            self.tape.repeats.append(Repeat(now, start, now, self.left_out))

    def _marker(self, name: str) -> Callable[[], object]:
        return lambda: self.marks.setdefault(name, len(self.tape.events))

    def _masks(self) -> tuple[Tensor, ...]:
        """Returns the masks of all blocks: numbers for each row for eager attention, bits for a kernel."""
        plan, g = self.plan, self.step.g
        if plan.family.kind == "deberta":
            return g.tensor((SCORES, 1, 4)), g.tensor((SQUARE, 1, 8))
        if plan.mode.eager and plan.heads.masked:
            return tuple(g.tensor((SCORES, 1, plan.mode.rest)) for _ in range(plan.mask_kinds))
        return (g.tensor((SQUARE, 1, 1)),) if plan.mode.windowed else ()

    def _embedding_weights(self) -> tuple[Tensor, Tensor]:
        """Returns the weights of embedding and head, which are one where they are tied."""
        model, mode = self.plan.model, self.plan.mode
        entries = model.vocab_size * model.hidden_size
        embedding = self.step.parameter(ONE, entries, mode.rest, trained=mode.trained)
        if not model.tie_word_embeddings:
            head = self.step.parameter(ONE, entries, mode.rest, trained=mode.trained)
            return embedding, head if model.kind == "causal_lm" else embedding
        embedding = self.step.shared(embedding)
        return embedding, embedding

    def _embed(self, weight: Tensor) -> Tensor:
        return embed(self.step, weight, self.plan.model, self.plan.family, dropped=self.plan.embedding_dropout)

    def _block(self, x: Tensor, index: int) -> Tensor:
        s = self.step
        self.penalized.append([])
        block, compute = self._make(index), _BLOCKS[self.plan.family.kind]

        def run(x: Tensor) -> Tensor:
            return compute(s, x, block)

        return s.g.checkpoint(run, x) if self.plan.mode.checkpointing else run(x)

    def _head(self, x: Tensor, weight: Tensor) -> Tensor:
        s, plan = self.step, self.plan
        model, mode, family = plan.model, plan.mode, plan.family
        if model.kind == "encoder":
            return classify(s, x, plan.labels, whole=family.head_trained_whole)
        if family.kind == "gpt":
            outside = Block(family=family, hidden=model.hidden_size, intermediate=0, heads=plan.heads, layers={})
            x = torch_norm(s, x, outside, "ln_f")
            return self._loss(x, weight)
        factor = s.parameter(ONE, model.hidden_size, mode.rest, trained=mode.trained)
        return self._loss(ops.rms_norm(s.g, x, factor, float_weight=family.float_weight), weight)

    def _loss(self, x: Tensor, weight: Tensor) -> Tensor:
        s, plan, model, mode = self.step, self.plan, self.plan.model, self.plan.mode
        if mode.fused_head:
            return head.fused_loss(s, x, weight, model.vocab_size)
        return head.full_logits_loss(s, x, weight, model.vocab_size, soft_capped=plan.family.soft_capped)

    def _penalty(self, loss: Tensor, parameters: list[Tensor], *, repeated: bool) -> Tensor:
        """Adds a block's share of a method's own loss, whose backward comes first and makes every gradient at once."""
        if not parameters:
            return loss
        g, tape = self.step.g, self.tape
        metas = [each.meta for each in parameters]

        def backward(grads: list[Tensor]) -> tuple[Tensor | None, ...]:
            start = len(tape.events)
            found = [g.tensor(meta, GRADIENTS) for meta in metas]
            if repeated and self.left_out:
                tape.repeats.append(Repeat(len(tape.events), start, len(tape.events), self.left_out))
            return grads[0], *found

        return g.apply((loss, *parameters), loss.meta, backward)

    def _make(self, index: int) -> Block:
        model = self.plan.model
        layers = {
            _below_block(layer.path): self._linear(layer, index)
            for layer in model.linear_layers
            if "{layer}" in layer.path
        }
        plan = self.plan
        return Block(
            family=plan.family,
            hidden=model.hidden_size,
            intermediate=model.intermediate_size,
            heads=plan.heads,
            layers=layers,
            dropout=plan.dropout,
            expert_count=plan.expert_count,
            chosen=plan.chosen,
            window=plan.mode.windowed and index in plan.sliding,
            positions=plan.positions,
        )

    def _linear(self, layer: LinearLayer, index: int) -> Linear:
        mode, s = self.plan.mode, self.step
        adapted = self.plan.adapted.get(layer.path)
        inputs, outputs = layer.in_features, layer.out_features
        return Linear(
            inputs=inputs,
            outputs=outputs,
            weight=s.parameter(ONE, inputs * outputs, mode.base, trained=mode.trained),
            bias=s.parameter(ONE, outputs, mode.rest, trained=mode.trained) if layer.has_bias else None,
            quantized=mode.quantization != "none" and layer.quantizable,
            adapter=self._adapter(adapted, inputs, outputs) if adapted and index in adapted.blocks else None,
        )

    def _adapter(self, adapted: Adapted, inputs: int, outputs: int) -> Adapter:
        s, item = self.step, self.plan.mode.adapter
        a = s.parameter(RANK, inputs * adapted.share, item, trained=True)
        b = s.parameter(RANK, outputs * adapted.share, item, trained=True)
        rest = s.parameter(adapted.rest_unit, adapted.rest, item, trained=True) if adapted.rest else None
        if self.plan.mode.penalized:
            a, b = s.shared(a), s.shared(b)
            self.penalized[-1] += [a, b]
        return Adapter(a=a, b=b, share=adapted.share, rest=rest, extra=adapted.extra)


def _below_block(path: str) -> str:
    return path.partition("{layer}.")[2]
