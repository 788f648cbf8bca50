"""What was fitted to published results: ``profiles/priors.yaml``, as ``benchmarks/priors`` wrote it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.resources import read_record, resource_folder
from autopeft.specs import Basis, ModelSpec

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Where the configurations of mixtures of experts state how many there are."""

INTERPOLATING_SOURCES = 3
"""Fewer sources cover too few models and tasks to speak of a range between them."""

BASES: tuple[Basis, ...] = ("measured", "computed", "asked", "interpolated", "extrapolated", "judgement")
"""From the firmest to the loosest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models that share an architecture, and perhaps a learning rate.

    Attributes:
        model_types: as config.json names them.
        factor: of the learning rate.
    """

    model_types: tuple[str, ...]
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRatePrior:
    """The rule for plain LoRA's learning rate.

    Attributes:
        reference: condition -> value at which ``at_reference`` holds.
        at_reference: for a dense model of an unknown family.
        exponents: condition -> power of its ratio to the reference.
        mixture_of_experts_factor: of the rate of a mixture of experts.
        families: name -> what its models share.
        models: hub id -> factor of its own, on top of its family's.
        swept_batch_sizes: hub id -> batch sizes that its sweeps used.
        covered: condition -> lowest and highest value in the evidence; the rule takes the nearest one beyond.
        error_factor: geometric mean over models of how far the rule misses a model that it was fitted without.
        new_family_error_factor: the same for models whose whole family it was fitted without.
        cost_of_half: median share of the loss that half the best rate costs.
        cost_of_double: of twice the best rate.
    """

    reference: dict[str, float]
    at_reference: float
    exponents: dict[str, float]
    mixture_of_experts_factor: float
    families: dict[str, Family]
    models: dict[str, float]
    swept_batch_sizes: dict[str, tuple[int, ...]]
    covered: dict[str, tuple[float, float]]
    error_factor: float
    new_family_error_factor: float
    cost_of_half: float
    cost_of_double: float

    def family_of(self, model: ModelSpec) -> str | None:
        """Returns the family of a model by its model type; None for an unknown one."""
        return next((name for name, family in self.families.items() if model.model_type in family.model_types), None)

    def rate(self, model: ModelSpec, conditions: Mapping[str, float]) -> float:
        """Returns plain LoRA's learning rate for a model under rank, lora_alpha, batch_size and steps.

        rate = at_reference * product of (condition / reference) ** exponent * mixture * family * model

        with each condition taken at the nearest value that the evidence covers. Fitted by ridge regression to the
        optima of published sweeps (docs/advice.md); leaves out the data, the scheduler and the length of the rows.
        ``error_factor`` is its known error.
        """
        known = {"hidden_size": float(model.hidden_size), **conditions}
        rate = self.at_reference
        for name, exponent in self.exponents.items():
            low, high = self.covered[name]
            rate *= math.pow(min(max(known[name], low), high) / self.reference[name], exponent)
        family = self.family_of(model)
        return (
            rate
            * (self.mixture_of_experts_factor if is_mixture(model) else 1.0)
            * (self.families[family].factor if family else 1.0)
            * self.models.get(hub_name(model, self.models) or "", 1.0)
        )

    def basis(self, model: ModelSpec, conditions: Mapping[str, float]) -> Basis:
        """Returns what the rule rests on: a sweep of this very model and batch, the range of the sweeps, or neither."""
        known = {"hidden_size": float(model.hidden_size), **conditions}
        outside = any(not low <= known[name] <= high for name, (low, high) in self.covered.items())
        if outside or model.kind != "causal_lm" or self.family_of(model) is None:
            return "extrapolated"
        swept = self.swept_batch_sizes.get(hub_name(model, self.models) or "", ())
        return "measured" if conditions["batch_size"] in swept else "interpolated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What something does to a published score, against plain LoRA on all linear layers of a 16-bit base.

    Attributes:
        points: over all sources.
        tuned_points: where each side had its own learning rate swept; None if nobody did.
        comparisons: pairs of scores.
        sources: that they come from.
        models: that they were made with, as the sources name them.
    """

    points: float
    tuned_points: float | None
    comparisons: int
    sources: int
    models: tuple[str, ...]

    def basis(self, model: ModelSpec) -> Basis:
        """Returns "measured" for a model that was compared; for others it takes three sources to interpolate."""
        if hub_name(model, self.models) is not None:
            return "measured"
        return "interpolated" if self.sources >= INTERPOLATING_SOURCES else "extrapolated"


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPrior:
    """Effects in points of task quality.

    Attributes:
        effects: method, "nf4", "attention" (in place of all linear layers) or "rank" (each doubling) -> effect.
        error_points: mean error of a left-out source's effects, as all the others predict them.
        error_points_of_zero: the same if no effect is believed in.
        loss_share_per_doubled_rank: median share by which a doubled rank lowers the best loss over learning rates.
    """

    effects: dict[str, Effect]
    error_points: float
    error_points_of_zero: float
    loss_share_per_doubled_rank: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """The file's two parts."""

    learning_rate: LearningRatePrior
    quality: QualityPrior


@functools.cache
def priors() -> Priors:
    """Returns the shipped priors."""
    return read_record(resource_folder("profiles") / "priors.yaml", Priors)


def loosest(*bases: Basis) -> Basis:
    """Returns the loosest of several bases: a claim is as firm as its weakest part."""
    return max(bases, key=BASES.index)


def is_mixture(model: ModelSpec) -> bool:
    """Returns whether a model routes its tokens to experts."""
    return any(layer.role == "router" for layer in model.linear_layers) or any(
        (model.config.get(key) or 0) > 1 for key in EXPERT_COUNTS
    )


def hub_name(model: ModelSpec, names: Mapping[str, object] | tuple[str, ...]) -> str | None:
    """Returns the name among ``names`` that is this model's, without owner and case; None if there is none."""
    wanted = _bare(model.id)
    return next((name for name in names if _bare(name) == wanted), None)


def _bare(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].casefold()
