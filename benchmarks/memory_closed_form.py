"""Prints how long the closed form takes for a candidate: ``python benchmarks/memory_closed_form.py``.

The candidates are drawn from the whole search spaces of the methods that it knows, with batches and lengths of all
kinds; the time includes recording the step of each structure that occurs, which a process does once.
"""

from __future__ import annotations

import functools
import random
import time

from autopeft.memory.closed_form import estimate_many, estimate_memory, unknown_step
from autopeft.methods import get_method
from autopeft.profiling.model import resolve_target_modules, spec_from_config
from autopeft.spaces import all_spaces
from autopeft.specs import Candidate, Distribution, MethodSpace, ModelSpec, OptionValue

COUNT = 100_000
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
    """Prices 100,000 candidates at once, and a thousand of them one by one."""
    model = spec_from_config(LLAMA_3_8B, id="llama-3-8b")
    draw = random.Random(0)
    candidates = [drawn(draw, model) for _ in range(COUNT)]
    lengths = [draw.choice((128, 256, 512, 1024, 2048, 4096)) for _ in candidates]
    start = time.process_time()
    arrays = estimate_many(candidates, model, None, sequence_length=lengths)
    each = (time.process_time() - start) / COUNT
    start = time.process_time()
    for candidate, length in zip(candidates[:1000], lengths, strict=False):
        estimate_memory(candidate, model, None, sequence_length=length)
    alone = (time.process_time() - start) / 1000
    print(f"{len(arrays)} candidates at once, {each * 1e6:.1f} microseconds of CPU each; one by one {alone * 1e6:.0f}")


@functools.cache
def known_spaces() -> list[tuple[str, MethodSpace]]:
    """Returns the methods whose step the closed form knows, with their search spaces."""
    return [(name, space) for name, space in sorted(all_spaces().items()) if unknown_step(name) is None]


def drawn(draw: random.Random, model: ModelSpec) -> Candidate:
    """Returns a candidate of a random method that the closed form knows, with random values of all its knobs."""
    name, space = draw.choice(known_spaces())
    values = {**space.fixed, **{knob: _value(draw, each) for knob, each in space.parameters.items()}}
    targets = values.pop("target_modules", None)
    method = get_method(name)
    own = {knob: values.pop(knob) for knob in list(values) if knob not in Candidate.__dataclass_fields__}
    alpha = 16.0 if method.has_adapter else None
    fields = {"r": None, "lora_alpha": alpha, "adapter_dtype": "float32" if method.has_adapter else None} | values
    rows, accumulation = draw.choice(((1, 16), (2, 8), (4, 4), (8, 2), (16, 1)))
    return Candidate(
        method=name,
        target_modules=resolve_target_modules(model, (str(targets),)) if targets else (),
        options=own,
        per_device_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        activation_checkpointing=draw.random() < 0.5,
        trainer=draw.choice(("trl", "transformers")),
        **fields,  # type: ignore[arg-type]
    )


def _value(draw: random.Random, knob: Distribution) -> OptionValue:
    if knob.choices:
        return draw.choice(knob.choices)
    assert knob.low is not None
    assert knob.high is not None
    value = draw.uniform(knob.low, knob.high)
    return round(value) if knob.type == "int" else value


if __name__ == "__main__":
    main()
