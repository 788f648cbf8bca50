"""What is recommended for the model and data of a published table, by rules that never saw its source."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from priors import quality
from priors.fit import all_pairs

from autopeft.errors import NothingFitsError
from autopeft.methods import get_method
from autopeft.profiling.hardware import load_hardware
from autopeft.profiling.model import load_model
from autopeft.recommend import CandidateFactory, recommend
from autopeft.resources import read_yaml
from autopeft.spaces import all_spaces
from autopeft.specs import DatasetProfile, ModelSpec, PlanInputs, RankedCandidate, Recommendation
from first_recommendation.tables import Configuration

DEVICE = "b200"
"""Large enough for every published model in 16 bits: memory decides only where a situation limits it."""

GIB = 2**30
SMALL_RANK = 4
CONDITIONS = read_yaml(Path(__file__).with_name("conditions.yaml"))


@dataclass(frozen=True, slots=True)
class Situation:
    """What a user asks for, beside model and data.

    Attributes:
        inputs: the limits of a model, as fields of ``PlanInputs``.
    """

    name: str
    inputs: Callable[[ModelSpec], dict[str, Any]]


def _memory_for_nf4(model: ModelSpec) -> dict[str, Any]:
    """Returns a budget of 0.7 of the 16-bit weights and 1.5 GiB: a large base fits as nf4 only."""
    return {"budget_memory_bytes": int(0.7 * 2 * model.parameter_count + 1.5 * GIB)}


def _small_adapter(model: ModelSpec) -> dict[str, Any]:
    """Returns a limit that LoRA of rank ``SMALL_RANK`` on all linear layers meets."""
    factory = CandidateFactory(model, data_of(2_000, 120, 60), load_hardware(DEVICE), PlanInputs(model="", data=""))
    lean = factory.drafts.build("lora", {**factory.drafts.recommended("lora"), "r": SMALL_RANK})
    return {"max_adapter_parameters": get_method("lora").kept_parameters(lean, model)}


SITUATIONS = (
    Situation("ample memory", lambda _: {}),
    Situation("ample memory, `--objective quality`", lambda _: {"objective": "quality"}),
    Situation("memory for a large base in 4 bits only", _memory_for_nf4),
    Situation("adapter of rank 4's size at most", _small_adapter),
)
FULL = Situation("ample memory, `--method full`, for comparison", lambda _: {"methods": ("full",)})
"""Not what is advised: what a small model's shorter steps would otherwise suggest."""


def data_of(rows: int, tokens: float, supervised: float) -> DatasetProfile:
    """Returns the profile of so many rows of one length.

    Args:
        rows: how many.
        tokens: of a row.
        supervised: tokens of a row on which the loss counts.
    """
    length = max(8, math.ceil(tokens))
    return DatasetProfile(
        source="rows.jsonl",
        files=("rows.jsonl",),
        content_hash="0" * 64,
        format="messages",
        columns={},
        task="chat",
        example_count=rows,
        total_characters=round(4 * tokens * rows),
        token_counts_source="tokenizer.json",
        sampled_examples=rows,
        mean_tokens=float(tokens),
        max_tokens=length,
        token_quantiles={"0.5": length},
        total_tokens=round(tokens * rows),
        supervised_ratio=supervised / tokens,
    )


@functools.cache
def plan(shape: str, situation: Situation, rows: int, tokens: float, supervised: float) -> Recommendation | None:
    """Returns what is recommended for a model's shape and so much data; None if nothing fits."""
    model = load_model(shape)
    inputs = PlanInputs(model=shape, data="rows.jsonl", hardware=DEVICE, **situation.inputs(model))
    try:
        return recommend(load_hardware(DEVICE), model, data_of(rows, tokens, supervised), inputs, seed=0)
    except NothingFitsError:
        return None


def plan_for(source: str, shape: str, situation: Situation, scale: float = 1.0) -> Recommendation | None:
    """Returns what is recommended on the data of a source, its rows ``scale`` times as long.

    What encoders were trained on is GLUE and the like in every source.
    """
    encoder = load_model(shape).kind != "causal_lm"
    found = CONDITIONS["encoders"] if encoder else CONDITIONS["sources"][source]
    return plan(shape, situation, found["rows"], scale * found["tokens"], scale * found["supervised"])


@functools.cache
def points_without(source: str) -> dict[str, float]:
    """Returns every method's quality points as the search spaces have them, fitted without a source.

    Half of the fitted effect, the tuned one where there is one, cut to a tenth and never below zero; a method that
    only this source compared has none.
    """
    pairs = [pair for pair in all_pairs() if pair.source != source]
    everything = quality.fit(pairs).effects
    fair = [pair for pair in pairs if pair.tuned]
    tuned = quality.fit(fair).effects if fair else {}
    return {name: counted_points(tuned.get(name, everything.get(name, 0.0))) for name in all_spaces()}


def counted_points(effect: float) -> float:
    """Returns what is counted on of an effect: half, cut to a tenth, never less than nothing."""
    return max(0.0, math.floor(5 * effect) / 10)


def first_without(source: str, found: Recommendation) -> RankedCandidate:
    """Returns the first candidate of a plan by scores that do not rest on a source; of equals the earlier one."""
    points = points_without(source)
    return max(found.candidates, key=lambda entry: rescored(entry, points, _own_points(entry, source)))


def rescored(entry: RankedCandidate, points: Mapping[str, float], own: float) -> float:
    """Returns a candidate's score with other points of its method, and without those of its situation that are lost."""
    return round(entry.score - entry.score_terms["method"] + points[entry.candidate.method] - own, 4)


def _own_points(entry: RankedCandidate, source: str) -> float:
    """Returns the points of a candidate's situation that come from the left-out paper."""
    paper = _paper(source)
    if not entry.score_terms["situation"] or paper is None:
        return 0.0
    every = all_spaces()[entry.candidate.method].situations
    return sum(each.points for each in every if each.source and paper in each.source)


def _paper(source: str) -> str | None:
    """Returns the number of a source's paper, as search spaces cite it."""
    return {"adalora_paper": "2303.10512", "loftq_paper": "2310.08659"}.get(source)


def configuration(entry: RankedCandidate, model: ModelSpec) -> Configuration:
    """Returns what of a candidate the published tables tell apart."""
    chosen = entry.candidate
    roles = {layer.role for layer in model.linear_layers if layer.name in chosen.target_modules}
    targets = "all" if "mlp" in roles or not chosen.target_modules else "attention"
    return Configuration(chosen.method, chosen.r, targets, chosen.quantization)


def recipe(found: Recommendation) -> Configuration:
    """Returns the recipe where a plan was made: LoRA of rank 16, or of rank 4 where the adapter may not be larger."""
    plain = next((entry.candidate for entry in found.baselines if entry.candidate is not None), None)
    rank = 16 if found.inputs.max_adapter_parameters is None else SMALL_RANK
    return Configuration("lora", rank, "all", "none" if plain is None else plain.quantization)
