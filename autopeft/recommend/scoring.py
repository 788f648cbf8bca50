"""One number to order candidates by: expected quality minus what time and memory cost, in points of task quality."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autopeft.specs import Candidate, Quantization

QUANTIZATION_POINTS: dict[Quantization, float] = {"none": 0.0, "int8": -0.1, "nf4": -0.2}
"""nf4 with double quantization scored 53.1 against 53.0 for a 16-bit base (mean MMLU of eight trainings, arXiv
2305.14314 table 4), a GLUE or code task can lose some tenths; int8 in between is a judgement."""

HALVED_RANK_POINTS = 0.35
"""For each halving below the advised rank: a judgement. Between ranks 4 and 64 the loss falls by about 1 % (Tinker
sweep, models of 8 B)."""

ATTENTION_ONLY_POINTS = 1.0
"""Adapters on attention alone stay behind those on the MLP at equal parameters ("LoRA Without Regret"; Hugging Face's
PEFT comparison: rank 10 on the MLP 49.4 %, rank 32 on q and v 47.8 %)."""

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
        doubled_time: that a training of twice the time must be better by.
        memory_share: that a candidate whose smallest form takes all that is available must be better by.
        doubled_memory: that a candidate of twice the required bytes must be better by.
    """

    doubled_time: float = POINTS_PER_DOUBLED_TIME
    memory_share: float = MEMORY_POINTS
    doubled_memory: float = 0.0


def score_terms(parts: ScoreParts, weights: CostWeights) -> dict[str, float]:
    """Returns the points of a candidate by what they are for; their sum is its score.

    method + situation + quantization - 0.35 * halvings - 1.0 * narrow - 2.0 * halved lengths
        - doubled_time * log2(relative time) - memory_share * share - doubled_memory * log2(relative memory)

    Of one form every term can only grow with the memory that is available. A judgement, not a fit: no term is known to
    better than half a point, so the search decides.
    """
    memory = weights.memory_share * parts.memory_share + weights.doubled_memory * math.log2(parts.relative_memory)
    return {
        "method": parts.quality_points,
        "situation": parts.situation_points,
        "quantization": QUANTIZATION_POINTS[parts.quantization],
        "rank": 0.0 - HALVED_RANK_POINTS * parts.halved_ranks,
        "targets": 0.0 - ATTENTION_ONLY_POINTS * parts.narrow_targets,
        "length": 0.0 - HALVED_LENGTH_POINTS * parts.halved_lengths,
        "time": 0.0 - weights.doubled_time * math.log2(parts.relative_time),
        "memory": 0.0 - memory,
    }


def score(parts: ScoreParts, weights: CostWeights | None = None) -> float:
    """Returns the score; higher is better, comparable within one plan only. See ``score_terms``."""
    return round(sum(score_terms(parts, weights or CostWeights()).values()), 4)


def halvings(candidate: Candidate, advised_rank: int | None) -> float:
    """Returns how often the candidate's rank is halved below the advised one; 0 at or above it and without a rank."""
    if candidate.r is None or advised_rank is None:
        return 0.0
    return max(0.0, math.log2(advised_rank / candidate.r))
