"""One number to order candidates by: expected quality minus what time and memory cost, in points of task quality."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopeft.specs import Candidate, Quantization

Floats = npt.NDArray[np.float64]

QUANTIZATION_POINTS: dict[Quantization, float] = {"none": 0.0, "int8": -0.1, "nf4": -0.6}
"""nf4 as fitted (profiles/priors.yaml): LoRA on it against LoRA on 16 bits, 83 comparisons of five sources, which
disagree: nothing for LLaMA (arXiv 2305.14314) and the models of LLaMA-Factory (arXiv 2403.13372), a point for DeBERTa
(arXiv 2310.08659), three on GSM8K (LoftQ's README). int8 is a judgement."""

HALVED_RANK_POINTS = 0.2
"""For each halving below the advised rank, as fitted (profiles/priors.yaml); the loss rises by 0.14 % on the median."""

ATTENTION_ONLY_POINTS = 0.7
"""Adapters on attention alone against all linear layers at equal rank, as fitted (profiles/priors.yaml): six
comparisons of two sources, shrunk; "LoRA Without Regret" finds the same direction."""

HALVED_LENGTH_POINTS = 2.0
"""Rows are cut where nothing fits otherwise. What is cut is not learnt: a judgement, more than the lowest rank on
attention alone costs, so that shorter rows are the last resort."""

POINTS_PER_DOUBLED_TIME = 1.0
"""Tuned methods differ by about one point (arXiv 2602.04998, 2601.22708): a method that takes twice the time must be
better by that much."""

MEMORY_POINTS = 0.2
"""For a candidate whose smallest form takes all that is available."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreParts:
    """What a score is made of.

    Attributes:
        quality_points: the method's own, from its search space.
        situation_points: what its search space adds where something holds here.
        halved_ranks: how often the rank was halved below the advised one, or the capacity below what the data carry.
        narrow_targets: whether fewer layers are adapted than advised.
        halved_lengths: how often the rows are cut to half of the advised length.
        relative_time: of one step, as a multiple of plain LoRA's with the whole batch in one forward.
        memory_share: required bytes of the smallest form (batch 1, checkpointing) as a share of the available ones.
        relative_memory: required bytes as a multiple of the base's weights in 16 bits.
    """

    quality_points: float
    quantization: Quantization
    halved_ranks: float
    narrow_targets: bool
    relative_time: float
    memory_share: float
    situation_points: float = 0.0
    halved_lengths: float = 0.0
    relative_memory: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostWeights:
    """What quality is weighed against, in points.

    Attributes:
        doubled_time: that a training of twice plain LoRA's time must be better by.
        halved_time: that a training of half of plain LoRA's time wins. Zero unless speed was asked for: a small model's
            predicted time is off by 30 % and more, and what beats plain LoRA by launching fewer kernels teaches no
            more for it.
        memory_share: that a candidate whose smallest form takes all that is available must be better by.
        doubled_memory: that a candidate of twice the required bytes must be better by.
    """

    doubled_time: float = POINTS_PER_DOUBLED_TIME
    halved_time: float = 0.0
    memory_share: float = MEMORY_POINTS
    doubled_memory: float = 0.0


def score_terms(parts: ScoreParts, weights: CostWeights) -> dict[str, float]:
    """Returns the points of a candidate by what they are for; their sum is its score.

    method + situation + quantization - 0.2 * halvings - 0.7 * narrow - 2.0 * halved lengths
        - time cost - memory_share * share - doubled_memory * log2(relative memory)

    with ``time_cost`` of the relative time.

    Of one form every term can only grow with the memory that is available. The quality terms are fitted, time
    and memory are judgements; a left-out source is missed by 0.9 points (docs/advice.md), so the search decides.
    """
    memory = weights.memory_share * parts.memory_share + weights.doubled_memory * math.log2(parts.relative_memory)
    return {
        "method": parts.quality_points,
        "situation": parts.situation_points,
        "quantization": QUANTIZATION_POINTS[parts.quantization],
        "rank": 0.0 - HALVED_RANK_POINTS * parts.halved_ranks,
        "targets": 0.0 - ATTENTION_ONLY_POINTS * parts.narrow_targets,
        "length": 0.0 - HALVED_LENGTH_POINTS * parts.halved_lengths,
        "time": 0.0 - float(time_cost(weights, parts.relative_time)),
        "memory": 0.0 - memory,
    }


def time_cost(weights: CostWeights, relative_time: float | Floats) -> Floats:
    """Returns what times cost in points, as multiples of plain LoRA's; negative where one wins points.

    doubled_time * log2(relative time) above 1, halved_time * log2(relative time) below
    """
    doublings = np.log2(relative_time)
    return weights.doubled_time * np.maximum(doublings, 0.0) + weights.halved_time * np.minimum(doublings, 0.0)


def score(parts: ScoreParts, weights: CostWeights | None = None) -> float:
    """Returns the score; higher is better, comparable within one plan only. See ``score_terms``."""
    return round(sum(score_terms(parts, weights or CostWeights()).values()), 4)


def halvings(candidate: Candidate, advised_rank: int | None) -> float:
    """Returns how often the candidate's rank is halved below the advised one; 0 at or above it and without a rank."""
    if candidate.r is None or advised_rank is None:
        return 0.0
    return max(0.0, math.log2(advised_rank / candidate.r))
