"""Measures the optimizer steps of the largest batch, by the same code that trains."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autopeft.specs import TrainOutcome, TrainRequest
from autopeft.training.data import TokenData, TokenRow
from autopeft.training.session import TrainLog, device_type, outcome_of, peak_bytes, released_memory, reset_peak

if TYPE_CHECKING:
    from autopeft.training.session import Session

SCHEDULE_STEPS = 100
"""Steps that the method is told of, for AdaLoRA's schedule needs some; memory does not depend on them."""


def measure(
    session: Session, request: TrainRequest, on_step: Callable[[int], None], *, watch_allocations: bool
) -> TrainOutcome:
    """Returns the peak memory and the time of ``request.steps`` steps, without scores and without an adapter.

    Every step takes the longest rows of all splits, since the longest batch sets the peak.

    Args:
        session: the prepared job.
        request: the candidate; rungs are not asked for.
        on_step: told of each step.
        watch_allocations: on a host processor, follow torch's own allocator with its profiler. That takes memory of the
            process itself, so what the parent sees of the process is then no measurement.
    """
    with released_memory():
        reset_peak(session.job.device)
        # In a function of its own, so that nothing of this training is left when memory is released: what the next one
        # frees of it would be taken off its own peak.
        return _measured(session, request, on_step, watch_allocations=watch_allocations)


def _measured(
    session: Session, request: TrainRequest, on_step: Callable[[int], None], *, watch_allocations: bool
) -> TrainOutcome:
    from autopeft.training.trainer import CandidateTrainer, StepWatch, trainer_config

    log = TrainLog()
    device = session.job.device
    rows = longest_rows(session.data, request.candidate.effective_batch_size)
    parts = session.parts(replace(request, steps=SCHEDULE_STEPS), log)
    watch = StepWatch(request, lambda *_: True, on_step)
    config = trainer_config(request.candidate, request, device)
    trainer = CandidateTrainer(parts, config, rows, session.collator(parts.model), session.tokenizer)
    watch.trainer = trainer
    trainer.add_callback(watch)
    watching: contextlib.AbstractContextManager[list[int]] = contextlib.nullcontext([])
    if watch_allocations:
        watching = _watched_allocations(parts.model)
    with watching as peaks:
        trainer.train()
    log.steps, log.tokens = watch.steps_done, trainer.tokens
    log.train_seconds, log.first_step_seconds = watch.train_seconds, watch.first_step_seconds
    log.details |= {"longest_row_tokens": len(rows[0].input_ids), **_reserved(device)}
    return outcome_of("complete", log, peak=peaks[0] if peaks else peak_bytes(device))


def longest_rows(data: TokenData, count: int) -> tuple[TokenRow, ...]:
    """Returns the ``count`` longest rows of all splits, longest first; the longest repeat where there are too few."""
    rows = sorted(itertools.chain(*data.splits.values()), key=lambda row: (-len(row.input_ids), row.row))
    return tuple(itertools.islice(itertools.cycle(rows), count))


@contextlib.contextmanager
def _watched_allocations(model: Any) -> Iterator[list[int]]:
    """Watches torch's allocator on the host; at the end the list given holds the most bytes allocated at once.

    The allocator has no statistics of its own there (torch 2.13: ``torch.cpu`` has none, ``torch.accelerator`` refuses
    without an accelerator), but the profiler reports its every allocation from now on. The model came before.
    """
    from torch.profiler import ProfilerActivity, profile

    held = _model_bytes(model)
    peaks: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peaks
    # The public event tree sums memory up by operation; only the raw events have every allocation in order.
    changes = (event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]")
    peaks.append(held + max(itertools.accumulate(changes, initial=0)))


def _model_bytes(model: Any) -> int:
    tensors = itertools.chain(model.parameters(), model.buffers())
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def _reserved(device: str) -> dict[str, int]:
    if device_type(device) != "cuda":
        return {}
    import torch

    return {"max_reserved_bytes": int(torch.cuda.max_memory_reserved(device))}
