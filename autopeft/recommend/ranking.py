"""Ranks candidates of all methods: the torch-free core of `autopeft suggest`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autopeft.errors import NothingFitsError
from autopeft.methods import get_method
from autopeft.recommend.advice import SMALL_ROWS, lower_ranks
from autopeft.recommend.candidates import CandidateFactory, Pricer
from autopeft.recommend.devices import device_notes
from autopeft.recommend.objectives import explores_leaner
from autopeft.recommend.pareto import mark_front
from autopeft.recommend.prompting import prompting_notes
from autopeft.recommend.runnable import run_notes
from autopeft.recommend.scoring import HALVED_RANK_POINTS
from autopeft.recommend.shortage import shortage_text
from autopeft.recommend.shortening import shorter_lengths
from autopeft.recommend.spending import spending_notes
from autopeft.spaces import suggested_methods
from autopeft.specs import (
    Baseline,
    Candidate,
    DatasetProfile,
    HardwareProfile,
    ModelSpec,
    OptionValue,
    PlanInputs,
    Quantization,
    RankedCandidate,
    Recommendation,
    RejectedCandidate,
)
from autopeft.units import format_gib

MARGIN = 0.05
"""Doublings of time that a lower rank can save by itself, the adapter being a few percent of the work."""

PLAIN_RANK = 16
PLAIN_ALPHA = 16.0
PLAIN_LEARNING_RATE = 2e-4
"""The recipe of most tutorials: Hugging Face's and Unsloth's notebooks use r 16, alpha 16 and 2e-4."""


def recommend(
    hardware: HardwareProfile,
    model: ModelSpec,
    data: DatasetProfile,
    inputs: PlanInputs,
    *,
    seed: int,
    price: Pricer | None = None,
) -> Recommendation:
    """Returns the candidates that fit, best first, and what was rejected with its reason.

    Args:
        hardware: its device that fits best trains.
        model: what is fine-tuned.
        data: what it is fine-tuned on.
        inputs: what the user asked for: budget, methods, batch, length.
        seed: written into the plan; the ranking itself is not random.
        price: ``estimate_memory`` or one with its signature; None means the closed form.

    Raises:
        UnknownNameError: for an unknown method.
        InvalidInputError: if a length or batch size that was asked for is not possible.
        NothingFitsError: with the smallest estimate, what it lacks and what would help.
    """
    return ranked_plan(CandidateFactory(model, data, hardware, inputs, price), seed)


def ranked_plan(factory: CandidateFactory, seed: int) -> Recommendation:
    """Returns what the factory's inputs lead to; see ``recommend``.

    Raises:
        UnknownNameError: for an unknown method.
        NothingFitsError: with the smallest estimate, what it lacks and what would help.
    """
    fitting, ranked, rejected = _first_that_fits(factory)
    if not ranked:
        raise NothingFitsError(shortage_text(fitting, rejected))
    rejected += _not_asked_for(factory.inputs.methods)
    recipe = fitting.price(plain_lora(fitting))
    return Recommendation(
        seed=seed,
        inputs=factory.inputs,
        hardware=factory.hardware,
        model=factory.model,
        data=factory.data,
        candidates=mark_front(sorted(ranked, key=order)),
        rejected=tuple(sorted(rejected, key=lambda entry: (entry.method, entry.variant))),
        baselines=_baselines(recipe),
        notes=_notes(fitting, recipe),
        shortened_length=None if fitting is factory else fitting.advice.max_length,
    )


Judged = tuple[CandidateFactory, list[RankedCandidate], list[RejectedCandidate]]


def _first_that_fits(factory: CandidateFactory) -> Judged:
    """Returns the candidates at the advised length or, where nothing fits, at the longest shorter one that fits.

    A length that was asked for is kept, and a limit on time or cost is not met by training on less text.
    """
    judged = _judged(factory)
    if judged[1] or factory.inputs.max_length is not None or not _lacks_memory(judged[2]):
        return judged
    for length in shorter_lengths(factory.data, factory.advice):
        judged = _judged(factory.with_rows_of(length))
        if judged[1]:
            break
    return judged


def _judged(factory: CandidateFactory) -> Judged:
    """Returns the best candidate of every method and storage of the base, and what was rejected."""
    ranked: list[RankedCandidate] = []
    rejected: list[RejectedCandidate] = []
    for name in dict.fromkeys(factory.inputs.methods or suggested_methods()):
        get_method(name)
        for quantization in factory.drafts.quantizations(name):
            answer = best_of_variant(factory, name, quantization)
            (ranked if isinstance(answer, RankedCandidate) else rejected).append(answer)  # type: ignore[arg-type]
    return factory, ranked, rejected


def _lacks_memory(rejected: Sequence[RejectedCandidate]) -> bool:
    return any(entry.required_bytes is not None for entry in rejected) and not any(
        entry.predicted_seconds is not None for entry in rejected
    )


def _not_asked_for(asked: tuple[str, ...]) -> list[RejectedCandidate]:
    """Returns the methods that the user left out of those that are ranked by default."""
    reason = f"not asked for (--method {', '.join(dict.fromkeys(asked))})"
    left_out = [name for name in suggested_methods() if name not in asked] if asked else []
    return [RejectedCandidate(method=name, variant="all", reason=reason) for name in left_out]


def best_of_variant(
    factory: CandidateFactory, method: str, quantization: Quantization
) -> RankedCandidate | RejectedCandidate:
    """Returns the best candidate of a method on one storage of the base, or why there is none.

    The recommended settings first; where they do not fit, or memory slows them by more than a lower rank would cost in
    quality, lower ranks and fewer target modules are tried too, and the best score wins.
    """
    variant = factory.variant(method, quantization)
    if variant.problem is not None:
        required = None if variant.smallest is None else variant.smallest.required_bytes
        return RejectedCandidate(method=method, variant=quantization, reason=variant.problem, required_bytes=required)
    found: list[RankedCandidate] = []
    closest: list[RejectedCandidate] = []
    for values in _ladder(factory, method, quantization):
        priced = factory.price(factory.candidate(method, values))
        if isinstance(priced, RejectedCandidate):
            closest.append(priced)
            continue
        found.append(priced)
        if _is_enough(factory, priced):
            break
    if found:
        return max(found, key=lambda entry: entry.score)
    return min(closest, key=lambda entry: (entry.required_bytes or 0, entry.predicted_seconds or 0.0))


def _is_enough(factory: CandidateFactory, entry: RankedCandidate) -> bool:
    """Returns whether no leaner form can score better: time would win back less than a halved rank costs."""
    if explores_leaner(factory.inputs.objective):
        return False
    return factory.judge.weights.doubled_time * (factory.doublings_lost(entry) + MARGIN) < HALVED_RANK_POINTS


def _ladder(factory: CandidateFactory, method: str, quantization: Quantization) -> Iterator[dict[str, OptionValue]]:
    """Yields knob values from the recommended ones to the leanest: the next and the lowest rank, then fewer targets."""
    space = factory.allowed(method)
    start: dict[str, OptionValue] = {"quantization": quantization} if "quantization" in space.parameters else {}
    advice = factory.drafts.rank_advice(method)
    lower = () if advice is None else lower_ranks(space.parameters["r"], advice[0])
    every_rank = factory.inputs.max_adapter_parameters is not None
    ranks = dict.fromkeys(lower if every_rank else (*lower[:1], *lower[-1:]))
    targets = space.parameters.get("target_modules")
    narrower = [name for name in targets.choices if name != targets.default] if targets else []
    yield start
    yield from (start | {"r": r} for r in ranks)
    for name in narrower:
        yield start | {"target_modules": name}
        yield from (start | {"target_modules": name, "r": r} for r in lower[-1:])


def order(entry: RankedCandidate) -> tuple[float, float, str, str]:
    """Returns the sort key of a plan: best score first, ties by cost, then by name."""
    cost = entry.predicted_seconds if entry.predicted_seconds is not None else float(entry.estimate.required_bytes)
    return (-entry.score, cost, entry.candidate.method, entry.candidate.quantization)


def plain_lora(factory: CandidateFactory) -> Candidate:
    """Returns the field's default recipe at the plan's batch and length: LoRA r 16, alpha 16, all linear layers, 2e-4.

    Its base is quantized only where it does not fit otherwise.
    """
    values: dict[str, OptionValue] = {
        "r": PLAIN_RANK,
        "learning_rate": PLAIN_LEARNING_RATE,
        "target_modules": "all-linear",
        "lora_dropout": 0.0,
    }
    return factory.recipe("lora", values, lora_alpha=PLAIN_ALPHA)


def _baselines(recipe: RankedCandidate | RejectedCandidate) -> tuple[Baseline, ...]:
    untouched = Baseline(name="untouched-base", candidate=None, description="the base model as it is, not trained")
    if isinstance(recipe, RejectedCandidate):
        return (untouched,)
    settings = f"r {PLAIN_RANK}, alpha {PLAIN_ALPHA:g}, all linear layers, learning rate {PLAIN_LEARNING_RATE:.0e}"
    plain = Baseline(name="plain-lora", candidate=recipe.candidate, description=f"plain LoRA: {settings}")
    return (untouched, plain)


def _notes(factory: CandidateFactory, recipe: RankedCandidate | RejectedCandidate) -> tuple[str, ...]:
    notes = [
        "tuned methods differ by about one point of task quality (arXiv 2602.04998, 2601.22708): the order is a start, "
        "`autopeft run` decides",
        *device_notes(factory.hardware),
    ]
    notes += run_notes(factory.model, factory.data)
    notes += prompting_notes(factory.hardware, factory.model, factory.data)
    if factory.data.example_count < SMALL_ROWS:
        notes.append(
            f"with {factory.data.example_count} rows results vary with the seed, and a run trains one seed: "
            "repeat it with another --seed before you believe a difference"
        )
    budget = factory.inputs.budget_memory_bytes
    if factory.data.token_counts_source == "characters":
        notes.append("token counts are estimated from characters; with a tokenizer.json lengths and steps are exact")
    if budget is not None and factory.available_bytes < budget:
        free = f"{factory.hardware.device.name} has {format_gib(factory.available_bytes)} free"
        notes.append(f"the budget is {format_gib(budget)}, but {free}, which decides")
    notes += spending_notes(factory.inputs, factory.prices, speed_is_known=factory.judge.reference()[0] is not None)
    if isinstance(recipe, RejectedCandidate):
        notes.append(f"the plain LoRA recipe is no baseline here: {recipe.reason}")
    return tuple(notes)
