"""Where the search for a learning rate starts: a rule fitted to published sweeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autopeft.recommend.priors import LearningRatePrior, loosest, priors
from autopeft.specs import Basis, Claim, Distribution, MethodSpace, ModelSpec

SOURCE = "profiles/evidence/learning_rates.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a learning rate depends on besides the model and the method.

    Attributes:
        r: rank; None for full fine-tuning.
        effective_batch_size: rows of an optimizer step.
        steps: optimizer steps of one full training.
    """

    r: int | None
    effective_batch_size: int
    steps: int

    def named(self, scaling: float | None) -> dict[str, float]:
        """Returns the conditions under the names of the prior; plain LoRA's reference stands for a missing rank.

        ``lora_alpha`` is the one with which plain LoRA has this scaling at this rank.
        """
        reference = priors().learning_rate.reference
        rank = reference["rank"] if self.r is None else float(self.r)
        return {
            "rank": rank,
            "lora_alpha": reference["lora_alpha"] if self.r is None else rank * (scaling or 1.0),
            "batch_size": float(self.effective_batch_size),
            "steps": float(self.steps),
        }


def advised_learning_rate(model: ModelSpec, space: MethodSpace, conditions: Conditions) -> float:
    """Returns the learning rate to start a method with, to two digits, inside the space's range.

    It is plain LoRA's at the same rank, scaling, batch and steps (``LearningRatePrior.rate``), times the method's own
    ``learning_rate_factor``.
    """
    rate = priors().learning_rate.rate(model, conditions.named(space.scaling)) * space.learning_rate_factor
    return _inside(float(f"{rate:.1e}"), space.parameters.get("learning_rate"))


def learning_rate_claim(model: ModelSpec, space: MethodSpace, conditions: Conditions, learning_rate: float) -> Claim:
    """Returns one sentence on a learning rate: where it comes from and how far to trust it."""
    advised = advised_learning_rate(model, space, conditions)
    if not math.isclose(learning_rate, advised):
        text = f"learning rate {learning_rate:.1e} was given; published sweeps point to {advised:.1e}"
        return Claim(about="learning_rate", text=text, basis="asked")
    prior = priors().learning_rate
    factor = "" if space.learning_rate_factor == 1 else f", times {space.learning_rate_factor:g} for {space.method}"
    basis = loosest(prior.basis(model, conditions.named(space.scaling)), space.learning_rate_basis)
    text = (
        f"learning rate {learning_rate:.1e}: LoRA sweeps of {len(prior.models)} models, brought to "
        f"{_place(model, prior)}, batch {conditions.effective_batch_size}, {conditions.steps} steps{factor}; "
        f"{_trust(basis, prior)}"
    )
    return Claim(about="learning_rate", text=text, basis=basis, source=SOURCE)


def _place(model: ModelSpec, prior: LearningRatePrior) -> str:
    family = prior.family_of(model)
    return f"width {model.hidden_size}, family {family or 'unknown'}"


def _trust(basis: Basis, prior: LearningRatePrior) -> str:
    if basis == "measured":
        return f"of this very model and batch; half or twice as much costs about {prior.cost_of_double:.1%} of the loss"
    error = prior.error_factor if basis == "interpolated" else prior.new_family_error_factor
    return (
        f"off by a factor of {error:.1f} on average; a factor of 2 costs about {prior.cost_of_double:.1%} of the loss"
    )


def _inside(rate: float, distribution: Distribution | None) -> float:
    if distribution is None or distribution.low is None or distribution.high is None:
        return rate
    return min(max(rate, distribution.low), distribution.high)
