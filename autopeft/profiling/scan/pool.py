"""Hands blocks to worker processes and yields their facts in the blocks' order, whatever the number of workers."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import autopeft
from autopeft.errors import AutoPeftError, WorkerError
from autopeft.profiling.scan.blocks import Block
from autopeft.profiling.scan.facts import Facts
from autopeft.profiling.scan.scanner import Scanner, ScanTask

_AHEAD = 2
"""Blocks that wait for a worker, beside the one that it has: enough to keep it busy, few enough to hold."""
_GRACE_SECONDS = 5.0


def scan_blocks(blocks: Iterable[Block], task: ScanTask, workers: int) -> Iterator[tuple[Block, Facts]]:
    """Yields every block with its facts, in order.

    Args:
        blocks: read as they are needed.
        task: what is to be found out.
        workers: processes; one means that this process does it itself.

    Raises:
        DataError: as the scanner.
        WorkerError: if a worker ends by itself.
    """
    if workers <= 1:
        scanner = Scanner(task)
        return ((block, scanner.scan(block)) for block in blocks)
    return _scan_by_workers(blocks, task, workers)


def _scan_by_workers(blocks: Iterable[Block], task: ScanTask, workers: int) -> Iterator[tuple[Block, Facts]]:
    processes = [_Worker() for _ in range(workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    waiting: deque[tuple[Block, Future[Facts]]] = deque()

    def ask(block: Block) -> Facts:
        worker = idle.get()
        try:
            return worker.facts(task, block)
        finally:
            idle.put(worker)

    for process in processes:
        idle.put(process)
    executor = ThreadPoolExecutor(workers, thread_name_prefix="autopeft-scan")
    try:
        for block in blocks:
            waiting.append((block, executor.submit(ask, block)))
            if len(waiting) >= (1 + _AHEAD) * workers:
                done, facts = waiting.popleft()
                yield done, facts.result()
        while waiting:
            done, facts = waiting.popleft()
            yield done, facts.result()
    finally:
        # After an error or Ctrl-C the processes must go first: their ends of the pipes are what the threads wait for.
        executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.end()
        executor.shutdown()


class _Worker:
    """One worker process; it is given its task with the first block."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autopeft.profiling.scan.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
        )
        self._prepared = False

    def facts(self, task: ScanTask, block: Block) -> Facts:
        if not self._prepared:
            self._ask(task)
            self._prepared = True
        answer = self._ask(block)
        assert isinstance(answer, Facts)
        return answer

    def _ask(self, request: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(request, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            answer: object = pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError) as error:
            raise WorkerError(
                f"a process that profiles the data ended with code {self._process.wait(_GRACE_SECONDS)} (-9: killed, "
                "most often for want of memory); repeat with --workers 1"
            ) from error
        if isinstance(answer, AutoPeftError):
            raise answer
        if isinstance(answer, Exception):
            raise RuntimeError(f"a process that profiles the data failed: {answer!r}") from answer
        return answer

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                continue  # what was not yet sent is wanted no more
        self._process.wait()


def _environment() -> dict[str, str]:
    """Returns the environment of a worker: one thread each, and this very package."""
    here = str(Path(autopeft.__file__).parents[1])
    paths = [here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths))),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
