"""Traces in somebody else's virtual environment: the libraries that will train decide what memory a step takes.

Nothing of ours is installed there. A subprocess of that environment's python reads this package's source from where it
lies, without the packages installed beside it, and answers one request as JSON.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autopeft.errors import InvalidInputError, ModelError
from autopeft.memory.tracing.request import TraceAnswer, TraceRequest
from autopeft.memory.tracing.versions import TRACED_PACKAGES

TIMEOUT_SECONDS = 900
"""Longest wait for one answer: the slowest traces at full depth take a minute or two."""

OLDEST_PYTHON = (3, 10)
OLDEST = {"transformers": (4, 48), "peft": (0, 13)}
REQUIRED = ("torch", "transformers", "peft")

_PROBE = """
import json, sys
from importlib import metadata
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"python": list(sys.version_info[:2]), "versions": found}))
"""

# Registers the package by its folder, so that what is installed beside it stays out of sight.
_BOOTSTRAP = """
import importlib.util, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("autopeft", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["autopeft"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from autopeft.memory.tracing.entry import main
main()
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A python with a training stack of its own.

    Attributes:
        python: its interpreter.
        versions: of the packages that a trace depends on; those that are installed.
    """

    python: Path
    versions: dict[str, str]


def find_environment(path: str | Path) -> Environment:
    """Returns the environment of a folder or an interpreter.

    Args:
        path: a virtual environment's folder, or its python.

    Raises:
        InvalidInputError: if there is no python, or it lacks what a trace needs.
    """
    return _probed(str(Path(path).expanduser().absolute()))


@functools.lru_cache(maxsize=32)
def _probed(path: str) -> Environment:
    python = _interpreter(Path(path))
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", _PROBE, *TRACED_PACKAGES], capture_output=True, text=True, timeout=60, check=True
        )
        content = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InvalidInputError(f"{python} does not run as a python interpreter: {error}") from error
    environment = Environment(python, content["versions"])
    _refuse_unfit(environment, tuple(content["python"]))
    return environment


def _interpreter(path: Path) -> Path:
    candidates = [path] if path.is_file() else [path / "bin" / "python", path / "Scripts" / "python.exe"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InvalidInputError(f"no python in {path}; --environment takes a virtual environment's folder or its python")


def _refuse_unfit(environment: Environment, python: tuple[int, ...]) -> None:
    problems = []
    if python < OLDEST_PYTHON:
        problems.append(f"its python is {'.'.join(map(str, python))}, a trace needs 3.10 or newer")
    problems += [f"{name} is not installed" for name in REQUIRED if name not in environment.versions]
    for name, oldest in OLDEST.items():
        found = environment.versions.get(name)
        if found is not None and _numbers(found) < oldest:
            problems.append(f"{name} is {found}, the oldest that can be traced is {'.'.join(map(str, oldest))}")
    if problems:
        raise InvalidInputError(f"cannot trace in {environment.python}: {'; '.join(problems)}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def trace_in(environment: Environment, requests: Sequence[TraceRequest]) -> Iterator[TraceAnswer | ModelError]:
    """Yields the answers of one subprocess of the environment, in order, as they come.

    What the libraries there cannot build, or fails for another reason, comes as an error with its last words; the
    requests after it are answered all the same.
    """
    package = Path(sys.modules["autopeft"].__path__[0])
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            [str(environment.python), "-I", "-c", _BOOTSTRAP, str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            try:
                for request in requests:
                    # A python that hangs is ended, which ends its answer too.
                    watchdog = threading.Timer(TIMEOUT_SECONDS, process.kill)
                    watchdog.start()
                    try:
                        answer = _asked(process.stdin, process.stdout, request, environment, complaints)
                    finally:
                        watchdog.cancel()
                    yield answer
            finally:
                process.stdin.close()
                process.kill()


def _asked(
    questions: IO[str], answers: IO[str], request: TraceRequest, environment: Environment, complaints: IO[str]
) -> TraceAnswer | ModelError:
    try:
        questions.write(json.dumps(request.to_dict()) + "\n")
        questions.flush()
        content = json.loads(answers.readline())
    except (OSError, ValueError):
        complaints.seek(0)
        content = {
            "error": " ".join(complaints.read().strip().splitlines()[-2:])
            or f"no answer within {TIMEOUT_SECONDS} s, or it ended without a word"
        }
    if "error" in content:
        return ModelError(f"cannot trace in {environment.python}: {content['error']}")
    return TraceAnswer.from_dict(content["answer"])
