"""Builds the parts of a candidate that depend on neither memory nor time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from autopeft.errors import InvalidInputError
from autopeft.memory.timing import knows_step_of
from autopeft.methods import get_method
from autopeft.profiling.model import resolve_target_modules
from autopeft.recommend import narrowing
from autopeft.recommend.advice import Advice, advised_rank, rank_choices
from autopeft.recommend.learning_rate import Conditions, advised_learning_rate
from autopeft.spaces import is_candidate_field, spaces_for
from autopeft.specs import (
    Candidate,
    Claim,
    DatasetProfile,
    Device,
    MethodSpace,
    ModelSpec,
    OptionValue,
    Quantization,
)

Values = Mapping[str, OptionValue]


@dataclass(frozen=True, slots=True)
class Drafts:
    """Turns complete knob values into candidates with the whole batch in one forward, unchecked.

    Attributes:
        advice: what is the same for all candidates.
    """

    model: ModelSpec
    data: DatasetProfile
    device: Device
    advice: Advice
    _spaces: dict[str, MethodSpace] = field(default_factory=dict)
    _targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _fitting: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _ranks: dict[str, tuple[int, Claim] | None] = field(default_factory=dict)

    def space(self, method: str) -> MethodSpace:
        """Returns the whole search space of a method."""
        if method not in self._spaces:
            get_method(method)
            self._spaces[method] = spaces_for((method,)).methods[method]
        return self._spaces[method]

    def targets(self, alias: str) -> tuple[str, ...]:
        """Returns the target modules that an alias means on this model."""
        if alias not in self._targets:
            self._targets[alias] = resolve_target_modules(self.model, (alias,))
        return self._targets[alias]

    def time_ratio(self, candidate: Candidate) -> float:
        """Returns a step's time against plain LoRA's at the same rank and targets, as the search space states it.

        For where FLOPs alone are compared; those of full fine-tuning say by themselves what it costs.
        """
        has_adapter = get_method(candidate.method).has_adapter
        return self.space(candidate.method).step_time_ratio if has_adapter else 1.0

    def unpriced_time_ratio(self, candidate: Candidate) -> float:
        """Returns the same where the closed form does not know the method's own work, else 1."""
        return 1.0 if knows_step_of(candidate) else self.time_ratio(candidate)

    def quantizations(self, method: str) -> tuple[Quantization, ...]:
        """Returns the storages of the base that a method's space knows."""
        space = self.space(method)
        distribution = space.parameters.get("quantization")
        names = distribution.choices if distribution else (space.fixed.get("quantization", "none"),)
        return tuple(msgspec.convert(name, Quantization) for name in names)

    def build(self, method: str, values: Values) -> Candidate:
        """Returns the candidate of complete knob values: batch and accumulation are still to be solved."""
        space = self.space(method)
        chosen = get_method(method)
        settings: dict[str, Any] = {**space.fixed, **values}
        options = {name: settings.pop(name) for name in list(settings) if not is_candidate_field(name)}
        target = settings.pop("target_modules", "all-linear")
        r = settings.pop("r", None)
        drafted = Candidate(
            method=method,
            r=r,
            lora_alpha=None if r is None else chosen.lora_alpha(r, space.scaling or 1.0),
            target_modules=self.targets(target) if chosen.has_adapter else (),
            adapter_dtype="float32" if chosen.has_adapter else None,
            dtype=narrowing.training_dtype(self.device, trains_base=not chosen.has_adapter),
            double_quantization=settings.get("quantization") == "nf4",
            max_length=self.advice.max_length,
            warmup_ratio=self.advice.warmup_ratio,
            trainer=narrowing.loss_of(self.model, self.device),
            attention=narrowing.attention_of(self.model),
            options=options,
            **settings,
        )
        return replace(drafted, options=chosen.complete_options(drafted))

    def recommended(self, method: str) -> dict[str, OptionValue]:
        """Returns the recommended value of every knob of a method, whatever the memory."""
        space = self.space(method)
        values = {name: distribution.default for name, distribution in space.parameters.items()}
        rank = self.rank_advice(method)
        if rank is not None:
            values["r"] = rank[0]
        if "learning_rate" in values:
            values["learning_rate"] = self.learning_rate(method, rank[0] if rank else None)
        return values

    def learning_rate(self, method: str, r: int | None) -> float:
        """Returns the advised learning rate of a method at a rank (None for a method without one)."""
        return advised_learning_rate(self.model, self.space(method), self.conditions(r))

    def conditions(self, r: int | None) -> Conditions:
        """Returns what a learning rate depends on here, besides model and method."""
        return Conditions(r=r, effective_batch_size=self.advice.effective_batch_size, steps=self.advice.steps)

    def rank_advice(self, method: str) -> tuple[int, Claim] | None:
        """Returns the advised rank and why; None for a method without a rank, or if every rank is too high."""
        if method not in self._ranks:
            fitting = self.ranks(method)
            space = narrowing.keep_choices(self.space(method), "r", fitting) if fitting else self.space(method)
            distribution = space.parameters.get("r") if fitting else None
            self._ranks[method] = (
                advised_rank(distribution, self.data, lambda r: self._parameters_at(method, r))
                if distribution is not None
                else None
            )
        return self._ranks[method]

    def ranks(self, method: str) -> tuple[int, ...]:
        """Returns the ranks of a space that no adapted layer is too narrow for, rising."""
        if method not in self._fitting:
            distribution = self.space(method).parameters.get("r")
            choices = () if distribution is None else rank_choices(distribution)
            width = narrowing.narrowest_width(self.model) if choices else 0
            self._fitting[method] = tuple(r for r in choices if r <= width)
        return self._fitting[method]

    def aliases(self, method: str) -> tuple[str, ...]:
        """Returns the choices of target modules that name layers of this model."""
        distribution = self.space(method).parameters.get("target_modules")
        return narrowing.known_aliases(self.model, distribution.choices) if distribution else ()

    def alias_of(self, candidate: Candidate) -> str:
        """Returns the choice of target modules that a candidate was built from.

        Raises:
            InvalidInputError: if it is none of its space.
        """
        for alias in self.aliases(candidate.method):
            if self.targets(alias) == candidate.target_modules:
                return alias
        names = ", ".join(candidate.target_modules)
        raise InvalidInputError(f"the target modules {names} are no choice of {candidate.method}'s search space")

    def space_problem(self, method: str) -> str | None:
        """Returns why no choice of a knob works on this model; None if every knob keeps one."""
        parameters = self.space(method).parameters
        if "r" in parameters and not self.ranks(method):
            width = narrowing.narrowest_width(self.model)
            return f"every rank of its search space is above {width}, the width of the narrowest adapted layer"
        if "target_modules" in parameters and not self.aliases(method):
            return f"{self.model.id} has no layers that the target modules of its search space name"
        return None

    def smallest(self, method: str, quantization: Quantization) -> Candidate:
        """Returns the leanest form: lowest rank, fewest target modules, batch 1, activation checkpointing."""
        values = {name: knob.default for name, knob in self.space(method).parameters.items()}
        if "r" in values:
            values["r"] = min(self.ranks(method))
        if "quantization" in values:
            values["quantization"] = quantization
        targets: list[dict[str, OptionValue]] = [{"target_modules": alias} for alias in self.aliases(method)]
        drafts = [self.build(method, values | target) for target in targets or [{}]]
        least = min(drafts, key=lambda draft: get_method(method).trainable_parameters(draft, self.model))
        accumulation = self.advice.effective_batch_size
        return replace(least, gradient_accumulation_steps=accumulation, activation_checkpointing=True)

    def _parameters_at(self, method: str, r: int) -> int:
        values = {name: knob.default for name, knob in self.space(method).parameters.items()}
        return get_method(method).trainable_parameters(self.build(method, values | {"r": r}), self.model)
