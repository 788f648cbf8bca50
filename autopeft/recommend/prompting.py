"""Where a prompt is the thing to try before any training."""

from __future__ import annotations

from autopeft.specs import DatasetProfile, HardwareProfile, ModelSpec
from autopeft.units import format_count, format_gib

GENERAL_TASKS = ("chat", "instruction")
"""What larger models do by a prompt; other tasks (labels, code, reasoning, a domain) are what training is for."""

LARGE_MODEL_PARAMETERS = 70e9
"""From here on open models follow general instructions well without training: a judgement."""

MUCH_LARGER = 4.0
"""Times the parameters of the model that was to be trained: a judgement."""

SERVING_BYTES_PER_PARAMETER = 2 * 1.2
"""16 bits, and a fifth for caches and activations."""

PROMPT_SHARE = 0.5
"""Of the context that examples may take."""


def prompting_notes(hardware: HardwareProfile, model: ModelSpec, data: DatasetProfile) -> list[str]:
    """Returns why a prompt should be tried before training, one sentence each; empty where training is the way."""
    if (data.task_kind or data.task) not in GENERAL_TASKS:
        return []
    notes = [_larger_model(hardware, model), _examples_in_context(model, data)]
    return [f"prompting first: {note}" for note in notes if note]


def _larger_model(hardware: HardwareProfile, model: ModelSpec) -> str:
    free = sum(device.free_memory_bytes for device in hardware.devices)
    held = free / SERVING_BYTES_PER_PARAMETER
    if held < LARGE_MODEL_PARAMETERS or held < MUCH_LARGER * model.parameter_count:
        return ""
    return (
        f"{format_gib(free)} hold a model of {format_count(held)} parameters in 16 bits, "
        f"{held / model.parameter_count:.0f} times as large as {model.id}; for a general task compare a prompt to it "
        "before you train"
    )


def _examples_in_context(model: ModelSpec, data: DatasetProfile) -> str:
    context = model.context_length
    if context is None or data.total_tokens > PROMPT_SHARE * context:
        return ""
    return (
        f"all {data.example_count} rows ({data.total_tokens} tokens) fit into the model's context of {context}; "
        "compare a prompt with them as examples before you train"
    )
