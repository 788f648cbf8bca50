"""Forward and backward of one adapted layer: LoRA, peft's DoRA, and ours with the norm from the factors.

``python benchmarks/dora_layer.py`` prints a table of ratios to LoRA. The three take turns, so that what else the
machine does hits all alike; times are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from autopeft.engine.factored_dora import use_factored_norms

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Case = tuple[int, int, int, str]
CASES: tuple[Case, ...] = (
    (1024, 8, 1024, "float32"),
    (1024, 16, 1024, "float32"),
    (1024, 64, 1024, "float32"),
    (2048, 16, 2048, "float32"),
    (2048, 64, 2048, "float32"),
    (2048, 16, 2048, "bfloat16"),
    (2048, 64, 2048, "bfloat16"),
    (2048, 64, 256, "float32"),
)
"""Width, rank, tokens, dtype; the last is short on purpose: the norm's price does not depend on the tokens."""


def layer(width: int, rank: int, dtype: torch.dtype, *, dora: bool) -> Any:
    """Returns a square linear layer with an adapter whose B is not zero, in training mode."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(width, width, bias=False).to(dtype))
    config = LoraConfig(target_modules=["0"], r=rank, lora_alpha=rank, use_dora=dora)
    model: Any = get_peft_model(base, config, autocast_adapter_dtype=False).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    with torch.no_grad():
        model.base_model.model[0].lora_B["default"].weight.normal_(std=0.02)
    return model


def contenders(width: int, rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the three layers by name."""
    theirs = layer(width, rank, dtype, dora=True)
    ours = copy.deepcopy(theirs)
    use_factored_norms(ours)
    return {"lora": layer(width, rank, dtype, dora=False), "peft": theirs, "ours": ours}


def cpu_seconds(model: Any, x: torch.Tensor) -> float:
    """Returns the CPU seconds of one forward and backward."""
    x = x.detach().requires_grad_()
    begin = time.process_time()
    model(x).backward(x.detach())
    return time.process_time() - begin


def ratios(case: Case, repetitions: int) -> dict[str, float]:
    """Returns the median seconds of each contender as a multiple of LoRA's."""
    width, rank, tokens, name = case
    models = contenders(width, rank, DTYPES[name])
    x = torch.randn(tokens, width).to(DTYPES[name])
    seconds: dict[str, list[float]] = {key: [] for key in models}
    for repetition in range(repetitions + 1):
        for key, model in models.items():
            spent = cpu_seconds(model, x)
            if repetition:  # the first one warms up
                seconds[key].append(spent)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return {key: value / medians["lora"] for key, value in medians.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, median of {repetitions} turns\n")
    print("| width | r | tokens | dtype | peft's DoRA / LoRA | ours / LoRA |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        found = ratios(case, repetitions)
        cells = [*map(str, case), *(f"{found[key]:.2f}" for key in ("peft", "ours"))]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
