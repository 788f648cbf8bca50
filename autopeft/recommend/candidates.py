"""Completes candidates with the batch that fits, and prices them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from autopeft.errors import InvalidInputError
from autopeft.memory.pricing import memory_key, price_memory
from autopeft.memory.storage import quantization_problem
from autopeft.methods import get_method
from autopeft.recommend import narrowing
from autopeft.recommend.advice import Advice, advise
from autopeft.recommend.batch import leanest_batch, solve_batch
from autopeft.recommend.drafting import Drafts, Values
from autopeft.recommend.judging import Judge
from autopeft.recommend.reasons import choice_reasons
from autopeft.recommend.scoring import CostWeights
from autopeft.recommend.shortening import advice_of, shortened
from autopeft.recommend.spending import Prices, over_limit
from autopeft.spaces import is_candidate_field
from autopeft.specs import (
    Candidate,
    Claim,
    DatasetProfile,
    HardwareProfile,
    MemoryEstimate,
    MethodSpace,
    ModelSpec,
    OptionValue,
    PlanInputs,
    Quantization,
    RankedCandidate,
    Recommendation,
    RejectedCandidate,
)
from autopeft.units import format_gib

Pricer = Callable[..., MemoryEstimate]


@dataclass(frozen=True, slots=True)
class Variant:
    """One storage of the base under one method.

    Attributes:
        problem: why it cannot work here; None if it can.
        smallest: what its smallest form needs; None if it cannot work whatever the memory.
    """

    problem: str | None
    smallest: MemoryEstimate | None


class CandidateFactory:
    """Turns knob values of a search space into candidates for one model, data set and device.

    All of it follows from the inputs: no clock, no randomness, no state but remembered answers.

    Attributes:
        advice: what is the same for all candidates.
        drafts: builds candidates before their batch is solved.
        pricer: ``price_memory`` or one with its signature.
        judge: scores priced candidates.
        prices: what time and energy cost.
        available_bytes: what a candidate may need: the free memory of the device, or the budget if that is lower.
    """

    def __init__(
        self,
        model: ModelSpec,
        data: DatasetProfile,
        hardware: HardwareProfile,
        inputs: PlanInputs,
        price: Pricer | None = None,
        *,
        advice: Advice | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.hardware = hardware
        self.inputs = inputs
        self.advice = advice or advise(model, data, inputs)
        self.drafts = Drafts(model, data, hardware.device, self.advice)
        self.pricer = price or price_memory
        budget = inputs.budget_memory_bytes
        free = hardware.device.free_memory_bytes
        self.available_bytes = free if budget is None else min(budget, free)
        self.prices = Prices.of(inputs, hardware)
        self.judge = Judge(self.drafts, inputs, self.estimate)
        self._variants: dict[tuple[str, Quantization], Variant] = {}
        self._estimates: dict[tuple[object, ...], MemoryEstimate] = {}

    @classmethod
    def from_plan(cls, plan: Recommendation, price: Pricer | None = None) -> CandidateFactory:
        """Returns the factory that made a plan's candidates; ``price`` is None for the closed form."""
        return cls(plan.model, plan.data, plan.hardware, plan.inputs, price, advice=advice_of(plan))

    def with_rows_of(self, length: int) -> CandidateFactory:
        """Returns a factory like this one, but for rows truncated to ``length``."""
        return self._like(shortened(self.advice, self.data, length), self.judge.weights)

    def weighed_by(self, weights: CostWeights) -> CandidateFactory:
        """Returns a factory like this one that weighs quality against other costs."""
        return self._like(self.advice, weights)

    def _like(self, advice: Advice, weights: CostWeights) -> CandidateFactory:
        other = type(self)(self.model, self.data, self.hardware, self.inputs, self.pricer, advice=advice)
        other.judge = Judge(other.drafts, self.inputs, other.estimate, weights)
        return other

    def candidate(self, method: str, values: Values) -> Candidate:
        """Returns the complete candidate of some knob values.

        Args:
            method: name in the registry.
            values: knobs by their name in the search space; what is missing takes the recommended value.

        Raises:
            UnknownNameError: for an unknown method or knob.
            InvalidInputError: for a value outside the space.
        """
        narrowing.check_values(self.drafts.space(method), values)
        recommended = self.recommended(method)
        if "r" in values and "learning_rate" in recommended:
            recommended["learning_rate"] = self.drafts.learning_rate(method, int(values["r"]))
        return self._solved(self.drafts.build(method, {**recommended, **values}))

    def recipe(self, method: str, values: Values, *, lora_alpha: float) -> Candidate:
        """Returns a candidate of values that need not lie inside the space, at a ``lora_alpha`` of its own."""
        draft = self.drafts.build(method, {**self.recommended(method), **values})
        return self._solved(replace(draft, lora_alpha=lora_alpha))

    def values_of(self, candidate: Candidate) -> dict[str, OptionValue]:
        """Returns the knob values of a candidate, from which ``candidate`` builds the same one again.

        Raises:
            InvalidInputError: if its target modules are none of the space's.
        """
        values: dict[str, OptionValue] = {}
        for name in self.drafts.space(candidate.method).parameters:
            if name == "target_modules":
                values[name] = self.drafts.alias_of(candidate)
            else:
                values[name] = getattr(candidate, name) if is_candidate_field(name) else candidate.options[name]
        return values

    def price(self, candidate: Candidate) -> RankedCandidate | RejectedCandidate:
        """Returns a candidate with estimate, time, score and reasons, or why it cannot work here."""
        problem = self._problem(candidate)
        return self._rejected(candidate, problem) if problem else self.rank(candidate, self.estimate(candidate))

    def rank(self, candidate: Candidate, estimate: MemoryEstimate) -> RankedCandidate | RejectedCandidate:
        """Returns a candidate with an estimate that was made elsewhere (a trace), or why it does not fit."""
        if estimate.required_bytes > self.available_bytes:
            return self._rejected(candidate, self._lacks(estimate.required_bytes), estimate.required_bytes)
        seconds = None if estimate.seconds_per_step is None else estimate.seconds_per_step * self.advice.steps
        cost = self.prices.cost(seconds)
        broken = over_limit(self.inputs, seconds, cost)
        if broken is not None:
            return replace(self._rejected(candidate, broken), predicted_seconds=seconds)
        terms = self.judge.terms(candidate, estimate, self._memory_share(candidate, estimate))
        return RankedCandidate(
            candidate=candidate,
            estimate=estimate,
            available_bytes=self.available_bytes,
            predicted_seconds=seconds,
            steps=self.advice.steps,
            score=round(sum(terms.values()), 4),
            reasons=self._reasons(candidate),
            score_terms={name: round(points, 4) for name, points in terms.items()},
            energy_kwh=self.prices.energy_kwh(seconds),
            predicted_cost=cost,
        )

    def allowed(self, method: str) -> MethodSpace:
        """Returns the search space without the choices that cannot work here.

        Raises:
            InvalidInputError: if nothing is left; ``why_not`` gives the reason beforehand.
        """
        reason = self.why_not(method)
        if reason is not None:
            raise InvalidInputError(f"{method} cannot be searched here: {reason}")
        space = narrowing.keep_choices(self.drafts.space(method), "quantization", self._working(method))
        space = narrowing.keep_choices(space, "r", self.drafts.ranks(method))
        return narrowing.keep_choices(space, "target_modules", self.drafts.aliases(method))

    def why_not(self, method: str) -> str | None:
        """Returns why a method cannot work here at all, in one sentence; None if it can."""
        if self._working(method):
            return None
        problems = [f"{self.variant(method, name).problem}" for name in self.drafts.quantizations(method)]
        return "; ".join(dict.fromkeys(problems))

    def recommended(self, method: str) -> dict[str, OptionValue]:
        """Returns the recommended value of every knob of a method; a storage that cannot work is replaced."""
        values = self.drafts.recommended(method)
        working = self._working(method)
        if "quantization" in values and working and values["quantization"] not in working:
            values["quantization"] = working[0]
        return values

    def variant(self, method: str, quantization: Quantization) -> Variant:
        """Returns why a method cannot work here on one storage of the base, and what its smallest form needs."""
        key = (method, quantization)
        if key not in self._variants:
            self._variants[key] = self._judge(method, quantization)
        return self._variants[key]

    def estimate(self, candidate: Candidate) -> MemoryEstimate:
        """Returns memory and time of one step; the method's own share of time is added where formulas lack it."""
        key = memory_key(candidate)
        if key not in self._estimates:
            self._estimates[key] = self._priced(candidate)
        return self._estimates[key]

    def doublings_lost(self, entry: RankedCandidate) -> float:
        """Returns how often memory doubles the time of a step, against the whole batch in one forward."""
        whole = replace(
            entry.candidate,
            per_device_batch_size=self.advice.effective_batch_size,
            gradient_accumulation_steps=1,
            activation_checkpointing=False,
        )
        if whole == entry.candidate:
            return 0.0
        ideal = self.judge.relative_time(whole, self.estimate(whole))
        return math.log2(self.judge.relative_time(entry.candidate, entry.estimate) / ideal)

    def _priced(self, candidate: Candidate) -> MemoryEstimate:
        device = self.hardware.device
        estimate = self.pricer(candidate, self.model, device, sequence_length=self.advice.sequence_length)
        ratio = self.drafts.unpriced_time_ratio(candidate)
        if ratio == 1.0 or estimate.seconds_per_step is None or estimate.source == "traced":
            return estimate
        text = f"a step of {candidate.method} takes {ratio:g} times as long as plain LoRA's (its search space)"
        seconds = estimate.seconds_per_step * ratio
        return replace(estimate, seconds_per_step=seconds, assumptions=(*estimate.assumptions, text))

    def _working(self, method: str) -> list[Quantization]:
        return [name for name in self.drafts.quantizations(method) if self.variant(method, name).problem is None]

    def _solved(self, draft: Candidate) -> Candidate:
        if self.inputs.objective == "memory":
            return leanest_batch(draft, self.advice.effective_batch_size, self.estimate)
        return solve_batch(draft, self.advice.effective_batch_size, self.available_bytes, self.estimate)

    def _judge(self, method: str, quantization: Quantization) -> Variant:
        problem = self.drafts.space_problem(method)
        if problem is not None:
            return Variant(problem, None)
        smallest = self.drafts.smallest(method, quantization)
        problem = self._problem(smallest)
        if problem is not None:
            return Variant(problem, None)
        estimate = self.estimate(smallest)
        fits = estimate.required_bytes <= self.available_bytes
        return Variant(None if fits else f"even its smallest form {self._lacks(estimate.required_bytes)}", estimate)

    def _problem(self, candidate: Candidate) -> str | None:
        """Returns why a candidate cannot work whatever the memory."""
        method = get_method(candidate.method)
        device = self.hardware.device
        problem = quantization_problem(candidate.quantization, self.model, device)
        problem = problem or method.why_not(candidate, self.model, device)
        return problem or self.judge.problem(candidate) or self._schedule_problem(candidate)

    def _schedule_problem(self, candidate: Candidate) -> str | None:
        try:
            get_method(candidate.method).adapter_spec(candidate, self.advice.steps)
        except ValueError as error:
            batch = self.advice.effective_batch_size
            return f"{error} ({self.advice.training_rows} training rows at effective batch {batch})"
        return None

    def _lacks(self, required_bytes: int) -> str:
        return (
            f"needs {format_gib(required_bytes)} ({required_bytes} bytes), available are "
            f"{format_gib(self.available_bytes)} ({self.available_bytes} bytes)"
        )

    def _rejected(self, candidate: Candidate, reason: str, required_bytes: int | None = None) -> RejectedCandidate:
        return RejectedCandidate(
            method=candidate.method, variant=candidate.quantization, reason=reason, required_bytes=required_bytes
        )

    def _memory_share(self, candidate: Candidate, estimate: MemoryEstimate) -> float:
        smallest = self.variant(candidate.method, candidate.quantization).smallest or estimate
        return min(1.0, smallest.required_bytes / self.available_bytes)

    def _reasons(self, candidate: Candidate) -> tuple[Claim, ...]:
        return (*choice_reasons(candidate, self.drafts), *self.judge.claims(candidate), *self.advice.reasons)
