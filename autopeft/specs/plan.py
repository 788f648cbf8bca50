"""The recommendation: what `autopeft suggest` returns and `autopeft run` starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from autopeft.errors import InvalidInputError
from autopeft.specs.candidate import Candidate
from autopeft.specs.claim import Claim
from autopeft.specs.codec import from_dict, to_dict
from autopeft.specs.data import DatasetProfile
from autopeft.specs.estimate import MemoryEstimate
from autopeft.specs.hardware import HardwareProfile
from autopeft.specs.model import ModelSpec

PLAN_SCHEMA_VERSION = 2
"""Of plan.json. Version 1 had bare sentences for reasons, which say nothing of what they rest on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What the user asked for, as given.

    Attributes:
        hardware: "auto", a catalogue name or a YAML path.
        budget_memory_bytes: upper limit on ``required_bytes``; None means what the device has free.
        methods: methods asked for; empty means all.
        effective_batch_size: None means chosen from the data.
        columns: column mapping (role -> column); empty means found.
    """

    model: str
    data: str
    hardware: str = "auto"
    budget_memory_bytes: int | None = None
    methods: tuple[str, ...] = ()
    effective_batch_size: int | None = None
    columns: dict[str, str] | None = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCandidate:
    """A candidate with its price and its reasons.

    Attributes:
        estimate: memory and time of one step.
        available_bytes: what ``required_bytes`` is compared with.
        predicted_seconds: one full training; None where the device's speed is unknown.
        steps: optimizer steps of one full training.
        score: higher is better; comparable within one plan only.
        reasons: one claim for each choice.
    """

    candidate: Candidate
    estimate: MemoryEstimate
    available_bytes: int
    predicted_seconds: float | None
    steps: int
    score: float
    reasons: tuple[Claim, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedCandidate:
    """A method, or one variant of it, that cannot work here.

    Attributes:
        variant: what was tried of the method ("nf4", "all"), for people.
        reason: one sentence with numbers.
        required_bytes: smallest estimate of the variant; None if it was not priced.
    """

    method: str
    variant: str
    reason: str
    required_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What the winner must beat.

    Attributes:
        name: "untouched-base" or "plain-lora".
        candidate: None for the untouched base model.
    """

    name: str
    candidate: Candidate | None
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """Ranked candidates, best first; serialized it is plan.json.

    Attributes:
        versions: library -> version that the figures of candidates hold for whose estimate names none of its own.
    """

    seed: int
    inputs: PlanInputs
    hardware: HardwareProfile
    model: ModelSpec
    data: DatasetProfile
    candidates: tuple[RankedCandidate, ...]
    rejected: tuple[RejectedCandidate, ...]
    baselines: tuple[Baseline, ...]
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns plan.json: each candidate is one flat object, its settings beside its estimate and reasons."""
        plain = to_dict(self)
        plain["candidates"] = [entry.pop("candidate") | entry for entry in plain["candidates"]]
        for entry in plain["candidates"]:
            entry["effective_batch_size"] = entry["per_device_batch_size"] * entry["gradient_accumulation_steps"]
        return {"schema_version": PLAN_SCHEMA_VERSION, **plain}

    @classmethod
    def from_dict(cls, content: Any, where: str = "plan") -> Recommendation:
        """Returns the recommendation that ``to_dict`` wrote; ``where`` names its origin in errors."""
        if not isinstance(content, dict) or content.get("schema_version") != PLAN_SCHEMA_VERSION:
            found = content.get("schema_version") if isinstance(content, dict) else type(content).__name__
            raise InvalidInputError(
                f"{where} is no plan of schema version {PLAN_SCHEMA_VERSION} (found: {found}); "
                "make a new one: autopeft suggest ... -o plan.json"
            )
        nested = dict(content)
        entries = nested.get("candidates")
        if isinstance(entries, list):
            nested["candidates"] = [_nest(entry) for entry in entries]
        return from_dict(nested, cls, where)


def _nest(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    fields = set(Candidate.__dataclass_fields__)
    rest = {key: value for key, value in entry.items() if key not in fields}
    return rest | {"candidate": {key: value for key, value in entry.items() if key in fields}}
