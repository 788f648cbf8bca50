"""Two real optimizer steps of one configuration, measured beside their prediction and kept for later predictions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autopeft.api._estimate import adapter_of, default_length, rest_of
from autopeft.errors import AutoPeftError, DataError, InvalidInputError, ModelError
from autopeft.specs import (
    Attention,
    Candidate,
    DatasetProfile,
    Device,
    Dtype,
    Job,
    MemoryEstimate,
    ModelSpec,
    Optimizer,
    Quantization,
    TrainerName,
    TrainOutcome,
    TrainRequest,
)
from autopeft.units import parse_bytes

if TYPE_CHECKING:
    from autopeft.memory.calibration_store import Observation
    from autopeft.training.client import WorkerRunner

STEPS = 2
"""The second step has the optimizer's states, and its time is without the first one's preparations."""

_MADE_UP_ROWS = 8
_HELD_OUT_ROWS = 2
"""What a job must hold out of each split; nothing is scored here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationResult:
    """What `autopeft.calibrate` measured and stored.

    Attributes:
        status: "oom" if the steps did not fit in the memory that they were given.
        device: name as the driver reports it.
        model: its id.
        candidate: what was trained.
        sequence_length: tokens of the longest row that was trained on, for which memory was predicted.
        observations: one for each measured figure and way of predicting it.
        store: the file that they were added to.
    """

    status: Literal["complete", "oom"]
    device: str
    model: str
    candidate: Candidate
    sequence_length: int
    observations: tuple[Observation, ...]
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """What is to be measured.

    Attributes:
        data: None for full rows, which are made up.
        limit_bytes: what the worker may use.
        trace: whether the trace's prediction is wanted too.
    """

    candidate: Candidate
    model: ModelSpec
    device: Device
    data: DatasetProfile | None
    limit_bytes: int
    trace: bool


def calibrate(
    *,
    model: str | Path,
    data: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    method: str = "lora",
    r: int | None = None,
    lora_alpha: float | None = None,
    target_modules: Sequence[str] | str | None = None,
    quantization: Quantization = "none",
    double_quantization: bool | None = None,
    dtype: Dtype = "bfloat16",
    adapter_dtype: Dtype | None = None,
    prepare_kbit: bool = False,
    batch_size: int = 1,
    sequence_length: int | None = None,
    activation_checkpointing: bool = False,
    attention: Attention = "sdpa",
    optimizer: Optimizer = "adamw_torch",
    trainer: TrainerName = "trl",
    budget_memory: int | str | None = None,
    trace: bool = False,
    on_step: Callable[[str, int, int], None] | None = None,
) -> CalibrationResult:
    """Runs two optimizer steps of the worst batch in a worker process and stores what they needed.

    The real code of a training runs on this machine's device, so the model's weights are needed. Later predictions for
    this device, model family and library versions are corrected by it. Running out of memory is a result too: it is
    stored as a lower bound.

    Args:
        model: hub id, local folder or .gguf file.
        data: measure its longest rows; None measures full rows of made-up text.
        columns: column mapping of the data, role to column.
        method: as for ``estimate``, and so all options up to ``trainer``.
        r: rank; None means 16.
        lora_alpha: None means what the method's search space recommends for the rank.
        target_modules: names of linear layers, or aliases; None means all-linear.
        quantization: storage of the frozen base.
        double_quantization: whether nf4's scales are quantized too; None means yes.
        dtype: type that the base is loaded in and computed with.
        adapter_dtype: None means float32.
        prepare_kbit: whether ``prepare_model_for_kbit_training`` runs.
        batch_size: rows of one forward.
        sequence_length: tokens of a row, or what the data's rows are truncated to; None means 1024 tokens, or with data
            the model's context.
        activation_checkpointing: recompute activations in backward.
        attention: attention implementation.
        optimizer: transformers' name.
        trainer: whose loss is computed.
        budget_memory: use no more device memory than this; None means what is free.
        trace: compare with a traced prediction too.
        on_step: told the measurement's name, the step done and the steps wanted.

    Raises:
        AutoPeftError: if an input is wrong, or the steps fail for another reason than memory.
    """
    options = locals()
    from autopeft.engine.stack import require_training_stack
    from autopeft.memory.calibration_store import CalibrationStore
    from autopeft.memory.explicit import explicit_candidate
    from autopeft.profiling.hardware import load_hardware
    from autopeft.profiling.model import load_model

    require_training_stack("autopeft calibrate")
    spec, device = load_model(str(model)), load_hardware("auto").device
    rest = rest_of(options, _length_limit(spec, sequence_length, given_data=data is not None))
    budget = device.free_memory_bytes if budget_memory is None else parse_bytes(str(budget_memory))
    trial = _Trial(
        candidate=explicit_candidate(spec, adapter_of(options), rest),
        model=spec,
        device=device,
        data=None if data is None else _profile(data, spec, columns),
        limit_bytes=min(budget, device.free_memory_bytes),
        trace=trace,
    )
    _refuse_what_cannot_train(trial)
    return _measured(trial, CalibrationStore(), on_step)


def _length_limit(model: ModelSpec, wanted: int | None, *, given_data: bool) -> int:
    context = model.context_length
    if wanted is not None:
        if wanted < 2 or (context is not None and wanted > context):
            raise InvalidInputError(
                f"sequence_length {wanted} is not possible: {model.id} is trained on 2 to {context or 'any'} tokens; "
                "give one of these"
            )
        return wanted
    if not given_data:
        return default_length(model)
    if context is None:
        raise InvalidInputError(f"{model.id} does not say how long its context is; give a sequence_length")
    return context


def _profile(data: str | Path, model: ModelSpec, columns: Mapping[str, str] | None) -> DatasetProfile:
    from autopeft.profiling.dataset import profile_dataset, why_not_trained

    profile = profile_dataset(str(data), model=model, columns=dict(columns) if columns else None)
    problem = why_not_trained(profile.format, profile.source)
    if problem is not None:
        raise DataError(problem)
    return profile


def _refuse_what_cannot_train(trial: _Trial) -> None:
    from autopeft.methods import get_method

    if trial.model.kind != "causal_lm":
        raise ModelError(
            f"autopeft trains causal language models; {trial.model.id} is an encoder ({trial.model.model_type}), "
            "which `autopeft estimate` prices but nothing here trains yet"
        )
    problem = get_method(trial.candidate.method).why_not(trial.candidate, trial.model, trial.device)
    if problem is not None:
        raise InvalidInputError(problem)


def _measured(trial: _Trial, store: Any, on_step: Callable[[str, int, int], None] | None) -> CalibrationResult:
    """Runs the worker, then predicts for the length that it met, and stores both."""
    from autopeft.resources import cache_folder
    from autopeft.training.client import WorkerRunner

    log = cache_folder() / "calibrate.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="autopeft-") as folder:
        runner = WorkerRunner(log, on_step)
        try:
            runner.prepare(_job(trial, Path(folder)))
            outcomes = _outcomes(runner, trial, folder)
        finally:
            runner.close()
    observations = _observations(trial, outcomes)
    if not observations:
        raise AutoPeftError(f"the worker ended before anything was measured: {outcomes[-1].error}")
    for observation in observations:
        store.append(observation)
    return CalibrationResult(
        status="oom" if outcomes[-1].status == "oom" else "complete",
        device=trial.device.name,
        model=trial.model.id,
        candidate=trial.candidate,
        sequence_length=observations[0].sequence_length,
        observations=observations,
        store=str(store.path),
    )


def _outcomes(runner: WorkerRunner, trial: _Trial, folder: str) -> list[TrainOutcome]:
    """Returns how the steps went; on a host processor twice: the process is measured first, then the allocator."""
    outcomes: list[TrainOutcome] = []
    for watched in (False, True) if trial.device.kind == "cpu" else (False,):
        name = "allocations" if watched else "memory"
        request = TrainRequest(
            name=f"measuring {name}", candidate=trial.candidate, steps=STEPS, rungs=(), seed=0, output_folder=folder
        )
        outcomes.append(runner.measure(request, watch_allocations=watched))
        if outcomes[-1].status == "oom":
            break
        if outcomes[-1].status != "complete":
            raise AutoPeftError(f"the {STEPS} steps could not be measured: {outcomes[-1].error}")
    return outcomes


def _job(trial: _Trial, folder: Path) -> Job:
    from autopeft.profiling.dataset import hash_files
    from autopeft.resources import cache_folder

    data, model = trial.data, trial.model
    files = data.files if data else (_made_up_rows(folder, trial.candidate.max_length),)
    return Job(
        model=model.path or model.id,
        revision=model.revision if model.format == "hub" else None,
        data_files=files,
        data_hash=data.content_hash if data else hash_files(files),
        data_format=data.format if data else "text",
        columns=data.columns if data else {"text": "text"},
        on_bad_row=data.on_bad_row if data else "error",
        max_length=trial.candidate.max_length,
        device=trial.device.kind,
        device_selector=trial.device.selector,
        memory_limit_bytes=trial.limit_bytes,
        cache_folder=str(cache_folder()),
        choose_rows=_HELD_OUT_ROWS,
        test_rows=_HELD_OUT_ROWS,
        seed=0,
    )


def _made_up_rows(folder: Path, tokens: int) -> str:
    """Writes rows of at least so many tokens, all of them supervised; a number is one token or more."""
    path = folder / "rows.jsonl"
    rows = (" ".join(str(row + number) for number in range(tokens)) for row in range(_MADE_UP_ROWS))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    return str(path)


def _observations(trial: _Trial, outcomes: Sequence[TrainOutcome]) -> tuple[Observation, ...]:
    """Returns each measured figure beside each prediction of it."""
    from autopeft.engine.stack import stack_versions
    from autopeft.memory.observing import Training, observations_of, step_seconds

    length = _row_length(trial, outcomes)
    training = Training(
        candidate=trial.candidate,
        model=trial.model,
        device=trial.device,
        data=trial.data.content_hash if trial.data else None,
        sequence_length=length,
        limit_bytes=trial.limit_bytes,
        versions=stack_versions(),
        source="calibrate",
    )
    # The profiler slows the second outcome's steps down.
    seconds = step_seconds(outcomes[0])
    pairs = ((estimate, outcome) for estimate in _estimates(trial, length) for outcome in outcomes)
    return tuple(
        observation
        for estimate, outcome in pairs
        for observation in observations_of(training, estimate, outcome, seconds=seconds)
    )


def _row_length(trial: _Trial, outcomes: Sequence[TrainOutcome]) -> int:
    met = [outcome.details.get("longest_row_tokens") for outcome in outcomes]
    lengths = [length for length in met if isinstance(length, int)]
    limit = trial.candidate.max_length
    if not lengths:
        # Out of memory at once. Of data the limit may be longer than its rows: the bound is then the weaker for it.
        return limit
    if trial.data is None and lengths[0] != limit:
        raise AutoPeftError(
            f"the tokenizer of {trial.model.id} made rows of {lengths[0]} tokens where {limit} were wanted; give --data"
        )
    return lengths[0]


def _estimates(trial: _Trial, length: int) -> list[MemoryEstimate]:
    from autopeft.memory.closed_form import estimate_memory
    from autopeft.memory.quiet import quiet_libraries

    found = [estimate_memory(trial.candidate, trial.model, trial.device, sequence_length=length)]
    if trial.trace:
        with quiet_libraries():
            from autopeft.memory.trace import trace_memory

            found.append(trace_memory(trial.candidate, trial.model, trial.device, sequence_length=length))
    return found
