"""What each objective weighs quality against."""

from __future__ import annotations

from autopeft.recommend.scoring import CostWeights
from autopeft.specs import Objective

WEIGHTS: dict[Objective, CostWeights] = {
    "balanced": CostWeights(),
    "quality": CostWeights(doubled_time=0.0, memory_share=0.0),
    "memory": CostWeights(doubled_time=0.1, halved_time=0.1, memory_share=0.0, doubled_memory=4.0),
    "speed": CostWeights(doubled_time=4.0, halved_time=4.0, memory_share=0.0),
    "cost": CostWeights(doubled_time=2.0, halved_time=2.0, memory_share=0.0),
}
"""Judgements, in points of task quality. Tuned methods lie within about one point of each other (arXiv 2602.04998): a
weight of 4 lets time or memory decide, and quality only between equals; 2 lies between. One device costs the same in
every hour, so that cost is time at another weight."""

MEANINGS: dict[Objective, str] = {
    "balanced": "quality, against twice the time for one point",
    "quality": "predicted quality alone; time decides between equals",
    "memory": "the least memory, in the leanest form of each candidate",
    "speed": "the shortest training; quality decides between equals",
    "cost": "the cheapest hours, with twice the weight on time that balanced has",
}


def explores_leaner(objective: Objective) -> bool:
    """Returns whether lower ranks and fewer layers are tried even where the recommended ones fit well."""
    return objective in ("memory", "speed", "cost")
