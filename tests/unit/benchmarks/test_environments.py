"""Environments of records: defined with exact pins, built whole or not at all."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import UnknownNameError


def environments() -> Any:
    return importlib.import_module("accuracy.environments")


def empty(name: str = "empty", packages: tuple[str, ...] = ()) -> Any:
    return environments().Environment(name=name, packages=packages)


@pytest.fixture
def pip_log(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of a build; a venv gets its folder, pip installs nothing."""
    commands: list[list[str]] = []

    def run(name: str, command: list[str]) -> None:
        commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            Path(command[3]).mkdir(parents=True)

    monkeypatch.setattr(environments(), "_run", run)
    return commands


def test_every_requirement_is_one_exact_version() -> None:
    defined = environments().load_environments()
    assert set(defined) == {"hf-4.48", "hf-5.13"}
    for environment in defined.values():
        pins = environment.packages + environment.constraints
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
        names = [pin.split("==")[0].lower() for pin in pins]
        assert len(names) == len(set(names))
        assert {"torch", "transformers", "peft", "bitsandbytes"} <= set(names)


def test_a_built_environment_is_not_built_again(tmp_path: Path, pip_log: list[list[str]]) -> None:
    folder = tmp_path / "environments" / "empty"
    environments().build(empty(), folder)
    assert environments().build(empty(), folder) == folder / "bin" / "python"
    assert len(pip_log) == 2


def test_other_pins_build_again(tmp_path: Path, pip_log: list[list[str]]) -> None:
    folder = tmp_path / "environments" / "empty"
    environments().build(empty(), folder)
    environments().build(empty(packages=("six==1.17.0",)), folder)
    assert len(pip_log) == 4
    assert pip_log[-1][-1] == "six==1.17.0"
    assert json.loads((folder / environments().MARKER).read_text())["packages"] == ["six==1.17.0"]


def test_a_build_that_was_broken_off_is_done_again(tmp_path: Path, pip_log: list[list[str]]) -> None:
    folder = tmp_path / "environments" / "empty"
    folder.mkdir(parents=True)
    (folder / "half").touch()
    environments().build(empty(), folder)
    assert not (folder / "half").exists()
    assert len(pip_log) == 2


def test_a_failed_build_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    folder = tmp_path / "environments" / "empty"
    with pytest.raises(environments().EnvironmentBuildError, match="cannot build environment 'empty'") as caught:
        environments().build(empty(packages=("autopeft-no-such-package==1.0",)), folder)
    assert "autopeft-no-such-package" in str(caught.value)
    assert not folder.exists()


def test_an_unbuilt_environment_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments(), "CACHE", tmp_path)
    with pytest.raises(environments().EnvironmentBuildError, match=r"accuracy\.environments hf-4\.48"):
        environments().environment_python("hf-4.48")


def test_an_unknown_environment_is_refused_with_the_known_names() -> None:
    with pytest.raises(UnknownNameError, match=r"known: hf-4\.48, hf-5\.13"):
        environments().environment_python("hf-4.49")
