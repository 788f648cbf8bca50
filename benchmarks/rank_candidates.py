"""Prints how long 100,000 candidates take to be priced, scored and ordered: ``python benchmarks/rank_candidates.py``.

The candidates are drawn from the whole search spaces of all methods, with batches of all kinds, for Llama-3-8B and
10,000 rows on an A100; drawing them is not counted, recording the step of each structure is. The time is processor
time, which a busy machine lengthens too. Exits with 1 if it exceeds the goal.
"""

from __future__ import annotations

import random
import sys
import time

from memory_closed_form import LLAMA_3_8B, drawn

from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import spec_from_config
from autopeft.recommend import CandidateFactory
from autopeft.recommend.sweep import sweep
from autopeft.specs import DatasetProfile, PlanInputs

COUNT = 100_000
GOAL_SECONDS = 3.0

ROWS = DatasetProfile(
    source="rows.jsonl",
    files=("rows.jsonl",),
    content_hash="0" * 64,
    format="messages",
    columns={},
    task="chat",
    example_count=10_000,
    total_characters=12_000_000,
    token_counts_source="tokenizer.json",
    sampled_examples=10_000,
    mean_tokens=300.0,
    max_tokens=1024,
    token_quantiles={"0.5": 280},
    total_tokens=3_000_000,
    supervised_ratio=0.5,
)
"""Of 300 tokens each, half of them supervised."""


def main() -> int:
    """Prices, scores and orders; returns the exit code."""
    model = spec_from_config(LLAMA_3_8B, id="llama-3-8b")
    hardware = load_hardware("a100-80gb")
    factory = CandidateFactory(model, ROWS, hardware, PlanInputs(model="llama-3-8b", data="rows.jsonl"))
    draw = random.Random(0)
    candidates = [drawn(draw, model) for _ in range(COUNT)]
    start = time.process_time()
    found = sweep(factory, candidates)
    seconds = time.process_time() - start
    best = found.candidates[found.order[0]]
    print(
        f"{COUNT} candidates priced, scored and ordered in {seconds:.2f} s of processor time; {len(found.order)} fit, "
        f"{len(found.front())} lie on the front, first is {best.method} r {best.r}, {best.quantization}"
    )
    print(f"goal: under {GOAL_SECONDS} s: {'reached' if seconds < GOAL_SECONDS else 'MISSED'}")
    return 0 if seconds < GOAL_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
