"""The recommendation: what `autopeft suggest` returns and `autopeft run` starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

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

Objective = Literal["quality", "balanced", "memory", "speed", "cost"]
QUALITY_TERMS = ("method", "situation", "quantization", "rank", "targets", "length")
"""Terms of a score that predict task quality; the others are what it costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What the user asked for, as given.

    Attributes:
        hardware: "auto", a catalogue name or a YAML path.
        budget_memory_bytes: upper limit on ``required_bytes``; None means what the device has free.
        methods: methods asked for; empty means all.
        effective_batch_size: None means chosen from the data.
        columns: column mapping (role -> column); empty means found.
        objective: what the order of the candidates weighs most.
        max_seconds: upper limit on the time of one full training.
        max_cost: upper limit on its price, in the currency of the prices.
        price_per_hour: of the device; None means its profile's, where that has one.
        price_per_kwh: of energy, on top of the hours; None means that they include it.
        max_adapter_parameters: upper limit on the parameters that the finished adapter keeps.
        serve: where the result is to be served, a name of ``profiles/serving``; None means anywhere.
    """

    model: str
    data: str
    hardware: str = "auto"
    budget_memory_bytes: int | None = None
    methods: tuple[str, ...] = ()
    effective_batch_size: int | None = None
    columns: dict[str, str] | None = None
    max_length: int | None = None
    objective: Objective = "balanced"
    max_seconds: float | None = None
    max_cost: float | None = None
    price_per_hour: float | None = None
    price_per_kwh: float | None = None
    max_adapter_parameters: int | None = None
    serve: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedCandidate:
    """A candidate with its price and its reasons.

    Attributes:
        estimate: memory and time of one step.
        available_bytes: what ``required_bytes`` is compared with.
        predicted_seconds: one full training; None where the device's speed is unknown.
        steps: optimizer steps of one full training.
        score: higher is better; comparable within one plan only. The sum of ``score_terms``.
        score_terms: points by what they are for: ``QUALITY_TERMS``, "time", "memory".
        reasons: one claim for each choice.
        energy_kwh: at most, of one full training: the device's power limit times its time; None where one is unknown.
        predicted_cost: of one full training, in the currency of the prices; None where no price is known.
        on_front: whether no other candidate of the plan is at least as good in predicted quality, memory, time and
            cost, and better in one.
    """

    candidate: Candidate
    estimate: MemoryEstimate
    available_bytes: int
    predicted_seconds: float | None
    steps: int
    score: float
    reasons: tuple[Claim, ...]
    score_terms: dict[str, float] = field(default_factory=dict)
    energy_kwh: float | None = None
    predicted_cost: float | None = None
    on_front: bool = False

    @property
    def quality_points(self) -> float:
        """Predicted task quality against the best form of plain LoRA, in points: the quality terms of the score."""
        return round(sum(self.score_terms.get(name, 0.0) for name in QUALITY_TERMS), 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedCandidate:
    """A method, or one variant of it, that cannot work here.

    Attributes:
        variant: what was tried of the method ("nf4", "all"), for people.
        reason: one sentence with numbers.
        required_bytes: smallest estimate of the variant; None if it was not priced, or memory is not what it lacks.
        predicted_seconds: one full training, if that exceeds a limit on time or cost; else None.
    """

    method: str
    variant: str
    reason: str
    required_bytes: int | None = None
    predicted_seconds: float | None = None


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
        shortened_length: what rows are truncated to because nothing fits with longer ones; None where they need not be.
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
    shortened_length: int | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns plan.json: each candidate is one flat object, its settings beside its estimate and reasons."""
        plain = to_dict(self)
        plain["candidates"] = [entry.pop("candidate") | entry for entry in plain["candidates"]]
        for entry, ranked in zip(plain["candidates"], self.candidates, strict=True):
            entry["effective_batch_size"] = ranked.candidate.effective_batch_size
            entry["quality_points"] = ranked.quality_points
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
