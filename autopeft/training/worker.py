"""The worker process: ``python -m autopeft.training.worker`` obeys messages on stdin and answers on stdout.

It ends by itself when its parent is gone: a thread waits on stdin, whose end means that.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
import warnings
from typing import IO, Any

from autopeft.engine.stack import require_training_stack
from autopeft.errors import AutoPeftError
from autopeft.specs import BaseRequest, Job, RungReport, ScoreRequest, TrainRequest, from_dict
from autopeft.training.protocol import OOM_EXIT, read_message, write_message


class Worker:
    """Serves one job."""

    def __init__(self, commands: queue.Queue[dict[str, Any]], answers: IO[bytes]) -> None:
        self._commands = commands
        self._answers = answers
        self._session: Any = None

    def serve(self) -> None:
        """Obeys until told to close."""
        while (command := self._commands.get())["kind"] != "close":
            try:
                self._obey(command)
            except AutoPeftError as error:
                self._answer("error", message=str(error), type=type(error).__name__, user_error=True)
            except Exception as error:
                if is_out_of_memory(error):
                    self._end_out_of_memory(error)
                traceback.print_exc()
                self._answer("error", message=f"{type(error).__name__}: {error}", type=type(error).__name__)

    def _obey(self, command: dict[str, Any]) -> None:
        kind = command["kind"]
        if kind == "prepare":
            from autopeft.training.session import Session

            self._session = Session(from_dict(command["job"], Job, "the job"))
            self._answer("facts", facts=self._session.facts())
        elif kind == "train":
            request = from_dict(command["request"], TrainRequest, "the training")
            self._answer("outcome", outcome=self._session.train(request, self._go_on, self._on_step))
        elif kind == "measure":
            from autopeft.training.measuring import measure

            request = from_dict(command["request"], TrainRequest, "the training")
            watched = bool(command["watch_allocations"])
            self._answer("outcome", outcome=measure(self._session, request, self._on_step, watch_allocations=watched))
        elif kind == "score":
            scoring = from_dict(command["request"], ScoreRequest, "the scoring")
            self._answer("scores", scores=self._session.score(scoring))
        elif kind == "baseline":
            from autopeft.training.untouched import score_base

            asked = from_dict(command["request"], BaseRequest, "the baseline")
            self._answer("base_scores", scores=score_base(self._session, asked, self._on_progress))
        else:
            raise AssertionError(f"unknown command {kind}")

    def _go_on(self, report: RungReport) -> bool:
        self._answer("rung", report=report)
        decision = self._commands.get()
        assert decision["kind"] == "decision", decision
        return bool(decision["go_on"])

    def _on_step(self, step: int) -> None:
        self._answer("step", step=step)

    def _on_progress(self, stage: str, done: int, total: int) -> None:
        self._answer("progress", stage=stage, done=done, total=total)

    def _answer(self, kind: str, **content: Any) -> None:
        write_message(self._answers, kind, **content)

    def _end_out_of_memory(self, error: Exception) -> None:
        """Ends the process: after running out of memory a device's state and fragmentation are not to be trusted."""
        self._answer("oom", message=str(error).partition("\n")[0])
        os._exit(OOM_EXIT)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception means that the device or the host had no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def main() -> None:
    """Serves on this process's stdin and stdout; everything that libraries print goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    warnings.simplefilter("default")
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_commands, args=(commands,), daemon=True).start()
    code = 1
    try:
        require_training_stack("training")
        Worker(commands, answers).serve()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        # Python would wait at its end for the thread that reads stdin, and abort.
        sys.stderr.flush()
        os._exit(code)


def _read_commands(commands: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        commands.put(read_message(line))
    # The parent is gone: nobody wants what is being trained.
    os._exit(0)


if __name__ == "__main__":
    main()
