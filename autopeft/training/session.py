"""What a worker holds between trainings, and how it trains and scores."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from autopeft.engine.adapters import enable_checkpointing, inject
from autopeft.engine.base import OriginalWeights, keep_differentiable, load_base
from autopeft.engine.device import require_device, torch_device
from autopeft.engine.loss import keeps_logits, prepare_loss
from autopeft.engine.optimizer import make_optimizer
from autopeft.engine.source import model_folder
from autopeft.engine.stack import stack_versions
from autopeft.engine.step import StepParts
from autopeft.memory.overhead import ACCELERATOR_CONTEXT_BYTES
from autopeft.methods import MethodContext, get_method
from autopeft.specs import (
    Candidate,
    Job,
    JobFacts,
    RungReport,
    ScoreRequest,
    Scores,
    TrainOutcome,
    TrainRequest,
)
from autopeft.training.checkpoint import fingerprint, open_checkpoints, read_progress
from autopeft.training.data import Collator, TokenData, cut_rows, load_data
from autopeft.training.scoring import ScoreError, score_rows

logger = logging.getLogger(__name__)

_WITH_STATISTICS = ("cuda", "xpu")
"""Kinds, as torch calls them, whose allocator keeps maxima."""


@dataclass(slots=True)
class TrainLog:
    """What one training has come to so far; it outlives an exception.

    Attributes:
        start: what the method wants to remember of the untrained adapter, to save it.
    """

    begin: float = field(default_factory=time.monotonic)
    curve: list[RungReport] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    train_seconds: float = 0.0
    first_step_seconds: float | None = None
    details: dict[str, object] = field(default_factory=dict)
    trainable_parameters: int | None = None
    start: dict[str, Any] | None = None


class Session:
    """One job, prepared: the model's folder, its tokenizer and the tokenized splits stay in memory."""

    def __init__(self, job: Job) -> None:
        from transformers import AutoTokenizer

        require_device(job.device)
        self.job = job = replace(job, device=torch_device(job.device))
        self.folder = model_folder(job.model, job.revision, Path(job.cache_folder))
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.data: TokenData = load_data(job, self.folder)
        _limit_memory(job)

    def facts(self) -> JobFacts:
        """Returns what was found."""
        splits = self.data.splits
        return JobFacts(
            rows={name: len(rows) for name, rows in splits.items()},
            tokens={name: sum(len(row.input_ids) for row in rows) for name, rows in splits.items()},
            supervised_tokens={name: sum(row.supervised_tokens for row in rows) for name, rows in splits.items()},
            dropped_rows=self.data.dropped_rows,
            truncated_rows=self.data.truncated_rows,
            lost_supervised_tokens=self.data.lost_supervised_tokens,
            versions=stack_versions(),
            device_name=device_name(self.job.device),
            split_hash=self.data.split_hash,
            row_numbers={name: tuple(row.row for row in rows) for name, rows in splits.items()},
        )

    def train(
        self,
        request: TrainRequest,
        go_on: Callable[[RungReport], bool],
        on_step: Callable[[int], None],
    ) -> TrainOutcome:
        """Trains one candidate; failures of the training are statuses, running out of memory is raised."""
        from autopeft.training.trainer import BrokenTrainingError, TimeUpError

        log = TrainLog()
        with released_memory():
            reset_peak(self.job.device)
            try:
                return self._train(request, go_on, on_step, log)
            except (BrokenTrainingError, ScoreError) as error:
                return outcome_of("failed", log, error=str(error))
            except TimeUpError as error:
                return outcome_of("timeout", log, error=str(error))

    def score(self, request: ScoreRequest) -> Scores:
        """Scores an adapter or the untouched base on one split, loaded afresh as a server would."""
        with released_memory():
            model = self._load_trained(request)
            return self._score(model, request.split, request.candidate)

    def _train(
        self,
        request: TrainRequest,
        go_on: Callable[[RungReport], bool],
        on_step: Callable[[int], None],
        log: TrainLog,
    ) -> TrainOutcome:
        from autopeft.training.trainer import CandidateTrainer, StepWatch, trainer_config

        parts = self.parts(request, log)

        def at_rung(step: int, train_loss: float) -> bool:
            scores = self._score(parts.model, "choose", request.candidate)
            report = _report(step, trainer.tokens, scores, train_loss, watch.train_seconds)
            log.curve.append(report)
            return go_on(report)

        watch = StepWatch(request, at_rung, on_step, log.curve)
        config = trainer_config(request.candidate, request, self.job.device)
        collator = self.collator(parts.model)
        trainer = CandidateTrainer(
            parts, config, cut_rows(self.data.splits["train"], request.candidate.max_length), collator, self.tokenizer
        )
        watch.trainer = trainer
        trainer.add_callback(watch)
        checkpoint = self._checkpoint(request)
        if checkpoint is not None:
            progress = read_progress(checkpoint)
            trainer.go_on_from(progress)
            watch.go_on_from(progress)
            log.curve.extend(progress.curve)
            log.details["resumed_at_step"] = progress.step
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            train_loss = log.curve[-1].train_loss if watch.pruned else trainer.take_train_loss(watch.steps_done)
            trainer.bare_model()
        finally:
            log.steps, log.tokens = watch.steps_done, trainer.tokens
            log.train_seconds, log.first_step_seconds = watch.train_seconds, watch.first_step_seconds
            shutil.rmtree(Path(request.output_folder) / ".trainer", ignore_errors=True)
        log.details |= parts.method.details(parts.model)
        scores = self._score(parts.model, "choose", request.candidate)
        if not watch.pruned:
            log.curve.append(_report(watch.steps_done, trainer.tokens, scores, train_loss, watch.train_seconds))
        folder = self._save(parts.model, request, log)
        status: Literal["pruned", "complete"] = "pruned" if watch.pruned else "complete"
        return outcome_of(status, log, scores=scores, adapter_folder=folder, peak=peak_bytes(self.job.device))

    def parts(self, request: TrainRequest, log: TrainLog) -> StepParts:
        """Returns the loaded base with its adapter, ready for the first step."""
        from transformers import set_seed

        candidate = request.candidate
        method = get_method(candidate.method)
        context = MethodContext(
            candidate=candidate,
            steps=request.steps,
            seed=request.seed,
            weights=OriginalWeights(self.folder),
            batches=lambda: self._batches(candidate, request.seed),
        )
        base = load_base(self.folder, candidate, self.job.device)
        keep_differentiable(base)
        prepare_loss(base, candidate.trainer)
        # The adapter's random start comes from the seed too, or "same seed" is not the same run.
        set_seed(request.seed)
        model = inject(base, candidate, request.steps)
        log.details |= method.prepare(model, context)
        log.start = method.snapshot(model)
        if candidate.activation_checkpointing:
            enable_checkpointing(model)
        log.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        optimizer = make_optimizer(model, candidate)
        return StepParts(
            model=model, method=method, context=context, optimizer=optimizer, device_type=device_type(self.job.device)
        )

    def _batches(self, candidate: Candidate, seed: int) -> Iterator[dict[str, Any]]:
        """Yields the training rows in whole batches, in an order of their own that the seed decides."""
        import torch

        rows = cut_rows(self.data.splits["train"], candidate.max_length)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        collate = Collator(self.tokenizer.pad_token_id, keeps_logits=False)
        size = min(candidate.per_device_batch_size, len(rows))
        for start in range(0, len(rows) - size + 1, size):
            yield collate([rows[number].columns for number in order[start : start + size]])

    def _checkpoint(self, request: TrainRequest) -> Path | None:
        """Returns the checkpoint that a training goes on from."""
        if request.checkpoint_folder is None:
            return None
        return open_checkpoints(Path(request.checkpoint_folder), fingerprint(self.job, request))

    def _load_trained(self, request: ScoreRequest) -> Any:
        candidate = request.candidate
        whole = request.adapter_folder is not None and not get_method(candidate.method).has_adapter
        folder = Path(request.adapter_folder) if whole and request.adapter_folder else self.folder
        base = load_base(folder, candidate, self.job.device)
        prepare_loss(base, candidate.trainer)
        if request.adapter_folder is None or whole:
            return base
        from peft import PeftModel

        return PeftModel.from_pretrained(base, request.adapter_folder)

    def _score(self, model: Any, split: str, candidate: Candidate) -> Scores:
        return score_rows(model, self.data.splits[split], self.collator(model), candidate, self.job.device)

    def collator(self, model: Any) -> Collator:
        """Returns what turns rows into batches of a model."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return Collator(self.tokenizer.pad_token_id, keeps_logits=keeps_logits(base))

    def _save(self, model: Any, request: TrainRequest, log: TrainLog) -> str:
        folder = Path(request.output_folder)
        _name_base(model, self.job)
        method = get_method(request.candidate.method)
        method.save(model, folder, log.start)
        if not method.has_adapter:
            self.tokenizer.save_pretrained(folder)
        return str(folder)


def _name_base(model: Any, job: Job) -> None:
    """Writes the base model as the user named it into the adapter's configuration."""
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = job.model
        config.revision = job.revision


def _report(step: int, tokens: int, scores: Scores, train_loss: float, seconds: float) -> RungReport:
    return RungReport(step=step, tokens=tokens, eval_loss=scores.eval_loss, train_loss=train_loss, seconds=seconds)


def outcome_of(
    status: Literal["complete", "pruned", "failed", "oom", "timeout"],
    log: TrainLog,
    *,
    scores: Scores | None = None,
    adapter_folder: str | None = None,
    peak: int | None = None,
    error: str | None = None,
) -> TrainOutcome:
    """Returns how a training ended, with what its log has come to."""
    return TrainOutcome(
        status=status,
        steps=log.steps,
        tokens=log.tokens,
        seconds=time.monotonic() - log.begin,
        train_seconds=log.train_seconds,
        first_step_seconds=log.first_step_seconds,
        scores=scores,
        curve=tuple(log.curve),
        measured_peak_bytes=peak,
        measured_peak_kind=None if peak is None else "max_allocated",
        trainable_parameters=log.trainable_parameters,
        adapter_folder=adapter_folder,
        details=log.details,
        error=error,
    )


@contextlib.contextmanager
def released_memory() -> Iterator[None]:
    """Gives memory back to the device and to the system, so that one training's peak is not the next one's."""
    try:
        yield
    finally:
        import torch

        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def device_type(device: str) -> str:
    """Returns the kind of a device: "cuda" of "cuda:0"."""
    return device.partition(":")[0]


def _limit_memory(job: Job) -> None:
    """Keeps torch's allocator within the job's limit: on CUDA and ROCm, and by Metal's share on MPS."""
    if job.memory_limit_bytes is None:
        return
    import torch

    if job.device == "mps":
        torch.mps.set_per_process_memory_fraction(min(1.0, job.memory_limit_bytes / torch.mps.recommended_max_memory()))
    if device_type(job.device) != "cuda":
        return
    # By index: torch refuses "cuda" here. The fraction limits the allocator; the context comes on top of it.
    index = torch.cuda.current_device()
    total_bytes = torch.cuda.get_device_properties(index).total_memory
    allocator_bytes = job.memory_limit_bytes - ACCELERATOR_CONTEXT_BYTES
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, allocator_bytes / total_bytes)), index)


def reset_peak(device: str) -> None:
    """Lets the maxima of a CUDA, ROCm or Intel device's allocator begin anew."""
    if device_type(device) in _WITH_STATISTICS:
        import torch

        torch.get_device_module(device).reset_peak_memory_stats(device)


def peak_bytes(device: str) -> int | None:
    """Returns the maximum allocated on a device whose allocator counts it; None elsewhere.

    Of a processor the parent watches resident memory; Metal's allocator keeps no maximum.
    """
    if device_type(device) not in _WITH_STATISTICS:
        return None
    import torch

    return int(torch.get_device_module(device).max_memory_allocated(device))


def device_name(device: str) -> str:
    """Returns the name of what computes, as its driver reports it; the device itself where there is none."""
    if device_type(device) in _WITH_STATISTICS:
        import torch

        return str(torch.get_device_module(device).get_device_name(device))
    return device
