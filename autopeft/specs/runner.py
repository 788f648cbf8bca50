"""The seam between the search and whatever trains: a real worker process or the fake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from autopeft.specs.candidate import Candidate
from autopeft.specs.data import OnBadRow, SplitBy
from autopeft.specs.hardware import DeviceKind

SplitName = Literal["train", "choose", "test"]
"""``choose`` ranks candidates; ``test`` is scored once, at the end, and never used for choosing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What stays the same for every trial of a run.

    Attributes:
        model: local folder or GGUF file or hub id.
        revision: hub commit; None for local files.
        data_files: files of the data set, in order.
        data_hash: expected content hash; the runner refuses other data.
        columns: role -> column name.
        data_format: how rows are understood (``DatasetProfile.format``).
        max_length: tokens that a row is truncated to.
        device: kind of the device: "cuda", "rocm", "cpu", ...
        memory_limit_bytes: a trial over it is stopped as "oom"; None means no limit.
        cache_folder: where converted models and tokenized data may be kept.
        choose_rows: rows of the choose split.
        test_rows: rows of the test split.
        seed: of the splits.
        on_bad_row: as in ``DatasetProfile.on_bad_row``, so that plan and run read the same rows.
        device_selector: ``Device.selector`` of the device that the plan uses; None for the first one.
        split_by: as in ``DatasetProfile.split_by``.
    """

    model: str
    revision: str | None
    data_files: tuple[str, ...]
    data_hash: str
    data_format: str
    columns: dict[str, str]
    max_length: int
    device: DeviceKind
    memory_limit_bytes: int | None
    cache_folder: str
    choose_rows: int
    test_rows: int
    seed: int
    on_bad_row: OnBadRow = "error"
    device_selector: str | None = None
    split_by: SplitBy = "prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What the runner found when it prepared the job.

    Attributes:
        rows: split -> rows.
        tokens: split -> tokens, padding excluded.
        supervised_tokens: split -> tokens on which the loss counts.
        dropped_rows: rows without any supervised token after truncation.
        versions: library -> version.
        device_name: what trains.
        split_hash: hash of the row numbers of the splits.
        row_numbers: split -> 0-based numbers of its rows in the data set, in the order of their scores.
        truncated_rows: rows cut at max_length, dropped ones included.
        lost_supervised_tokens: supervised tokens beyond the cut, those of dropped rows included.
    """

    rows: dict[str, int]
    tokens: dict[str, int]
    supervised_tokens: dict[str, int]
    dropped_rows: int
    versions: dict[str, str]
    device_name: str
    split_hash: str
    row_numbers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    truncated_rows: int = 0
    lost_supervised_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One training of one candidate.

    Attributes:
        name: folder-safe name, unique in the run: "trial-0003", "final-winner".
        steps: optimizer steps, from the schedule's start to its end.
        rungs: steps after which the choose split is scored and the caller decides whether to go on; increasing,
            all below ``steps``. The choose split is always scored after the last step.
        output_folder: where the adapter is saved; it exists.
        seconds_limit: stop with status "timeout" after so many seconds of training; None means no limit.
        checkpoint_folder: of the training's checkpoints, from which it goes on where it was killed; None: it has none.
        allow_shorter: whether training rows may be cut further where memory runs out and nothing else helps.
    """

    name: str
    candidate: Candidate
    steps: int
    rungs: tuple[int, ...]
    seed: int
    output_folder: str
    seconds_limit: float | None = None
    allow_shorter: bool = False
    checkpoint_folder: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RungReport:
    """What is known of a training in progress at one rung."""

    step: int
    tokens: int
    eval_loss: float
    train_loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Held-out loss, kept per example so that comparisons can be paired.

    Attributes:
        eval_loss: ``sum(losses) / sum(supervised_tokens)``: mean negative log-likelihood of a supervised token, nats.
        losses: summed negative log-likelihood of each row, in split order.
        supervised_tokens: supervised tokens of each row.
        seconds: what scoring took.
    """

    eval_loss: float
    losses: tuple[float, ...]
    supervised_tokens: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Scores an adapter, or the untouched base model, on one split.

    Attributes:
        adapter_folder: a saved adapter (or a full model); None scores the untouched base.
        candidate: what it was trained as; its quantization and dtype load the base.
    """

    name: str
    split: SplitName
    candidate: Candidate
    adapter_folder: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """How one training ended.

    Attributes:
        status: "pruned" when the caller said stop at a rung.
        steps: optimizer steps done.
        tokens: tokens trained on, padding excluded.
        seconds: all of it: load, inject, train, score, save.
        train_seconds: optimizer steps alone.
        first_step_seconds: the first of them, which also compiles and allocates; None if no step was done.
        scores: the choose split after the last step done; None unless it was scored.
        curve: one report a rung, the last step included.
        measured_peak_bytes: CUDA: maximum allocated; CPU: peak resident memory of the worker. None if unknown.
        details: what the method reports ("rank_pattern", "quantization_error_before", ...), and "memory_ladder": each
            step down that was taken because memory ran out.
        error: what went wrong, for "failed", "oom" and "timeout"; None otherwise.
        trained: what was really trained, where memory ran out and settings were stepped down; None: what was asked for.
    """

    status: Literal["complete", "pruned", "failed", "oom", "timeout"]
    steps: int
    tokens: int
    seconds: float
    train_seconds: float
    scores: Scores | None
    curve: tuple[RungReport, ...]
    measured_peak_bytes: int | None
    measured_peak_kind: Literal["max_allocated", "resident"] | None = None
    first_step_seconds: float | None = None
    trainable_parameters: int | None = None
    adapter_folder: str | None = None
    details: dict[str, object] = field(default_factory=dict)
    error: str | None = None
    trained: Candidate | None = None


class Runner(Protocol):
    """Trains and scores candidates. A runner outlives the failure of any one of them.

    ``prepare`` comes first, once; ``close`` is safe to call at any time, more than once.
    Failures of one training are statuses; WorkerError is raised only when no worker can be had at all.
    """

    def prepare(self, job: Job) -> JobFacts:
        """Loads, splits and tokenizes the data; returns what was found."""
        ...

    def train(self, request: TrainRequest, go_on: Callable[[RungReport], bool]) -> TrainOutcome:
        """Trains one candidate; ``go_on`` is asked at every rung and False prunes."""
        ...

    def score(self, request: ScoreRequest) -> Scores:
        """Scores an adapter or the untouched base on one split."""
        ...

    def refresh(self) -> None:
        """Lets the next command run in a fresh worker, without what earlier trainings left in memory."""
        ...

    def clock(self) -> float:
        """Returns seconds of a steady clock; a fake's runs as fast as its trials say."""
        ...

    def close(self) -> None:
        """Ends the worker."""
        ...
