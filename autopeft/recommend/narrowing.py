"""What of a search space can work on a given model and device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.profiling.model import adapted_layers, resolve_target_modules
from autopeft.specs import (
    Attention,
    Device,
    Distribution,
    Dtype,
    MethodSpace,
    ModelSpec,
    OptionValue,
    TrainerName,
)

EAGER_MODEL_TYPES = ("gemma2",)
"""Their attention caps its scores, which PyTorch's scaled_dot_product_attention cannot."""


def device_dtype(device: Device) -> Dtype:
    """Returns the type to compute in: bfloat16 where the hardware has it, float16 on CUDA and ROCm, else float32."""
    if device.supports_bfloat16:
        return "bfloat16"
    return "float16" if device.kind in ("cuda", "rocm") and device.supports_float16 else "float32"


def training_dtype(device: Device, *, trains_base: bool) -> Dtype:
    """Returns the type to train in: float32 in place of float16 where the base weights themselves are trained.

    torch's gradient scaler refuses float16 gradients ("Attempting to unscale FP16 gradients"), and AdamW's epsilon
    vanishes in float16.
    """
    dtype = device_dtype(device)
    return "float32" if trains_base and dtype == "float16" else dtype


def narrowest_width(model: ModelSpec) -> int:
    """Returns the smaller side of the smallest adaptable weight matrix: no update of it has a higher rank."""
    layers = adapted_layers(model, resolve_target_modules(model, ("all-linear",)))
    return min(min(layer.in_features, layer.out_features) for layer in layers)


def known_aliases(model: ModelSpec, aliases: Sequence[OptionValue]) -> tuple[str, ...]:
    """Returns the aliases of target modules that name layers of this model, in the given order."""
    known = []
    for alias in aliases:
        try:
            resolve_target_modules(model, (str(alias),))
        except InvalidInputError:
            continue
        known.append(str(alias))
    return tuple(known)


def keep_choices(space: MethodSpace, name: str, kept: Sequence[OptionValue]) -> MethodSpace:
    """Returns the space with one knob restricted to some of its values; a lost default becomes the nearest kept one."""
    distribution = space.parameters.get(name)
    if distribution is None:
        return space
    return replace(space, parameters={**space.parameters, name: _restricted(distribution, kept)})


def _restricted(distribution: Distribution, kept: Sequence[OptionValue]) -> Distribution:
    assert kept, "a knob needs at least one value"
    numbers = [float(value) for value in kept if isinstance(value, int | float) and not isinstance(value, bool)]
    if distribution.type != "categorical":
        high = max(numbers)
        return replace(distribution, high=high, default=min(float(distribution.default), high))
    choices = tuple(choice for choice in distribution.choices if choice in kept)
    default = distribution.default
    if default not in choices:
        default = _nearest(choices, default)
    return replace(distribution, choices=choices, default=default)


def _nearest(choices: Sequence[OptionValue], lost: OptionValue) -> OptionValue:
    if isinstance(lost, str) or any(isinstance(choice, str) for choice in choices):
        return choices[0]
    return min(choices, key=lambda choice: abs(float(choice) - float(lost)))


def check_values(space: MethodSpace, values: Mapping[str, OptionValue]) -> None:
    """Checks knob values against a space.

    Raises:
        UnknownNameError: for a knob that the space does not have.
        InvalidInputError: naming all values outside it.
    """
    problems = []
    for name, value in values.items():
        if name not in space.parameters:
            raise UnknownNameError(f"knob of {space.method}", name, space.parameters)
        problem = _value_problem(space.parameters[name], value)
        problems += [f"{name} {value!r} is {problem}"] if problem else []
    if problems:
        raise InvalidInputError(f"search_spaces/{space.method}.yaml does not allow this: {'; '.join(problems)}")


def _value_problem(distribution: Distribution, value: OptionValue) -> str | None:
    if distribution.type == "categorical":
        return None if value in distribution.choices else f"none of {', '.join(map(repr, distribution.choices))}"
    assert distribution.low is not None
    assert distribution.high is not None
    if isinstance(value, str | bool):
        return "no number"
    inside = distribution.low <= value <= distribution.high
    return None if inside else f"outside {distribution.low:g} to {distribution.high:g}"


def attention_of(model: ModelSpec) -> Attention:
    """Returns the attention implementation: PyTorch's own, except where transformers 5.23 refuses it."""
    return "eager" if model.model_type in EAGER_MODEL_TYPES else "sdpa"


def loss_of(model: ModelSpec, device: Device) -> TrainerName:
    """Returns whose loss is computed: trl's, which never builds the full logits, except where it only costs time.

    On a CPU its chunks are computed position by position whether supervised or not: 3.7 s a step against 2.3 s
    (SmolLM2-135M, LoRA r 16, 8 x 80 tokens, bfloat16, one thread of an AVX512-BF16 processor, trl 1.16).
    """
    return "trl" if model.kind == "causal_lm" and device.kind != "cpu" else "transformers"
