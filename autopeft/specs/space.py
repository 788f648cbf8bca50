"""What may vary for one method, in Optuna's JSON form of distributions but without Optuna."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from autopeft.specs.candidate import OptionValue, Quantization
from autopeft.specs.claim import Basis


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
class Situation:
    """What a method is expected to gain or lose only where something holds.

    All conditions that are given must hold; at least one is.

    Attributes:
        points: of task quality, on top of the method's own prior.
        why: one sentence for people, without a full stop.
        basis: how firm it is, as in a claim.
        source: where the measurement can be read; None for a judgement.
        quantization: the base is stored so.
        rows_below: the data set has fewer rows.
        adapter_limited: a limit on the adapter's parameters keeps plain LoRA below the rank that the data suggest.
    """

    points: float
    why: str
    basis: Basis
    source: str | None = None
    quantization: Quantization | None = None
    rows_below: int | None = None
    adapter_limited: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpace:
    """The search space of one method: ``search_spaces/<method>.yaml``.

    Attributes:
        method: name in the registry.
        summary: one sentence for the method table.
        parameters: searched knobs by name; a name that is a field of Candidate sets it, others go to its options.
        fixed: settings that are not searched.
        scaling: effective scale of the update at the start; ``lora_alpha`` follows from it and r. None without one.
        learning_rate_factor: recommended learning rate as a multiple of plain LoRA's at equal rank and scaling.
        learning_rate_basis: what the factor rests on.
        step_time_ratio: seconds of one step as a multiple of plain LoRA's at the same rank and targets.
        quality_prior_points: expected task quality against plain LoRA on the same base, in points, both tuned; 0 where
            nothing was measured fairly.
        situations: where the method is expected to gain or lose beyond that.
        adapter_form: what is saved, by which the files of ``profiles/serving`` say how it is served: "lora" (plain),
            "doubled_rank" (plain, of twice the trained rank), "rank_scaled" (another scale than alpha / r),
            "magnitude", "singular_values", "shared_rows" (MiSS), "quantized_base" (fits the quantized base alone),
            "not_lora", "whole_model". "unknown" is served nowhere.
        searched_by_default: False for a method that is searched only when asked for (full fine-tuning).
        suggested_by_default: False for a method that is neither ranked nor searched unless it is asked for.
        sources: where the figures come from.
    """

    method: str
    summary: str
    parameters: dict[str, Distribution]
    fixed: dict[str, OptionValue] = field(default_factory=dict)
    scaling: float | None = 1.0
    learning_rate_factor: float = 1.0
    learning_rate_basis: Basis = "judgement"
    step_time_ratio: float = 1.0
    quality_prior_points: float = 0.0
    situations: tuple[Situation, ...] = ()
    adapter_form: str = "unknown"
    searched_by_default: bool = True
    suggested_by_default: bool = True
    sources: tuple[str, ...] = ()

    @property
    def served_as_trained(self) -> bool:
        """Whether every common server loads the saved adapter as it is, at the right scale: plain LoRA alone."""
        return self.adapter_form == "lora"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """The spaces of the methods that are searched, by name."""

    methods: dict[str, MethodSpace]
