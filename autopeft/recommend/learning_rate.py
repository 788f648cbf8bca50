"""Where the search for a learning rate starts: a rule fitted to published sweeps."""

from __future__ import annotations

import math

from autopeft.specs import Basis, Claim, Distribution, MethodSpace, ModelSpec

REFERENCE_HIDDEN_SIZE = 4096
LEARNING_RATE_AT_REFERENCE = 3.901e-4
HIDDEN_SIZE_EXPONENT = -0.303
ERROR_FACTOR = 1.51
"""What ``benchmarks/learning_rate_prior.py`` finds; a test compares them."""

FITTED_HIDDEN_SIZES = (576, 5120)
"""Smallest and largest width among the fitted models; outside them the rule is extrapolated."""


def lora_learning_rate(hidden_size: int) -> float:
    """Returns the best learning rate of plain LoRA at scaling 1 (``lora_alpha`` = r) that sweeps suggest.

    learning_rate = 3.9e-4 * (hidden_size / 4096) ** -0.30

    Least squares on the best learning rates of 15 models: 13 of the Tinker cookbook's sweep (Tulu 3, batch 128,
    ranks 16 to 128 at alpha 32, so around scaling 1), gemma-3-1b of arXiv 2602.04998 (math, batches 16 to 128) and
    SmolLM2-135M, measured by this project. Fitted without a model, the rule misses that model's optimum by a factor of
    1.51 (geometric mean), 12 of 15 times by less than two; a constant would miss by 1.54, so the width explains little
    among models above 1 B and matters for small ones.

    Leaves out the batch size (gemma's best rate grows with about the 0.6th power of it between 16 and 128; for other
    models nobody published it), the rank, the length of the training, the data and the architecture.
    """
    return LEARNING_RATE_AT_REFERENCE * math.pow(hidden_size / REFERENCE_HIDDEN_SIZE, HIDDEN_SIZE_EXPONENT)


def advised_learning_rate(model: ModelSpec, space: MethodSpace) -> float:
    """Returns the learning rate to start a method with, to two digits, inside the space's range.

    The product of learning rate and scaling decides how far the weights move, so a method at another scaling starts
    at LoRA's rate divided by it; ``learning_rate_factor`` is the method's own.
    """
    rate = lora_learning_rate(model.hidden_size) * space.learning_rate_factor / (space.scaling or 1.0)
    return _inside(float(f"{rate:.1e}"), space.parameters.get("learning_rate"))


def learning_rate_claim(model: ModelSpec, space: MethodSpace, learning_rate: float) -> Claim:
    """Returns one sentence on a learning rate: where it comes from and how far to trust it."""
    advised = advised_learning_rate(model, space)
    if not math.isclose(learning_rate, advised):
        text = f"learning rate {learning_rate:.1e} was given; published sweeps point to {advised:.1e}"
        return Claim(about="learning_rate", text=text, basis="asked")
    low, high = FITTED_HIDDEN_SIZES
    inside = low <= model.hidden_size <= high and model.kind == "causal_lm"
    factor = "" if space.learning_rate_factor == 1 else f", times {space.learning_rate_factor:g} for {space.method}"
    text = (
        f"learning rate {learning_rate:.1e}: LoRA sweeps of 15 models, at width {model.hidden_size}"
        f"{factor}, good to a factor of {ERROR_FACTOR:g} on average; the search tunes it"
    )
    basis: Basis = "interpolated" if inside else "extrapolated"
    return Claim(about="learning_rate", text=text, basis=basis, source="docs/advice.md")


def _inside(rate: float, distribution: Distribution | None) -> float:
    if distribution is None or distribution.low is None or distribution.high is None:
        return rate
    return min(max(rate, distribution.low), distribution.high)
