"""What needs no training: a recommendation, the price of one configuration, the registry."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from autopeft.api._baseline import SHOTS, StepWatcher, with_base_scores
from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.specs import Objective, PlanInputs, Recommendation, to_dict
from autopeft.specs.data import OnBadRow
from autopeft.units import parse_bytes, parse_duration

if TYPE_CHECKING:
    from autopeft.memory.calibration import Calibration


def suggest(
    *,
    model: str | Path,
    data: str | Path,
    hardware: str | Path = "auto",
    budget_memory: int | str | None = None,
    methods: str | Iterable[str] = (),
    effective_batch_size: int | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
    objective: Objective = "balanced",
    max_time: float | str | None = None,
    max_cost: float | None = None,
    price_per_hour: float | None = None,
    price_per_kwh: float | None = None,
    max_adapter_parameters: int | None = None,
    serve: str | None = None,
    full_data: bool = False,
    seed: int = 0,
    trace: int = 0,
    environment: str | Path | None = None,
    calibration: bool = True,
    baseline: bool = False,
    baseline_rows: int | None = None,
    baseline_shots: int = SHOTS,
    on_step: StepWatcher | None = None,
) -> Recommendation:
    """Returns ranked candidates for a model, data and a device; needs no GPU, no weights and no torch.

    Args:
        model: hub id, local folder, .gguf file, or a name from ``profiles/models``.
        data: JSONL, JSON, CSV, Parquet, Arrow or text file, folder, or hub data set id.
        hardware: "auto" for this machine, "cpu" for its processor, catalogue names ("2x rtx-4090"), or a YAML file.
        budget_memory: use no more device memory than this: bytes, or a text such as "16GiB".
        methods: consider these only, one name or several; empty means all.
        effective_batch_size: rows per optimizer step; None chooses from the data.
        max_length: truncate rows to this many tokens; None chooses from the data.
        columns: column mapping, role to column: ``{"prompt": "question"}``.
        on_bad_row: what to do with rows that cannot be read or do not fit the format: "error", or "skip", which leaves
            them out, counts them and lets a run read the same rows.
        objective: what the order weighs most: "quality", "balanced", "memory", "speed" or "cost".
        max_time: of one full training: seconds, or a text such as "8h"; what takes longer is rejected.
        max_cost: of one full training, in the currency of the prices; what costs more is rejected.
        price_per_hour: of the device; None means its profile's, where that has one.
        price_per_kwh: of energy, on top of the hours.
        max_adapter_parameters: parameters that the finished adapter may have.
        serve: where the result is to be served, a name of ``profiles/serving`` ("vllm"); None means anywhere.
        full_data: count the tokens of every row, on all cores, instead of a sample's.
        seed: of everything random; the same seed gives the same plan.
        trace: trace the memory of the best so many candidates (needs ``autopeft[train]``).
        environment: trace them in this virtual environment, or with its python, whose libraries will train.
        calibration: correct by what was measured on this machine ("auto" hardware only).
        baseline: score the untouched model on the data first (needs weights and ``autopeft[train]``): the plan's first
            note then says whether there is anything to fine-tune for.
        baseline_rows: as ``rows`` of ``baseline``.
        baseline_shots: as ``shots`` of ``baseline``.
        on_step: told how far the baseline is: stage, rows done, rows wanted.

    Raises:
        NothingFitsError: with the smallest estimate, what it lacks and what would help.
        AutoPeftError: if an input cannot be read or understood.
    """
    from autopeft.memory.calibration import calibration_for
    from autopeft.memory.pricing import price_memory
    from autopeft.memory.reference import REFERENCE_VERSIONS
    from autopeft.methods import get_method
    from autopeft.profiling.dataset import Reading, profile_dataset
    from autopeft.profiling.hardware import load_hardware
    from autopeft.profiling.model import load_model
    from autopeft.recommend import recommend

    if trace < 0:
        raise InvalidInputError(f"trace says how many candidates to trace; it cannot be {trace}")
    if environment is not None and not trace:
        raise InvalidInputError("an environment is where candidates are traced; say how many: trace=N (--trace N)")
    inputs = PlanInputs(
        model=str(model),
        data=str(data),
        hardware=str(hardware),
        budget_memory_bytes=_budget_bytes(budget_memory),
        methods=tuple(get_method(name).name for name in as_names(methods)),
        effective_batch_size=effective_batch_size,
        max_length=max_length,
        columns=dict(columns) if columns else None,
        objective=_objective(objective),
        max_seconds=parse_duration(max_time) if isinstance(max_time, str) else max_time,
        max_cost=max_cost,
        price_per_hour=price_per_hour,
        price_per_kwh=price_per_kwh,
        max_adapter_parameters=max_adapter_parameters,
        serve=serve,
    )
    profile = load_hardware(inputs.hardware)
    spec = load_model(inputs.model)
    reading = Reading(coverage="all" if full_data else "sample")
    dataset = profile_dataset(
        inputs.data,
        model=spec,
        columns=inputs.columns,
        seed=seed,
        on_bad_row=on_bad_row,
        reading=reading,
    )
    # A plan may be run from another folder than it was made in.
    dataset = replace(dataset, files=tuple(str(Path(file).absolute()) for file in dataset.files))
    if baseline:
        budget = inputs.budget_memory_bytes if inputs.hardware == "auto" else None  # it is scored on this machine
        dataset = with_base_scores(dataset, spec, baseline_rows, baseline_shots, seed, budget, on_step)
    known = calibration_for(profile, dataset.content_hash) if calibration else None
    plan = recommend(profile, spec, dataset, inputs, seed=seed, price=known.pricer(price_memory) if known else None)
    first = (dataset.base_scores.advice.sentence,) if dataset.base_scores and dataset.base_scores.advice else ()
    plan = replace(plan, versions=dict(REFERENCE_VERSIONS), notes=(*first, *plan.notes))
    return _traced(plan, trace, environment, known) if trace else plan


def describe_methods() -> list[dict[str, Any]]:
    """Returns every registered method as JSON data: name, title, paper, update rule, its search space."""
    from autopeft.methods import registry
    from autopeft.spaces import spaces_for

    spaces = spaces_for(registry()).methods
    return [
        {
            "name": name,
            "title": method.title,
            "summary": spaces[name].summary,
            "update_rule": method.update_rule,
            "paper": method.paper,
            "has_adapter": method.has_adapter,
            "space": to_dict(spaces[name]),
        }
        for name, method in registry().items()
    ]


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Returns one name, or several, as a tuple: a text is one name, not its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def _traced(
    plan: Recommendation, count: int, environment: str | Path | None, known: Calibration | None
) -> Recommendation:
    from autopeft.memory.trace import trace_memory
    from autopeft.recommend import price_best

    price: Any = trace_memory
    if environment is not None:
        price = functools.partial(trace_memory, environment=environment)
    elif known is not None:
        price = known.pricer(trace_memory)
    # The plan keeps the closed form's versions; what is traced names its own.
    return price_best(plan, count, price)


def _objective(name: str) -> Objective:
    known: tuple[Objective, ...] = get_args(Objective)
    for objective in known:
        if objective == name:
            return objective
    raise UnknownNameError("objective", name, known)


def _budget_bytes(budget: int | str | None) -> int | None:
    if isinstance(budget, int) and budget <= 0:
        raise InvalidInputError(f"a memory budget must be a positive number of bytes, not {budget}")
    return None if budget is None else parse_bytes(str(budget))
