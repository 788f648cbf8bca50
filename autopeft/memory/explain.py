"""Says why a configuration needs its memory, why quantizing may not help, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from autopeft.memory.dominance import dominant_sentences, quantization_sentences
from autopeft.memory.levers import LEVERS, LeverKind, as_nf4, nf4_problem
from autopeft.methods import get_method
from autopeft.specs import (
    Candidate,
    Combination,
    Device,
    Explanation,
    Lever,
    MemoryEstimate,
    ModelSpec,
    QualityRisk,
    to_json,
)

Price = Callable[[Candidate, int], MemoryEstimate]
"""Estimates one step of a candidate whose rows all have so many tokens, padding included."""

SMALLEST_SAVING_SHARE = 0.01
"""Levers that save less of what is required, and do not make it fit either, are not worth pulling."""

_RISKS: tuple[QualityRisk, ...] = ("none", "small", "some")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is to be explained.

    Attributes:
        candidate: the configuration.
        model: its base model.
        device: what trains.
        sequence_length: tokens of a row, padding included; a lever that cuts rows shorter cuts it too.
        available_bytes: what is free on the device, or may be used.
    """

    candidate: Candidate
    model: ModelSpec
    device: Device
    sequence_length: int
    available_bytes: int


def explain(case: Case, estimate: MemoryEstimate, price: Price) -> Explanation:
    """Returns what dominates, why quantizing does not help where it does not, and the levers in order of cost.

    Cost is the risk to quality first, then the predicted time for the same rows. The combination takes the cheapest
    levers until it fits, then leaves out, the most costly first, what it fits without. All figures are the price's, so
    that they stay as exact as it is.

    Args:
        case: what is to be explained.
        estimate: of the case, priced as ``price`` does it.
        price: a closed form, or a trace; it is asked for some dozens of candidates, each once.
    """
    bench = _Bench(case, estimate, price)
    ordered = sorted(_priced_levers(bench), key=_cost)
    fits = bench.fits(estimate)
    worth = [lever for lever in ordered if (lever.fits and not fits) or _is_large(lever.saved_bytes, estimate)]
    return Explanation(
        required_bytes=estimate.required_bytes,
        available_bytes=case.available_bytes,
        fits=fits,
        dominant=dominant_sentences(case.candidate, case.model, estimate, case.sequence_length),
        quantization=_quantization(bench),
        levers=tuple(worth),
        combination=None if fits else _combination(bench, _kinds(ordered)),
    )


class _Bench:
    """Prices variants of a case, each once."""

    def __init__(self, case: Case, estimate: MemoryEstimate, price: Price) -> None:
        self.case = case
        self.estimate = estimate
        self._price = price
        self._priced = {to_json(case.candidate): estimate}

    def price(self, candidate: Candidate) -> MemoryEstimate:
        """Returns the estimate of a candidate; rows are never longer than its ``max_length``."""
        key = to_json(candidate)
        if key not in self._priced:
            self._priced[key] = self._price(candidate, min(self.case.sequence_length, candidate.max_length))
        return self._priced[key]

    def fits(self, estimate: MemoryEstimate) -> bool:
        """Returns whether the device has what an estimate requires."""
        return estimate.required_bytes <= self.case.available_bytes

    def pull(self, kind: LeverKind, candidate: Candidate) -> tuple[Candidate, str] | None:
        """Returns the mildest variant that fits, else the strongest, with its change; None if nothing is saved."""
        before = self.price(candidate).required_bytes
        chosen = None
        for variant, change in self._possible(kind, candidate):
            required = self.price(variant).required_bytes
            if required < before:
                chosen, before = (variant, change), required
            if required <= self.case.available_bytes:
                break
        return chosen

    def _possible(self, kind: LeverKind, candidate: Candidate) -> Iterator[tuple[Candidate, str]]:
        model, device = self.case.model, self.case.device
        # Rows that are shorter than the limit do not change with it.
        start = replace(candidate, max_length=min(candidate.max_length, self.case.sequence_length))
        for variant, change in kind.variants(start if kind.name == "max_length" else candidate, model, device):
            if get_method(variant.method).why_not(variant, model, device) is None:
                yield variant, change


def _priced_levers(bench: _Bench) -> Iterator[Lever]:
    """Yields every lever that saves something by itself."""
    candidate, estimate = bench.case.candidate, bench.estimate
    for kind in LEVERS:
        pulled = bench.pull(kind, candidate)
        if pulled is None:
            continue
        variant, change = pulled
        after = bench.price(variant)
        yield Lever(
            name=kind.name,
            change=change,
            settings=_settings(candidate, variant),
            quality_risk=kind.quality_risk,
            cost=kind.cost,
            required_bytes=after.required_bytes,
            saved_bytes=estimate.required_bytes - after.required_bytes,
            seconds_ratio=_seconds_ratio(estimate, after),
            fits=bench.fits(after),
        )


def _cost(lever: Lever) -> tuple[int, float]:
    """Sorts by risk, then by time; sorting is stable, so that the order of LEVERS decides where these are equal."""
    ratio = 1.0 if lever.seconds_ratio is None else lever.seconds_ratio
    return _RISKS.index(lever.quality_risk), round(ratio, 2)


def _is_large(saved_bytes: int, estimate: MemoryEstimate) -> bool:
    return saved_bytes >= SMALLEST_SAVING_SHARE * estimate.required_bytes


def _kinds(levers: Sequence[Lever]) -> list[LeverKind]:
    """Returns the levers' kinds in their order, then those that save nothing alone but may after others."""
    by_name = {kind.name: kind for kind in LEVERS}
    first = [by_name.pop(lever.name) for lever in levers]
    rest = sorted(by_name.values(), key=lambda kind: _RISKS.index(kind.quality_risk))
    return sorted([*first, *rest], key=lambda kind: _RISKS.index(kind.quality_risk))


def _combination(bench: _Bench, kinds: Sequence[LeverKind]) -> Combination | None:
    """Returns the cheapest levers that fit together; all that save something if even they do not fit."""
    used = _used_until_fit(bench, kinds)
    for kind in reversed(used):
        without = [other for other in used if other is not kind]
        if bench.fits(bench.price(_pull_all(bench, without)[0])):
            used = without
    if not used:
        return None
    candidate, changes = _pull_all(bench, used)
    after = bench.price(candidate)
    return Combination(
        levers=tuple(changes),
        settings=_settings(bench.case.candidate, candidate),
        required_bytes=after.required_bytes,
        seconds_ratio=_seconds_ratio(bench.estimate, after),
        fits=bench.fits(after),
    )


def _used_until_fit(bench: _Bench, kinds: Sequence[LeverKind]) -> list[LeverKind]:
    candidate, used = bench.case.candidate, []
    for kind in kinds:
        before = bench.price(candidate)
        if bench.fits(before):
            break
        pulled = bench.pull(kind, candidate)
        after = bench.price(pulled[0]) if pulled else before
        if pulled and (bench.fits(after) or _is_large(before.required_bytes - after.required_bytes, before)):
            candidate = pulled[0]
            used.append(kind)
    return used


def _pull_all(bench: _Bench, kinds: Sequence[LeverKind]) -> tuple[Candidate, list[str]]:
    """Returns the candidate after all levers, and the changes of those that saved something."""
    candidate, changes = bench.case.candidate, []
    for kind in kinds:
        pulled = bench.pull(kind, candidate)
        if pulled is not None:
            candidate, change = pulled
            changes.append(change)
    return candidate, changes


def _quantization(bench: _Bench) -> tuple[str, ...]:
    """Returns why nf4 does not help this candidate; empty where it does, or where the method is about nf4."""
    case = bench.case
    problem = nf4_problem(case.candidate, case.model, case.device)
    if problem is not None:
        return (f"nf4 is no way out: {problem}",)
    plain = replace(case.candidate, quantization="none", double_quantization=False, prepare_kbit=False)
    if get_method(plain.method).why_not(plain, case.model, case.device) is not None:
        return ()
    nf4 = as_nf4(case.candidate)
    return quantization_sentences(nf4, bench.price(plain), bench.price(nf4))


def _settings(before: Candidate, after: Candidate) -> dict[str, object]:
    names = [field.name for field in fields(after)]
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}


def _seconds_ratio(before: MemoryEstimate, after: MemoryEstimate) -> float | None:
    if before.seconds_per_step is None or after.seconds_per_step is None:
        return None
    return after.seconds_per_step / before.seconds_per_step
