"""Prices a plan again for the libraries that are really there: memory belongs to the versions that will train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autopeft.memory.reference import REFERENCE_VERSIONS
from autopeft.recommend.candidates import CandidateFactory, Pricer
from autopeft.recommend.reprice import price_best
from autopeft.specs import Recommendation

SIGNIFICANT = 2
"""Leading numbers of a version that have to agree: patch releases mend, and do not change what is kept in memory."""


def version_differences(planned: Mapping[str, str], present: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Returns library -> (planned, present) version where they differ in the first two numbers.

    torch is left out: it is the same code that allocates, whatever its version. So is what is not installed here.
    """
    return {
        name: (version, present[name])
        for name, version in planned.items()
        if name != "torch" and name in present and _leading(version) != _leading(present[name])
    }


def retrace(plan: Recommendation, present: Mapping[str, str], price: Pricer) -> Recommendation:
    """Returns the plan with every candidate traced by ``price`` if it was made for other versions, else as it is.

    Args:
        plan: an estimate without versions of its own holds for the plan's.
        present: installed versions, by package.
        price: ``trace_memory``, or one with its signature.

    Raises:
        NothingFitsError: if no candidate is left.
    """
    differing: dict[str, tuple[str, str]] = {}
    for entry in plan.candidates:
        differing |= version_differences(entry.estimate.versions or plan.versions, present)
    if not differing:
        return plan
    renewed = price_best(plan, len(plan.candidates), price)
    changes = ", ".join(f"{name} {then} -> {now}" for name, (then, now) in differing.items())
    note = f"the plan's figures hold for other libraries ({changes}); its candidates were traced with the present ones"
    return replace(renewed, versions=dict(present), notes=(note, *renewed.notes))


def factory_for(plan: Recommendation, present: Mapping[str, str], price: Pricer) -> CandidateFactory:
    """Returns what makes and prices the candidates of a run.

    They are priced by the closed form where the versions are installed that it was read from, else by ``price``: a
    trace of a second is little beside a trial, and a wrong figure ends it.

    Args:
        plan: what is run.
        present: installed versions, by package.
        price: ``trace_memory``, or one with its signature.
    """
    return CandidateFactory.from_plan(plan, price if version_differences(REFERENCE_VERSIONS, present) else None)


def _leading(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:SIGNIFICANT])
