"""What the untouched base model already does on the data, so that nobody fine-tunes for nothing."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.errors import InvalidInputError, ModelError, NothingFitsError
from autopeft.specs import (
    BaseRequest,
    BaseScores,
    Candidate,
    DatasetProfile,
    Device,
    Job,
    ModelSpec,
    Quantization,
)
from autopeft.specs.data import Coverage, OnBadRow
from autopeft.units import format_gib, parse_bytes

MOST_ROWS = 128
"""Scored rows where no number is given and time allows: 0.94 then has a 95 % interval of 0.88 to 0.97 (Wilson)."""

SHOTS = 4
POOL_ROWS = 256
"""Rows sampled beside the scored ones, of which the examples of the prompt are drawn."""

LONGEST_TOKENS = 4096
"""Rows and prompts are scored up to this length, or up to the model's context if that is shorter."""

WEIGHTS_SHARE = 0.7
"""Share of the free memory that the weights may take: the rest is for activations, keys and values and libraries."""

_BYTES_OF_DTYPE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_NF4_BYTES = 0.75
"""Of a parameter stored as nf4, with its scales and what stays in 16 bits. A judgement on the safe side."""

_HELD_OUT_ROWS = 2
"""What a job must hold out for the test split, which is not used here."""

StepWatcher = Callable[[str, int, int], None]


def baseline(
    *,
    model: str | Path,
    data: str | Path,
    columns: Mapping[str, str] | None = None,
    rows: int | None = None,
    shots: int = SHOTS,
    budget_memory: int | str | None = None,
    seed: int = 0,
    on_step: StepWatcher | None = None,
) -> BaseScores:
    """Returns what the untouched base model scores on a seeded sample of the data, zero-shot and with examples.

    Runs on this machine's device in a worker process; needs the weights and ``autopeft[train]``.

    Args:
        model: hub id, local folder or .gguf file.
        data: as for ``suggest``.
        columns: column mapping, role to column.
        rows: scored at most; half of them are answered by generation where answers are right or wrong, a quarter where
            they are only more or less alike. None means as many as take about a minute and a half here, 128 at most;
            the result says how many, and asking for that number gives the same figures.
        shots: examples in the prompt; 0 scores zero-shot alone.
        budget_memory: use no more device memory than this; None means what is free.
        seed: of sample, examples and resampling.
        on_step: told the stage, the rows done and the rows wanted.

    Raises:
        AutoPeftError: if an input is wrong, the model does not fit, or there is nothing to score it by.
    """
    from autopeft.profiling.dataset import profile_dataset
    from autopeft.profiling.model import load_model

    spec = load_model(str(model))
    profile = profile_dataset(str(data), model=spec, columns=dict(columns) if columns else None, seed=seed)
    budget = None if budget_memory is None else parse_bytes(str(budget_memory))
    found = with_base_scores(profile, spec, rows, shots, seed, budget, on_step).base_scores
    assert found is not None, "just scored"
    return found


def describe_data(
    source: str | Path,
    *,
    model: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
    seed: int = 0,
    coverage: Coverage = "all",
    workers: int | None = None,
    held_out: str | Path | None = None,
    baseline: bool = False,
    baseline_rows: int | None = None,
    baseline_shots: int = SHOTS,
    on_first_look: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_step: StepWatcher | None = None,
) -> DatasetProfile:
    """Returns a data set's profile as a model would read it, on request with what that model does on it untouched.

    Args:
        source: as ``data`` of ``suggest``.
        model: counts tokens with its tokenizer and template; None means lengths are estimated.
        columns: column mapping, role to column.
        on_bad_row: as for ``suggest``.
        seed: of every sample.
        coverage: "all" rows on all cores, or the "sample" that ``suggest`` reads.
        workers: processes that read all rows; None means one a core.
        held_out: file or folder of held-out rows that leakage is looked for in.
        baseline: score the untouched model too.
        baseline_rows: as ``rows`` of ``baseline``.
        baseline_shots: as ``shots`` of ``baseline``.
        on_first_look: told what a sample says, in a sentence, before all rows are read.
        on_progress: told the bytes read and the bytes there are.
        on_step: told how far the baseline is: stage, rows done, rows wanted.

    Raises:
        AutoPeftError: as ``baseline`` does.
    """
    from autopeft.profiling.dataset import Reading, first_look, profile_dataset
    from autopeft.profiling.model import load_model

    if baseline and model is None:
        raise InvalidInputError("the baseline is a model's: say which (--model)")
    spec = None if model is None else load_model(str(model))
    asked: dict[str, Any] = {"model": spec, "columns": dict(columns or {}), "on_bad_row": on_bad_row, "seed": seed}
    if coverage == "all" and on_first_look is not None:
        on_first_look(first_look(str(source), **asked).sentence)
    against = None if held_out is None else str(held_out)
    reading = Reading(coverage=coverage, workers=workers, on_progress=on_progress, held_out=against)
    profile = profile_dataset(str(source), **asked, reading=reading)
    if not baseline or spec is None:
        return profile
    return with_base_scores(profile, spec, baseline_rows, baseline_shots, seed, on_step=on_step)


def with_base_scores(
    data: DatasetProfile,
    model: ModelSpec,
    rows: int | None = None,
    shots: int = SHOTS,
    seed: int = 0,
    budget_bytes: int | None = None,
    on_step: StepWatcher | None = None,
) -> DatasetProfile:
    """Returns the profile with the base model's scores, the advice that follows, and a finding on the distance."""
    from autopeft.recommend.untouched import distance_finding, untouched_advice

    if (rows is not None and rows < 2) or shots < 0:
        raise InvalidInputError(f"the baseline scores at least 2 rows with 0 or more examples, not {rows} with {shots}")
    if model.kind == "encoder":
        scores = _encoder_scores(data, model, seed)
    else:
        scores = _decoder_scores(data, model, rows, shots, seed, budget_bytes, on_step)
    scores = replace(scores, advice=untouched_advice(scores))
    finding = distance_finding(scores)
    order = ("error", "warning", "info")
    findings = sorted([*data.findings, *([finding] if finding else [])], key=lambda each: order.index(each.severity))
    return replace(data, base_scores=scores, findings=tuple(findings))


def _decoder_scores(
    data: DatasetProfile,
    model: ModelSpec,
    rows: int | None,
    shots: int,
    seed: int,
    budget_bytes: int | None,
    on_step: StepWatcher | None,
) -> BaseScores:
    from autopeft.engine.device import unverified_note
    from autopeft.engine.stack import require_training_stack
    from autopeft.profiling.hardware import load_hardware
    from autopeft.resources import cache_folder
    from autopeft.training.client import WorkerRunner

    require_training_stack("the baseline")
    device = load_hardware("auto").device
    limit = min(device.free_memory_bytes, budget_bytes or device.free_memory_bytes)
    request = BaseRequest(
        candidate=_base_candidate(model, device, limit),
        rows=rows,
        shots=shots,
        seed=seed,
        labels=tuple(data.label_counts),
    )
    log = cache_folder() / "baseline.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="autopeft-") as folder:
        sample = Path(folder) / "sample.jsonl"
        # As many whatever is asked for up to MOST_ROWS, so that fewer rows are the first of more.
        most = max(MOST_ROWS, rows or 0)
        numbers = _write_sample(data, sample, most, seed)
        runner = WorkerRunner(log, on_step)
        try:
            runner.prepare(_job(data, model, device, limit, sample, rows=min(most, len(numbers) // 2), seed=seed))
            scores = runner.baseline(request)
        finally:
            runner.close()
    unverified = unverified_note(device.kind)
    notes = (*scores.notes, *([unverified] if unverified else []))
    return _in_the_data_set(replace(scores, notes=notes), numbers)


def _base_candidate(model: ModelSpec, device: Device, limit_bytes: int) -> Candidate:
    """Returns a candidate whose base fits: in 16 bits (float32 where the device has no better), else as nf4.

    Raises:
        NothingFitsError: if neither does.
    """
    from autopeft.memory.storage import quantization_problem
    from autopeft.recommend.narrowing import EAGER_MODEL_TYPES, device_dtype

    dtype = device_dtype(device)
    room = WEIGHTS_SHARE * limit_bytes
    needs: dict[Quantization, float] = {"none": _BYTES_OF_DTYPE[dtype], "nf4": _NF4_BYTES}
    fitting: list[Quantization] = [
        name
        for name, size in needs.items()
        if model.parameter_count * size <= room and quantization_problem(name, model, device) is None
    ]
    if not fitting:
        raise NothingFitsError(
            f"the weights of {model.id} need {format_gib(round(model.parameter_count * _BYTES_OF_DTYPE[dtype]))} in "
            f"{dtype} to be scored, and {device.name} has {format_gib(limit_bytes)} for them and all else; score the "
            "baseline on a larger device"
        )
    return Candidate(
        method="lora",
        r=None,
        lora_alpha=None,
        quantization=fitting[0],
        double_quantization=fitting[0] == "nf4",
        dtype=dtype,
        attention="eager" if model.model_type in EAGER_MODEL_TYPES else "sdpa",
    )


def _write_sample(data: DatasetProfile, path: Path, rows: int, seed: int) -> tuple[int, ...]:
    """Writes a seeded sample of the rows, in random order, as JSONL; returns their 0-based numbers in the data set.

    In random order, because the first of them are the ones that are answered by generation.
    """
    import msgspec

    from autopeft.profiling.dataset import good_rows

    count = min(data.example_count, rows + POOL_ROWS + _HELD_OUT_ROWS)
    numbers = random.Random(seed).sample(range(data.example_count), count)
    wanted = set(numbers)
    lines = {number: msgspec.json.encode(row.values) for number, row in enumerate(good_rows(data)) if number in wanted}
    path.write_bytes(b"".join(lines[number] + b"\n" for number in numbers))
    return tuple(numbers)


def _job(
    data: DatasetProfile, model: ModelSpec, device: Device, limit_bytes: int, sample: Path, *, rows: int, seed: int
) -> Job:
    from autopeft.profiling.dataset import hash_files
    from autopeft.resources import cache_folder

    return Job(
        model=model.path or model.id,
        revision=model.revision if model.format == "hub" else None,
        data_files=(str(sample),),
        data_hash=hash_files((str(sample),)),
        data_format=data.format,
        columns=data.columns,
        max_length=min(LONGEST_TOKENS, model.context_length or LONGEST_TOKENS),
        device=device.kind,
        device_selector=device.selector,
        memory_limit_bytes=limit_bytes,
        cache_folder=str(cache_folder()),
        choose_rows=rows,
        test_rows=_HELD_OUT_ROWS,
        seed=seed,
    )


def _in_the_data_set(scores: BaseScores, numbers: Sequence[int]) -> BaseScores:
    """Returns the scores with the rows' numbers in the data set instead of those in the sample."""
    shots = tuple(replace(each, shot_rows=tuple(numbers[number] for number in each.shot_rows)) for each in scores.shots)
    return replace(scores, rows=tuple(numbers[number] for number in scores.rows), shots=shots)


def _encoder_scores(data: DatasetProfile, model: ModelSpec, seed: int) -> BaseScores:
    """Returns what always guessing the most frequent label scores: an encoder has no trained head to score.

    Raises:
        ModelError: if the data has no labels.
    """
    from autopeft.engine.stack import require_training_stack
    from autopeft.training.intervals import share_of_rows

    if not data.label_counts:
        raise ModelError(
            f"{model.id} is an encoder ({model.model_type}), which answers nothing by itself; its baseline is the most "
            f"frequent label, and {data.source} has no labels"
        )
    require_training_stack("the baseline")
    most, *others = data.label_counts.values()
    return BaseScores(
        model=model.id,
        task="labels",
        seed=seed,
        rows=(),
        trivial=replace(share_of_rows("accuracy", [1.0] * most + [0.0] * sum(others)), per_example=()),
        seconds={},
        notes=(f"all {data.example_count} rows are counted; no weights were needed",),
    )
