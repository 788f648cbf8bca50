"""The worker process as its parent holds it: pipes, environment, and a watch on its memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import psutil

import autopeft
from autopeft.specs import Job
from autopeft.training.protocol import read_message, write_message
from autopeft.units import KIB

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0

OTHER_DEVICE_VARIABLES = ("PYTORCH_ENABLE_MPS_FALLBACK", "ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE")
"""Variables by which torch and accelerate compute elsewhere than asked, without a word; the plan names the device."""


class MemoryWatch:
    """Watches the resident memory of a process tree and kills it above a limit.

    Where the device is the host there is no driver that refuses an allocation, so the parent enforces the budget.
    """

    def __init__(self, process: psutil.Process, limit_bytes: int | None) -> None:
        self.peak_bytes = 0
        self.exceeded = False
        self._process = process
        self._limit_bytes = limit_bytes
        self._kernel_counts = _forget_peak(process.pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def take_peak(self) -> int:
        """Returns the highest resident memory since the last call, in bytes.

        Exact on Linux, whose kernel keeps it; elsewhere what was seen every POLL_SECONDS.
        """
        kept = _kernel_peak_bytes(self._process.pid) if self._kernel_counts else 0
        peak, self.peak_bytes = max(self.peak_bytes, kept), 0
        self._kernel_counts = _forget_peak(self._process.pid)
        return peak

    def stop(self) -> None:
        """Ends the watch."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                resident = self._process.memory_info().rss
            except psutil.Error:
                return
            self.peak_bytes = max(self.peak_bytes, resident)
            if self._limit_bytes is not None and resident > self._limit_bytes:
                self.exceeded = True
                self._process.kill()
                return


def _forget_peak(pid: int) -> bool:
    """Lets the kernel's count of a process's highest resident memory begin anew; returns whether it did (proc(5))."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _kernel_peak_bytes(pid: int) -> int:
    """Returns the kernel's count; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * KIB for line in lines if line.startswith("VmHWM:"))


class WorkerGoneError(Exception):
    """The worker ended in the middle of a command."""


class WorkerProcess:
    """One worker: started by ``python -m``, so that it works from scripts, notebooks and threads alike."""

    def __init__(self, log_file: Path, job: Job) -> None:
        self.log_file = log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "autopeft.training.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=worker_environment(os.environ, job.device, job.device_selector),
                # Ctrl-C is for the parent to handle; a worker that is in its group would die of it too.
                start_new_session=True,
            )
        watched_bytes = job.memory_limit_bytes if job.device == "cpu" else None
        self.watch = MemoryWatch(psutil.Process(self._process.pid), watched_bytes)

    def send(self, kind: str, **content: Any) -> None:
        """Sends one message."""
        try:
            write_message(_pipe(self._process.stdin), kind, **content)
        except (BrokenPipeError, OSError) as error:
            raise WorkerGoneError from error

    def receive(self) -> dict[str, Any]:
        """Returns the next message; waits for it."""
        line = _pipe(self._process.stdout).readline()
        if not line.endswith(b"\n"):
            raise WorkerGoneError
        return read_message(line)

    def resident_bytes(self) -> int:
        """Returns the worker's resident memory now; 0 if it has ended."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def exit_code(self) -> int:
        """Returns the exit code of a worker that has closed its output; kills it if it does not end."""
        try:
            return self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def end(self) -> None:
        """Ends the worker, gently first."""
        self.watch.stop()
        with contextlib.suppress(WorkerGoneError):
            self.send("close")
        with contextlib.suppress(OSError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the worker is started with pipes"
    return stream


def worker_environment(environment: Mapping[str, str], device: str, selector: str | None = None) -> dict[str, str]:
    """Returns the environment of a worker: this package importable, idle threads asleep, one device in sight.

    What leads to another device than the plan's is left out (OTHER_DEVICE_VARIABLES): an operation that Metal lacks is
    then an error instead of a slow step on the processor.

    Args:
        environment: the parent's.
        device: what the worker trains on: "cpu", "cuda", ...
        selector: ``NAME=value`` that leaves the device of the plan alone in sight; None for the first one.
    """
    root = str(Path(autopeft.__file__).parent.parent)
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    # Threads that spin while they wait make a step on a busy machine up to ten times slower.
    defaults = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return (
        defaults
        | {name: value for name, value in environment.items() if name not in OTHER_DEVICE_VARIABLES}
        | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        | _one_gpu(environment, device, selector)
    )


def _one_gpu(environment: Mapping[str, str], device: str, selector: str | None) -> dict[str, str]:
    """Returns the variables that show the worker one GPU alone; transformers would spread over all it sees."""
    if selector is not None:
        name, _, value = selector.partition("=")
        return {name: value}
    if device.partition(":")[0] != "cuda":
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return {"CUDA_VISIBLE_DEVICES": visible.split(",")[0].strip()}
    # NVML, which the plan asked, numbers by bus; CUDA by speed unless told.
    return {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
