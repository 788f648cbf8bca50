"""The real runner: trains in a worker process that may die without harming the search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPeftError, DataError, InvalidInputError, ModelError, RunFolderError, WorkerError
from autopeft.specs import (
    BaseRequest,
    BaseScores,
    Job,
    JobFacts,
    RungReport,
    ScoreRequest,
    Scores,
    TrainOutcome,
    TrainRequest,
    from_dict,
)
from autopeft.training.ladder import train_within_memory
from autopeft.training.process import WorkerGoneError, WorkerProcess
from autopeft.training.protocol import OOM_EXIT
from autopeft.units import format_gib

GROWTH_LIMIT = 1.3
"""A worker is replaced when its idle memory has grown by this factor since its first training."""

_ERRORS: dict[str, type[AutoPeftError]] = {
    error.__name__: error for error in (DataError, ModelError, InvalidInputError, RunFolderError)
}


class WorkerRunner:
    """Runs trainings in one long-lived worker, replaced when it dies or runs out of memory."""

    def __init__(self, log_file: Path, on_step: Callable[[str, int, int], None] | None = None) -> None:
        """Prepares a runner; the worker starts with the first command.

        Args:
            log_file: where everything that the worker's libraries print goes.
            on_step: told the training's name, the step done and the steps wanted.
        """
        self._log_file = log_file
        self._on_step = on_step
        self._worker: WorkerProcess | None = None
        self._job: Job | None = None
        self._idle_bytes: int | None = None

    def prepare(self, job: Job) -> JobFacts:
        """Starts the worker and lets it load, split and tokenize the data.

        Raises:
            AutoPeftError: of the kind that the worker met (DataError, ModelError, ...).
            WorkerError: if the worker cannot be started or dies.
        """
        self._job = job
        facts = self._start()
        if facts.device_name == "":
            raise WorkerError("the worker named no device")
        return facts

    def train(self, request: TrainRequest, go_on: Callable[[RungReport], bool]) -> TrainOutcome:
        """Trains one candidate; a worker that dies of it is a status, and the next command gets a new one.

        Where memory runs out it is trained again with less, by the ladder of `autopeft.training.ladder`.
        """
        once = _asked_once(go_on)
        return train_within_memory(request, lambda attempt: self._carried_out("train", attempt, once))

    def measure(self, request: TrainRequest, *, watch_allocations: bool = False) -> TrainOutcome:
        """Measures the steps of a request on the largest batch, without scores; a worker that dies of it is a status.

        Args:
            request: the candidate and how many steps.
            watch_allocations: on a host processor, measure torch's allocator and not the process.
        """
        return self._carried_out("measure", request, _always, watch_allocations=watch_allocations)

    def _carried_out(
        self, kind: str, request: TrainRequest, go_on: Callable[[RungReport], bool], **more: Any
    ) -> TrainOutcome:
        worker = self._ready()
        begin = time.monotonic()
        worker.watch.take_peak()
        curve: list[RungReport] = []
        try:
            worker.send(kind, request=request, **more)
            message = self._follow(worker, request, go_on, curve)
        except WorkerGoneError:
            return self._outcome_of_death(worker, curve, begin)
        if message["kind"] == "error":
            return _unfinished("failed", message["message"], curve, begin)
        outcome = from_dict(message["outcome"], TrainOutcome, "the worker's outcome")
        self._idle_bytes = self._idle_bytes or worker.resident_bytes()
        if outcome.measured_peak_bytes is None:
            outcome = replace(outcome, measured_peak_bytes=worker.watch.take_peak(), measured_peak_kind="resident")
        return outcome

    def score(self, request: ScoreRequest) -> Scores:
        """Scores an adapter or the untouched base on one split.

        Raises:
            WorkerError: if the worker dies of it.
        """
        worker = self._ready()
        try:
            worker.send("score", request=request)
            message = worker.receive()
        except WorkerGoneError as error:
            self._drop(worker)
            raise WorkerError(f"the worker died while scoring {request.name}; its log: {self._log_file}") from error
        if message["kind"] != "scores":
            raise _error_of(message, self._log_file)
        return from_dict(message["scores"], Scores, "the worker's scores")

    def baseline(self, request: BaseRequest) -> BaseScores:
        """Scores the untouched base on the prepared rows, zero-shot and with examples in the prompt.

        Raises:
            DataError: if too few rows fit into the model's context.
            WorkerError: if the worker dies of it, for want of memory above all.
        """
        worker = self._ready()
        try:
            worker.send("baseline", request=request)
            while (message := worker.receive())["kind"] == "progress":
                if self._on_step is not None:
                    self._on_step(message["stage"], message["done"], message["total"])
            if message["kind"] == "oom":
                raise WorkerGoneError
        except WorkerGoneError as error:
            why = self._why_it_died(worker)
            raise WorkerError(
                f"the untouched base model could not be scored: {why}; its log: {self._log_file}"
            ) from error
        if message["kind"] != "base_scores":
            raise _error_of(message, self._log_file)
        return from_dict(message["scores"], BaseScores, "the base model's scores")

    def refresh(self) -> None:
        """Ends a worker that holds much more memory than after its first training; the next command starts another."""
        if self._worker is None or self._idle_bytes is None:
            return
        if self._worker.resident_bytes() > GROWTH_LIMIT * self._idle_bytes:
            self.close()

    def clock(self) -> float:
        """Returns seconds of a steady clock."""
        return time.monotonic()

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            self._drop(self._worker)

    def _ready(self) -> WorkerProcess:
        if self._worker is None:
            self._start()
        assert self._worker is not None, "_start sets it or raises"
        return self._worker

    def _start(self) -> JobFacts:
        assert self._job is not None, "prepare comes first"
        if self._worker is not None:
            self._drop(self._worker)
        self._worker = WorkerProcess(self._log_file, self._job)
        try:
            self._worker.send("prepare", job=self._job)
            message = self._worker.receive()
        except WorkerGoneError as error:
            why = self._why_it_died(self._worker)
            raise WorkerError(f"the training worker could not start: {why}; its log: {self._log_file}") from error
        if message["kind"] != "facts":
            raise _error_of(message, self._log_file)
        return from_dict(message["facts"], JobFacts, "the worker's facts")

    def _follow(
        self,
        worker: WorkerProcess,
        request: TrainRequest,
        go_on: Callable[[RungReport], bool],
        curve: list[RungReport],
    ) -> dict[str, Any]:
        """Returns the last message of a training, having answered at its rungs."""
        while True:
            message = worker.receive()
            if message["kind"] == "step":
                if self._on_step is not None:
                    self._on_step(request.name, message["step"], request.steps)
            elif message["kind"] == "rung":
                curve.append(from_dict(message["report"], RungReport, "the worker's report"))
                worker.send("decision", go_on=go_on(curve[-1]))
            elif message["kind"] == "oom":
                raise WorkerGoneError
            else:
                return message

    def _outcome_of_death(self, worker: WorkerProcess, curve: list[RungReport], begin: float) -> TrainOutcome:
        code, exceeded, peak = worker.exit_code(), worker.watch.exceeded, worker.watch.peak_bytes
        why = self._why_it_died(worker)
        status = "oom" if exceeded or code == OOM_EXIT else "failed"
        outcome = _unfinished(status, f"{why}; the worker's log: {self._log_file}", curve, begin)
        return replace(outcome, measured_peak_bytes=peak, measured_peak_kind="resident") if exceeded else outcome

    def _why_it_died(self, worker: WorkerProcess) -> str:
        # Asked before its input is closed, at whose end a worker leaves with code 0.
        code, exceeded = worker.exit_code(), worker.watch.exceeded
        self._drop(worker)
        if exceeded:
            assert self._job is not None
            return f"it used more than the memory budget of {format_gib(self._job.memory_limit_bytes or 0)}"
        if code == OOM_EXIT:
            return "it ran out of memory"
        return f"the worker was ended by signal {-code}" if code < 0 else f"the worker ended with exit code {code}"

    def _drop(self, worker: WorkerProcess) -> None:
        worker.end()
        self._worker = None


def _always(report: RungReport) -> bool:
    del report
    return True


def _asked_once(go_on: Callable[[RungReport], bool]) -> Callable[[RungReport], bool]:
    """Returns what asks at every rung once: an attempt with less memory passes those that an earlier one passed."""
    passed: set[int] = set()

    def ask(report: RungReport) -> bool:
        if report.step not in passed:
            passed.add(report.step)
            return go_on(report)
        return True

    return ask


def _unfinished(status: Any, error: str, curve: list[RungReport], begin: float) -> TrainOutcome:
    last = curve[-1] if curve else None
    return TrainOutcome(
        status=status,
        steps=last.step if last else 0,
        tokens=last.tokens if last else 0,
        seconds=time.monotonic() - begin,
        train_seconds=last.seconds if last else 0.0,
        scores=None,
        curve=tuple(curve),
        measured_peak_bytes=None,
        error=error,
    )


def _error_of(message: dict[str, Any], log_file: Path) -> AutoPeftError:
    known = _ERRORS.get(message.get("type", ""))
    if message.get("user_error") and known is not None:
        return known(message["message"])
    return WorkerError(f"the training worker failed: {message.get('message', message)}; its log: {log_file}")
