"""How long one trace takes after imports: a 70 B model on nf4, and others; best and median of several, CPU seconds.

CPU seconds grow with what else runs on a machine, up to several times: the yardstick beside them grows alike.

python benchmarks/trace_latency.py
"""

from __future__ import annotations

import statistics
import time

from autopeft.memory.overhead import workspace_bytes
from autopeft.memory.quiet import quiet_libraries
from autopeft.memory.tracing.request import TraceRequest
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.specs import Candidate, ModelSpec

ROUNDS = 5
LLAMA_2_70B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
CASES = {
    "70 B, nf4 LoRA on attention, checkpointing": ("attention", "nf4", True),
    "70 B, nf4 LoRA on all linear layers, checkpointing": ("all-linear", "nf4", True),
    "70 B, 16-bit LoRA on attention": ("attention", "none", False),
}


def request_of(model: ModelSpec, targets: str, quantization: str, checkpointing: bool) -> TraceRequest:
    """Returns one case's request."""
    candidate = Candidate(
        method="lora",
        r=16,
        lora_alpha=16.0,
        target_modules=resolve_target_modules(model, (targets,)),
        quantization="nf4" if quantization == "nf4" else "none",
        double_quantization=quantization == "nf4",
        activation_checkpointing=checkpointing,
        per_device_batch_size=4,
        trainer="transformers",
    )
    return TraceRequest(
        candidate=candidate,
        model_type=model.model_type,
        config=model.config,
        encoder=False,
        kind="cuda",
        sequence_length=4096,
        workspace_bytes=workspace_bytes(None),
    )


def yardstick_seconds() -> float:
    """Returns the CPU time of a fixed piece of Python."""
    begin = time.process_time()
    kept: dict[int, tuple[int, int]] = {}
    total = 0
    for number in range(300_000):
        kept[number & 1023] = (number, total)
        total += len(kept)
    return time.process_time() - begin


def main() -> None:
    """Prints one line a case."""
    model = spec_from_config(LLAMA_2_70B, id="llama-2-70b")
    with quiet_libraries():
        from autopeft.memory.tracing.core import trace

        for name, (targets, quantization, checkpointing) in CASES.items():
            request = request_of(model, targets, quantization, checkpointing)
            trace(request)  # what libraries import on first use is not a trace's time
            seconds, yardsticks = [], []
            for _ in range(ROUNDS):
                yardsticks.append(yardstick_seconds())
                begin = time.process_time()
                answer = trace(request)
                seconds.append(time.process_time() - begin)
            peak = max(sum(part.values()) for part in answer.parts.values()) / 2**30
            print(
                f"{name}: best {min(seconds):.2f} s, median {statistics.median(seconds):.2f} s (peak {peak:.2f} GiB); "
                f"yardstick {min(yardsticks):.3f} s"
            )


if __name__ == "__main__":
    main()
