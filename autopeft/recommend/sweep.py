"""Prices and scores many candidates at once, with arrays: what ``CandidateFactory`` does for one, for 100,000."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autopeft.memory.closed_form import EstimateArrays, covers, estimate_many
from autopeft.memory.rates import device_rates
from autopeft.memory.timing import flops_of_load, seconds_of_load
from autopeft.methods import get_method
from autopeft.recommend.batch import divisors
from autopeft.recommend.candidates import CandidateFactory
from autopeft.recommend.pareto import on_front
from autopeft.recommend.scoring import score_terms, time_cost
from autopeft.spaces import suggested_methods
from autopeft.specs import Candidate, OptionValue

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Many candidates, priced and scored; arrays in the order of the candidates.

    Attributes:
        required_bytes: what must be free on the device.
        seconds: of one full training; NaN where the device's speed is unknown.
        quality_points: predicted quality.
        score: by the factory's objective.
        order: the places of those that fit, best first; ties by time, then by place.
    """

    candidates: Sequence[Candidate]
    required_bytes: Integers
    seconds: Floats
    quality_points: Floats
    score: Floats
    order: Integers

    def front(self) -> Integers:
        """Returns the places of those that fit and that no other one beats in quality, memory and time, best first."""
        known = np.nan_to_num(self.seconds[self.order], nan=0.0)
        costs = np.stack([-self.quality_points[self.order], self.required_bytes[self.order], known], axis=1)
        found: Integers = self.order[on_front(costs)]
        return found


def sweep(factory: CandidateFactory, candidates: Sequence[Candidate]) -> Sweep:
    """Returns candidates of one model and device, priced by the closed form, scored and ordered.

    Every score is what ``CandidateFactory.rank`` gives. Limits on time, size and server are not looked at.

    Raises:
        UnsupportedArchitectureError: if the closed form does not know the model.
    """
    model, device = factory.model, factory.hardware.device
    arrays = estimate_many(candidates, model, device, sequence_length=factory.advice.sequence_length)
    step, relative = np.empty(len(candidates)), np.empty(len(candidates))
    quality, share = np.empty(len(candidates)), np.empty(len(candidates))
    for candidate, places in arrays.alike():
        step[places], relative[places] = _times(factory, arrays, candidate, places)
        quality[places] = sum(score_terms(factory.judge.quality_parts(candidate), factory.judge.weights).values())
        share[places] = _memory_share(factory, candidate, arrays.required_bytes[places])
    weights = factory.judge.weights
    memory = np.log2(arrays.required_bytes / factory.judge.sixteen_bit_bytes)
    cost = time_cost(weights, relative) + weights.memory_share * share + weights.doubled_memory * memory
    score = quality - cost
    fitting = np.flatnonzero(arrays.required_bytes <= factory.available_bytes)
    order = fitting[np.lexsort((step[fitting], -score[fitting]))]
    return Sweep(candidates, arrays.required_bytes, step * factory.advice.steps, quality, score, order)


def every_form(factory: CandidateFactory) -> list[Candidate]:
    """Returns every rank, target, split of the batch and use of checkpointing, of all methods that can work here.

    Methods whose step the closed form does not know are left out. Learning rates and dropout stay at their recommended
    values.
    """
    forms = []
    for method in factory.inputs.methods or suggested_methods():
        if not get_method(method).closed_form or factory.why_not(method) is not None:
            continue
        space = factory.allowed(method).parameters
        knobs = [name for name in ("quantization", "r", "target_modules") if name in space]
        for chosen in product(*(space[name].choices for name in knobs)):
            forms += _splits(factory, method, dict(zip(knobs, chosen, strict=True)))
    return forms


def known_to_formulas(factory: CandidateFactory) -> bool:
    """Returns whether the closed form knows the model, so that many forms are priced in no time."""
    return covers(factory.model) is None


def _splits(factory: CandidateFactory, method: str, values: dict[str, OptionValue]) -> list[Candidate]:
    draft = factory.drafts.build(method, {**factory.recommended(method), **values})
    if factory.judge.problem(draft) is not None:
        return []
    effective = factory.advice.effective_batch_size
    return [
        replace(
            draft,
            per_device_batch_size=batch,
            gradient_accumulation_steps=effective // batch,
            activation_checkpointing=checkpointing,
        )
        for batch in divisors(effective)
        for checkpointing in (False, True)
    ]


def _times(
    factory: CandidateFactory, arrays: EstimateArrays, candidate: Candidate, places: Integers
) -> tuple[Floats | float, Floats]:
    """Returns seconds of a step (NaN if unknown) and the time as a multiple of plain LoRA's, of candidates alike."""
    reference_seconds, reference_flops = factory.judge.reference()
    load = arrays.load(places)
    rates = device_rates(factory.hardware.device)
    if reference_seconds is None or rates.missing([candidate.dtype]):
        ratio = factory.drafts.time_ratio(candidate)
        return math.nan, ratio * flops_of_load(candidate, factory.model, load) / reference_flops
    seconds = factory.drafts.unpriced_time_ratio(candidate) * seconds_of_load(candidate, factory.model, rates, load)
    return seconds, seconds / reference_seconds


def _memory_share(factory: CandidateFactory, candidate: Candidate, required: Integers) -> Floats:
    smallest = factory.variant(candidate.method, candidate.quantization).smallest
    needed = required if smallest is None else np.full(len(required), smallest.required_bytes)
    return np.minimum(1.0, needed / factory.available_bytes)
