"""Builds the virtual environments that published records are traced in, once, under ``.cache`` of the repository.

    PYTHONPATH=benchmarks python -m accuracy.environments [NAME ...]

An environment counts as built when its marker file holds the pins that it was built with; a build that was broken off
leaves no marker and is done again. Building needs a package index, using a built environment does not.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autopeft.errors import AutoPeftError, UnknownNameError
from autopeft.resources import read_yaml, to_record

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
DEFINITIONS = Path(__file__).parent / "environments.yaml"
MARKER = "autopeft-built.json"
BUILD_SECONDS = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What one environment holds.

    Attributes:
        name: key in environments.yaml.
        packages: requirements with exact versions.
        stands_for: the records' versions.
        differences: in what it differs from them.
        constraints: exact versions of everything that the packages bring along.
    """

    name: str
    packages: tuple[str, ...]
    stands_for: str = ""
    differences: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()


class EnvironmentBuildError(AutoPeftError):
    """A virtual environment is missing or could not be built; the text says which and how to get it."""


def load_environments() -> dict[str, Environment]:
    """Returns the environments of environments.yaml by name."""
    return {
        name: to_record({**entry, "name": name}, Environment, f"{DEFINITIONS}, {name}")
        for name, entry in read_yaml(DEFINITIONS).items()
    }


def environment_folder(name: str) -> Path:
    """Returns where an environment of environments.yaml lies or would lie."""
    return CACHE / "environments" / name


def environment_python(name: str) -> Path:
    """Returns the interpreter of a built environment.

    Raises:
        UnknownNameError: if environments.yaml has no such name.
        EnvironmentBuildError: if it is not built, or was built with other pins.
    """
    environments = load_environments()
    if name not in environments:
        raise UnknownNameError("environment", name, environments)
    folder = environment_folder(name)
    if not is_built(environments[name], folder):
        raise EnvironmentBuildError(
            f"environment {name!r} is not built in {folder}; "
            f"call: PYTHONPATH=benchmarks python -m accuracy.environments {name}"
        )
    return interpreter(folder)


def interpreter(folder: Path) -> Path:
    """Returns the interpreter of the virtual environment in a folder."""
    return folder / "bin" / "python"


def is_built(environment: Environment, folder: Path) -> bool:
    """Returns whether the folder holds this environment, finished and with the same pins."""
    marker = folder / MARKER
    return marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == _pins(environment)


def build(environment: Environment, folder: Path) -> Path:
    """Builds an environment unless the folder holds it already, and returns its interpreter.

    Two processes may call this for one folder: the second waits for the first.

    Raises:
        EnvironmentBuildError: if pip fails, for example without a package index; the folder is removed again.
    """
    with _locked(folder):
        if is_built(environment, folder):
            return interpreter(folder)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _install(environment, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / MARKER).write_text(json.dumps(_pins(environment), indent=1), encoding="utf-8")
    return interpreter(folder)


def _install(environment: Environment, folder: Path) -> None:
    _run(environment.name, [sys.executable, "-m", "venv", str(folder)])
    pip = [str(interpreter(folder)), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as constraints:
        constraints.write("\n".join(environment.constraints))
        constraints.flush()
        _run(environment.name, [*pip, "--constraint", constraints.name, *environment.packages])


def _run(name: str, command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentBuildError(
            f"building environment {name!r} took more than {BUILD_SECONDS:.0f} s; "
            "check the connection to your package index and call again"
        ) from error
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise EnvironmentBuildError(
            f"cannot build environment {name!r}: pip or venv ended with {done.returncode}; a build needs a package "
            f"index (set one up in pip's configuration) and about 2 GB of disk. It said:\n{said}"
        )


def _pins(environment: Environment) -> dict[str, list[str]]:
    return {"packages": list(environment.packages), "constraints": list(environment.constraints)}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Keeps gigabytes of packages out of a commit even where the repository's own list of ignored files is old.
    (folder.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Builds the named environments, or all, and prints where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    known = load_environments()
    for name in parser.parse_args().names or list(known):
        if name not in known:
            raise UnknownNameError("environment", name, known)
        print(f"{name}: {build(known[name], environment_folder(name))}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AutoPeftError as error:
        sys.exit(str(error))
