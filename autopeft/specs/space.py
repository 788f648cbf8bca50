"""What may vary for one method, in Optuna's JSON form of distributions but without Optuna."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autopeft.specs.candidate import OptionValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One searched knob.

    Attributes:
        type: "float" and "int" take ``low``, ``high``, ``log``, ``step``; "categorical" takes ``choices``.
        effect: one sentence: what the knob does to quality, memory or time.
        default: the value of the recommended candidate.
    """

    type: Literal["float", "int", "categorical"]
    default: OptionValue
    effect: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: tuple[OptionValue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpace:
    """The search space of one method: ``search_spaces/<method>.yaml``.

    Attributes:
        method: name in the registry.
        summary: one sentence for the method table.
        parameters: searched knobs by name; a name that is a field of Candidate sets it, others go to its options.
        fixed: settings that are not searched.
        scaling: effective scale of the update at the start; ``lora_alpha`` follows from it and r. None without one.
        learning_rate_factor: recommended learning rate as a multiple of plain LoRA's at equal scaling.
        step_time_ratio: seconds of one step as a multiple of plain LoRA's at the same rank and targets.
        quality_prior_points: expected task quality against plain LoRA on the same base, in points, both tuned; 0 where
            nothing was measured fairly.
        served_as_trained: whether every common server loads the saved adapter as it is, at the right scale.
        searched_by_default: False for a method that is searched only when asked for (full fine-tuning).
        sources: where the figures come from.
    """

    method: str
    summary: str
    parameters: dict[str, Distribution]
    fixed: dict[str, OptionValue] = field(default_factory=dict)
    scaling: float | None = 1.0
    learning_rate_factor: float = 1.0
    step_time_ratio: float = 1.0
    quality_prior_points: float = 0.0
    served_as_trained: bool = False
    searched_by_default: bool = True
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """The spaces of the methods that are searched, by name."""

    methods: dict[str, MethodSpace]
