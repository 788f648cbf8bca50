"""What a run found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.specs.candidate import Candidate
from autopeft.specs.codec import SCHEMA_VERSION, to_dict

TrialStatus = Literal["complete", "pruned", "failed", "oom", "timeout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """One line of results.jsonl.

    Attributes:
        trial: Optuna trial number; None for a final training.
        name: "trial-0003", "final-winner", "final-plain-lora".
        stage: "search" or "final".
        eval_loss: on the choose split; None unless it was scored.
        tokens: trained on, padding excluded.
        seconds: all of it: load, inject, train, score, save.
        predicted_peak_bytes: ``peak_memory_bytes`` of the estimate.
        measured_peak_bytes: see TrainOutcome.
        curve: (step, tokens, eval_loss) of each rung.
        rank_pattern: AdaLoRA: layer -> final rank; None otherwise.
        quantization_error_before: LoftQ: layer -> relative Frobenius error of the quantized weight; None otherwise.
        quantization_error_after: the same with the initial adapter added.
    """

    trial: int | None
    name: str
    stage: Literal["search", "final"]
    candidate: Candidate
    status: TrialStatus
    eval_loss: float | None
    steps: int
    tokens: int
    seconds: float
    train_seconds: float
    seed: int
    predicted_required_bytes: int
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    measured_peak_kind: str | None
    trainable_parameters: int | None
    adapter_folder: str | None
    scores_file: str | None = None
    curve: tuple[tuple[int, int, float], ...] = ()
    rank_pattern: dict[str, int] | None = None
    quantization_error_before: dict[str, float] | None = None
    quantization_error_after: dict[str, float] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns one line of results.jsonl: the candidate's settings flat beside the rest."""
        plain = to_dict(self)
        return {"schema_version": SCHEMA_VERSION, **plain.pop("candidate"), **plain}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A paired difference of held-out loss on the test split.

    Attributes:
        left: name of what is compared.
        right: name of what it is compared with.
        difference: loss of left minus loss of right, nats per supervised token; below zero left is better.
        low: lower end of the 95 % interval.
        high: upper end.
        significant: whether the interval excludes zero.
    """

    left: str
    right: str
    difference: float
    low: float
    high: float
    significant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedMethod:
    """The best completed trial of one method, scored on the test split at equal training.

    Attributes:
        trial: its number.
        choose_loss: what it was chosen by.
        test_loss: on the split never used for choosing; None if the budget cut it.
        against_best: paired difference to the first of the ranking; None for the first.
        seconds: cost of the trial.
    """

    method: str
    trial: int
    candidate: Candidate
    choose_loss: float
    test_loss: float | None
    against_best: Comparison | None
    seconds: float
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    """Seconds that one stage of a run took, over all its sessions."""

    phase: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer of a run; verdict.json.

    Attributes:
        conclusion: one sentence for people.
        significant: whether the winner's method differs from the next best method beyond chance.
        winner: the candidate that was trained in full.
        winner_reason: why it was chosen, "cheapest of the indistinguishable" included.
        losses: test-split loss by name: "winner", "plain-lora", "untouched-base".
        comparisons: winner against each baseline.
        ranking: methods, best first.
        cut: what the budget cut, one sentence each.
        caveats: what the figures do not cover.
    """

    conclusion: str
    significant: bool
    winner: Candidate
    winner_trial: int
    winner_reason: str
    losses: dict[str, float]
    comparisons: tuple[Comparison, ...]
    ranking: tuple[RankedMethod, ...]
    cut: tuple[str, ...]
    caveats: tuple[str, ...]
    tokens_searched: int
    seconds: float
    phases: tuple[PhaseTime, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns verdict.json."""
        return {"schema_version": SCHEMA_VERSION, **to_dict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `autopeft.run` returns.

    Attributes:
        folder: the run folder.
        html: path of report.html.
        adapter_folder: the winner, ready for ``PeftModel.from_pretrained``.
    """

    folder: str
    verdict: Verdict
    trials: tuple[TrialResult, ...]
    html: str
    markdown: str
    adapter_folder: str
