"""What would change a plan's answer: its inputs are changed one at a time and recommended anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autopeft.errors import AutoPeftError
from autopeft.profiling.model import resolve_target_modules
from autopeft.recommend.candidates import CandidateFactory
from autopeft.recommend.narrowing import known_aliases
from autopeft.recommend.objectives import WEIGHTS
from autopeft.recommend.ranking import ranked_plan
from autopeft.recommend.scoring import CostWeights
from autopeft.specs import Candidate, ChangedAnswer, DatasetProfile, Device, HardwareProfile, ModelSpec, Recommendation
from autopeft.units import format_gib

SETTINGS = (
    "method", "quantization", "r", "target_modules", "per_device_batch_size", "activation_checkpointing", "max_length",
    "learning_rate",
)  # fmt: skip
"""Of a candidate, compared before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is different.

    Attributes:
        text: what, in a few words.
        hardware, data: in place of the plan's; None keeps it.
        inputs: fields of ``PlanInputs`` with their new values.
        weights: what quality is weighed against; None means the objective's.
    """

    text: str
    hardware: HardwareProfile | None = None
    data: DatasetProfile | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    weights: CostWeights | None = None


def usual_changes(plan: Recommendation, devices: Sequence[HardwareProfile]) -> tuple[Change, ...]:
    """Returns what is asked of every plan: less memory, more data, another device, time at twice the price, ...

    Args:
        plan: its inputs are changed.
        devices: those that may be asked about; the next smaller and the next larger one of the plan's kind are.
    """
    available = plan.candidates[0].available_bytes
    weights = WEIGHTS[plan.inputs.objective]
    dear = replace(weights, doubled_time=2 * weights.doubled_time, halved_time=2 * weights.halved_time)
    return (
        Change(text="10 % less memory", inputs={"budget_memory_bytes": available * 9 // 10}),
        Change(text="half of the memory", inputs={"budget_memory_bytes": available // 2}),
        Change(text="twice the data", data=scaled_data(plan.data, 2)),
        Change(text="ten times the data", data=scaled_data(plan.data, 10)),
        *(_on(profile) for profile in neighbours(plan.hardware.device, devices)),
        *([Change(text="time at twice the price", weights=dear)] if weights.doubled_time else []),
        *(
            Change(text=f"--objective {name}", inputs={"objective": name})
            for name in WEIGHTS
            if name != plan.inputs.objective
        ),
    )


def answers(plan: Recommendation, changes: Sequence[Change]) -> tuple[ChangedAnswer, ...]:
    """Returns what each change makes of a plan."""
    return tuple(_answer(plan, change) for change in changes)


def label(candidate: Candidate, model: ModelSpec) -> str:
    """Returns a candidate in a few words: ``lora r 16 on nf4, 4 x 8``, ``full unquantized, 1 x 32``.

    Fewer layers than all linear ones are named: ``lora r 4 attention only, unquantized, 1 x 16``.
    """
    alone = known_aliases(model, ("attention",))
    narrow = bool(alone) and candidate.target_modules == resolve_target_modules(model, alone)
    where = " attention only," if narrow else ""
    rank = "" if candidate.r is None else f" r {candidate.r}"
    base = "unquantized" if candidate.quantization == "none" else f"on {candidate.quantization}"
    split = f"{candidate.per_device_batch_size} x {candidate.gradient_accumulation_steps}"
    return f"{candidate.method}{rank}{where} {base}, {split}"


def scaled_data(data: DatasetProfile, factor: int) -> DatasetProfile:
    """Returns the profile of so many times as much data of the same kind."""
    return replace(
        data,
        example_count=factor * data.example_count,
        sampled_examples=factor * data.sampled_examples,
        total_characters=factor * data.total_characters,
        total_tokens=factor * data.total_tokens,
    )


def neighbours(device: Device, devices: Sequence[HardwareProfile]) -> tuple[HardwareProfile, ...]:
    """Returns the devices of a kind with the next less and the next more memory, of equals the fastest."""
    alike = [
        profile for profile in devices if profile.device.kind == device.kind and profile.device.name != device.name
    ]
    less = [profile for profile in alike if profile.device.total_memory_bytes < 0.9 * device.total_memory_bytes]
    more = [profile for profile in alike if profile.device.total_memory_bytes > 1.1 * device.total_memory_bytes]
    smaller = [max(less, key=_size)] if less else []
    larger = [min(more, key=lambda profile: (_size(profile)[0], -_size(profile)[1], profile.name))] if more else []
    return (*smaller, *larger)


def _size(profile: HardwareProfile) -> tuple[int, float, str]:
    device = profile.device
    return device.total_memory_bytes, max(device.peak_flops.values(), default=0.0), profile.name


def _on(profile: HardwareProfile) -> Change:
    text = f"on {profile.device.name} ({format_gib(profile.device.free_memory_bytes)})"
    return Change(text=text, hardware=profile, inputs={"budget_memory_bytes": None})


def _answer(plan: Recommendation, change: Change) -> ChangedAnswer:
    before = plan.candidates[0].candidate
    try:
        after = _recommended(plan, change).candidates[0].candidate
    except AutoPeftError as error:
        return ChangedAnswer(change=change.text, first=str(error).partition(". What would help")[0], flips=True)
    flips = (before.method, before.quantization) != (after.method, after.quantization)
    return ChangedAnswer(
        change=change.text, first=label(after, plan.model), flips=flips, differences=_differences(before, after)
    )


def _recommended(plan: Recommendation, change: Change) -> Recommendation:
    inputs = replace(plan.inputs, **change.inputs)
    factory = CandidateFactory(plan.model, change.data or plan.data, change.hardware or plan.hardware, inputs)
    if change.weights is not None:
        factory = factory.weighed_by(change.weights)
    return ranked_plan(factory, plan.seed)


def _differences(before: Candidate, after: Candidate) -> tuple[str, ...]:
    return tuple(
        f"{name} {_shown(getattr(before, name))} -> {_shown(getattr(after, name))}"
        for name in SETTINGS
        if getattr(before, name) != getattr(after, name)
    )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return f"{value:.2g}" if isinstance(value, float) else str(value)
