"""What a block is made of: its widths, its linear layers, and how its family is written."""

from __future__ import annotations

from dataclasses import dataclass, field

from autopeft.memory.ledger.attention import Heads
from autopeft.memory.ledger.autograd import Tensor
from autopeft.memory.ledger.linear import Linear, Step
from autopeft.memory.ledger.tape import ONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the blocks of one model type are written in transformers 5.23.

    Attributes:
        kind: which code its blocks are: "llama", "gpt", "bert", "deberta".
        spelled_gelu: GELU is spelt out in elementary functions.
        pooled: the dense layer before the classifier belongs to the base.
        head_trained_whole: peft trains the whole classification head, not its last layer alone.
        norms: norms over the hidden width in one block.
        head_norms: queries and keys are normalized per head; ``norm_first``: before the next projection runs.
        fused: query, key and value come from one matrix, gate and up from another.
        float_weight: the norm multiplies in float32 before it casts down.
        soft_capped: attention scores go through tanh.
        experts: the MLP is a set of experts.
        scaled_embedding: the embedding is multiplied by a constant.
    """

    kind: str = "llama"
    spelled_gelu: bool = False
    pooled: bool = False
    head_trained_whole: bool = False
    norms: int = 2
    head_norms: bool = False
    norm_first: bool = False
    fused: bool = False
    float_weight: bool = False
    soft_capped: bool = False
    experts: bool = False
    scaled_embedding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Relative positions of a model.

    Attributes:
        count: embedded positions, in both directions together; 0 without relative attention.
        layers: of each direction ("c2p", "p2c") that is taken, the projection that the positions go through.
        normed: whether the embeddings are normalized before they are used.
    """

    count: int = 0
    layers: tuple[tuple[str, str], ...] = ()
    normed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of a model.

    Attributes:
        layers: linear layers by their path below the block.
        dropout: whether the residual branches are dropped out.
        window: whether its attention is masked to a window of the row.
        positions: relative ones (DeBERTa).
        expert_count: experts of a block; ``chosen`` of them see each token.
    """

    family: Family
    hidden: int
    intermediate: int
    heads: Heads
    layers: dict[str, Linear]
    dropout: bool = False
    expert_count: int = 0
    chosen: int = 0
    window: bool = False
    positions: Positions = field(default_factory=Positions)
    vectors: dict[str, Tensor] = field(default_factory=dict)

    def vector(self, s: Step, name: str, width: float) -> Tensor:
        """Returns a parameter that belongs to no linear layer, the same one whenever the block is computed."""
        if name not in self.vectors:
            self.vectors[name] = s.parameter(ONE, width, s.mode.rest, trained=s.mode.trained)
        return self.vectors[name]
