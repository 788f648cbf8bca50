"""Prints how many candidates a second the closed form prices: ``python benchmarks/memory_closed_form.py``."""

from __future__ import annotations

import itertools
import time

from autopeft.memory.closed_form import estimate_memory
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Candidate

LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


def main() -> None:
    """Prices 7,200 different candidates and prints the time of one."""
    model = spec_from_config(LLAMA_3_8B, id="llama-3-8b")
    targets = resolve_target_modules(model, ("all-linear",))
    grid = itertools.product(
        ("lora", "rslora", "dora", "adalora"), (4, 8, 16, 32, 64), ("none", "nf4"), (1, 2, 4, 8, 16, 32), (False, True)
    )
    candidates = [
        Candidate(
            method=method,
            r=r,
            lora_alpha=float(r),
            target_modules=targets,
            quantization="nf4" if quantization == "nf4" else "none",
            per_device_batch_size=rows,
            activation_checkpointing=checkpointing,
        )
        for method, r, quantization, rows, checkpointing in grid
    ] * 15
    start = time.perf_counter()
    for candidate in candidates:
        estimate_memory(candidate, model, None, sequence_length=1024)
    each = (time.perf_counter() - start) / len(candidates)
    print(f"{len(candidates)} candidates, {each * 1e6:.0f} microseconds each, {1 / each:.0f} a second")


if __name__ == "__main__":
    main()
