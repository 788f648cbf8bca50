"""Scores priced candidates: what is expected of their quality, and what they cost against plain LoRA."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from autopeft.memory.timing import estimate_time
from autopeft.methods import get_method
from autopeft.recommend.advice import BITS_PER_PARAMETER, BITS_PER_TOKEN, advise
from autopeft.recommend.drafting import Drafts
from autopeft.recommend.objectives import WEIGHTS
from autopeft.recommend.scoring import CostWeights, ScoreParts, halvings, score_terms
from autopeft.recommend.serving import server_named, serving_claims, serving_problem
from autopeft.specs import Candidate, Claim, MemoryEstimate, PlanInputs, Situation

Price = Callable[[Candidate], MemoryEstimate]

SIXTEEN_BIT_BYTES = 2


class Judge:
    """Scores candidates of one model, data set and device by one objective.

    Attributes:
        weights: what quality is weighed against.
        sixteen_bit_bytes: of the base's weights, whatever it is stored in.
    """

    def __init__(self, drafts: Drafts, inputs: PlanInputs, price: Price, weights: CostWeights | None = None) -> None:
        self._drafts = drafts
        self._inputs = inputs
        self._price = price
        self.weights = weights or WEIGHTS[inputs.objective]
        self.sixteen_bit_bytes = SIXTEEN_BIT_BYTES * drafts.model.parameter_count
        self._reference: tuple[float | None, float] | None = None
        self._limited: bool | None = None
        self._trained_parameters: dict[tuple[object, ...], int] = {}
        self._server = None if inputs.serve is None else server_named(inputs.serve)

    def terms(self, candidate: Candidate, estimate: MemoryEstimate, memory_share: float) -> dict[str, float]:
        """Returns the points of a candidate by what they are for.

        Args:
            candidate: what is scored.
            estimate: its memory and time.
            memory_share: what its smallest form needs of what is available, 0 to 1.
        """
        parts = self.quality_parts(candidate)
        costs = replace(
            parts,
            relative_time=self.relative_time(candidate, estimate),
            memory_share=memory_share,
            relative_memory=estimate.required_bytes / self.sixteen_bit_bytes,
        )
        return score_terms(costs, self.weights)

    def quality_parts(self, candidate: Candidate) -> ScoreParts:
        """Returns the parts of the score that predict quality, at a cost of nothing."""
        return ScoreParts(
            quality_points=self._drafts.space(candidate.method).quality_prior_points,
            situation_points=sum(each.points for each in self._situations(candidate)),
            quantization=candidate.quantization,
            halved_ranks=self._halvings(candidate),
            narrow_targets=self._is_narrow(candidate),
            halved_lengths=self._halved_lengths(),
            relative_time=1.0,
            memory_share=0.0,
        )

    def claims(self, candidate: Candidate) -> tuple[Claim, ...]:
        """Returns what is expected of the method here alone, and what serving it takes, one claim each."""
        space = self._drafts.space(candidate.method)
        served = () if self._server is None else serving_claims(self._server, candidate, space)
        expected = tuple(
            Claim(
                about="method",
                text=f"{candidate.method} {each.points:+g} points: {each.why}",
                basis=each.basis,
                source=each.source,
            )
            for each in self._situations(candidate)
        )
        return (*expected, *served)

    def problem(self, candidate: Candidate) -> str | None:
        """Returns why the finished adapter is too large or cannot be served, in one clause; None if it can be used."""
        unserved = None
        if self._server is not None:
            unserved = serving_problem(self._server, candidate, self._drafts.space(candidate.method))
        return unserved or self._size_problem(candidate)

    def _size_problem(self, candidate: Candidate) -> str | None:
        limit = self._inputs.max_adapter_parameters
        if limit is None:
            return None
        kept = get_method(candidate.method).kept_parameters(candidate, self._drafts.model)
        if kept <= limit:
            return None
        return f"keeps {kept:,} parameters, --max-adapter-parameters allows {limit:,}"

    def relative_time(self, candidate: Candidate, estimate: MemoryEstimate) -> float:
        """Returns the time against plain LoRA's with the batch in one forward; by FLOPs if no speed is known."""
        seconds, flops = self.reference()
        if seconds is not None and estimate.seconds_per_step is not None:
            return estimate.seconds_per_step / seconds
        return self._drafts.time_ratio(candidate) * self._flops(candidate) / flops

    def reference(self) -> tuple[float | None, float]:
        """Returns seconds (None if no speed is known) and FLOPs of a step that times are compared with."""
        if self._reference is None:
            whole = self._drafts.build("lora", {**self._drafts.recommended("lora"), "quantization": "none"})
            whole = replace(whole, per_device_batch_size=self._drafts.advice.effective_batch_size)
            self._reference = self._price(whole).seconds_per_step, self._flops(whole)
        return self._reference

    def _halvings(self, candidate: Candidate) -> float:
        """Returns how often the rank is halved below the advised one, or capacity below what the data could fill.

        Where the highest rank of a method's space is advised, only the capacity tells how much is still missing; a
        method that trains every weight lacks none.
        """
        rank = self._drafts.rank_advice(candidate.method)
        data = self._drafts.data
        wanted = data.total_tokens * data.supervised_ratio * BITS_PER_TOKEN / BITS_PER_PARAMETER
        lacking = max(0.0, math.log2(wanted / self._trained(candidate))) if wanted > 0 else 0.0
        return max(halvings(candidate, rank[0] if rank else None), lacking)

    def _trained(self, candidate: Candidate) -> int:
        key = (candidate.method, candidate.r, candidate.target_modules, candidate.options.get("init_r"))
        if key not in self._trained_parameters:
            method = get_method(candidate.method)
            self._trained_parameters[key] = method.trainable_parameters(candidate, self._drafts.model)
        return self._trained_parameters[key]

    def _halved_lengths(self) -> float:
        """Returns how often the rows are cut to half of what data and user ask for; 0 where they are not shortened."""
        drafts = self._drafts
        wanted = advise(drafts.model, drafts.data, self._inputs).sequence_length
        return math.log2(wanted / drafts.advice.sequence_length)

    def _is_narrow(self, candidate: Candidate) -> bool:
        return bool(candidate.target_modules) and candidate.target_modules != self._drafts.targets("all-linear")

    def _situations(self, candidate: Candidate) -> tuple[Situation, ...]:
        return tuple(each for each in self._drafts.space(candidate.method).situations if self._holds(each, candidate))

    def _holds(self, situation: Situation, candidate: Candidate) -> bool:
        rows = self._drafts.data.example_count
        return (
            situation.quantization in (None, candidate.quantization)
            and (situation.rows_below is None or rows < situation.rows_below)
            and (situation.adapter_limited is None or situation.adapter_limited == self._adapter_is_limited())
        )

    def _adapter_is_limited(self) -> bool:
        """Returns whether plain LoRA may not have the rank that the data suggest."""
        if self._limited is None:
            draft = self._drafts.build("lora", self._drafts.recommended("lora"))
            self._limited = self._size_problem(draft) is not None
        return self._limited

    def _flops(self, candidate: Candidate) -> float:
        drafts = self._drafts
        length = drafts.advice.sequence_length
        return estimate_time(candidate, drafts.model, drafts.device, sequence_length=length).flops_per_step
