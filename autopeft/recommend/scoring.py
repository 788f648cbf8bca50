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
        halved_ranks: how often the rank was halved below the advised one.
        narrow_targets: whether fewer layers are adapted than advised.
        relative_time: of one step, as a multiple of plain LoRA's with the whole batch in one forward.
        memory_share: required bytes of the smallest form (batch 1, checkpointing) as a share of the available ones.
    """

    quality_points: float
    quantization: Quantization
    halved_ranks: float
    narrow_targets: bool
    relative_time: float
    memory_share: float


def score(parts: ScoreParts) -> float:
    """Returns the score; higher is better, comparable within one plan only.

    score = quality + quantization - 0.35 * halvings - 1.0 * narrow - 1.0 * log2(relative time) - 0.2 * memory share

    Every term can only grow with the memory that is available: more memory means fewer forwards, less recomputation
    and a smaller share. A judgement, not a fit: no term is known to better than half a point, so the search decides.
    """
    quality = parts.quality_points + QUANTIZATION_POINTS[parts.quantization]
    squeezed = HALVED_RANK_POINTS * parts.halved_ranks + ATTENTION_ONLY_POINTS * parts.narrow_targets
    time = POINTS_PER_DOUBLED_TIME * math.log2(parts.relative_time)
    return round(quality - squeezed - time - MEMORY_POINTS * parts.memory_share, 4)


def halvings(candidate: Candidate, advised_rank: int | None) -> float:
    """Returns how often the candidate's rank is halved below the advised one; 0 at or above it and without a rank."""
    if candidate.r is None or advised_rank is None:
        return 0.0
    return max(0.0, math.log2(advised_rank / candidate.r))
