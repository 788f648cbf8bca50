"""Explains a plan: why its first candidate is the first, and what would change that."""

from __future__ import annotations

from pathlib import Path

from autopeft.api._plans import read_plan
from autopeft.specs import PlanExplanation, Recommendation


def explain_plan(plan: str | Path | Recommendation) -> PlanExplanation:
    """Returns why a plan's first candidate is the first, why others are out, and what would change the answer.

    Each change (10 % less memory, twice the data, the next smaller and larger device of the catalogue, time at twice
    the price, the other objectives) is recommended anew with the formulas; a plan whose best candidates were traced is
    compared with what the formulas say.

    Args:
        plan: a Recommendation or a plan.json.

    Raises:
        InvalidInputError: if the file is no plan of this version.
    """
    from autopeft.profiling.hardware import hardware_names, load_hardware
    from autopeft.recommend.explain import explain_plan as explained
    from autopeft.recommend.sensitivity import usual_changes

    chosen = plan if isinstance(plan, Recommendation) else read_plan(plan)
    devices = [load_hardware(name) for name in hardware_names()]
    return explained(chosen, usual_changes(chosen, devices))
