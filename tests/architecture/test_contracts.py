"""The import contracts of pyproject.toml hold, and each one bites: a forbidden import breaks it, and it alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

import autopeft

ROOT = Path(autopeft.__file__).parent.parent
CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}


class Breach(NamedTuple):
    """A line that a contract forbids, at the end of a module."""

    contract: str
    module: str
    line: str


BREACHES = (
    Breach("layers", "specs/codec.py", "import autopeft.resources"),
    Breach("layers", "search/loop.py", "import autopeft.training.client"),
    Breach("layers", "methods/lora.py", "import autopeft.profiling.model"),
    Breach("layers", "recommend/advice.py", "def late():\n    import autopeft.api"),
    Breach("layers", "api/_run.py", "import autopeft.cli"),
    Breach("layers", "novel.py", "A_MODULE_WITHOUT_A_LAYER = True"),
    Breach("optuna-in-search", "recommend/advice.py", "import optuna"),
    Breach("optuna-in-search", "spaces.py", "def late():\n    import optuna.distributions"),
    Breach("heavy", "search/loop.py", "def late():\n    import torch"),
    Breach("heavy", "memory/closed_form.py", "from transformers import AutoConfig"),
    Breach("heavy", "memory/explicit.py", "def late():\n    import peft"),
    Breach("heavy", "report/html.py", "import datasets"),
    Breach("methods-apart", "methods/dora.py", "from autopeft.methods.lora import Lora"),
    Breach("methods-apart", "methods/novel.py", "from autopeft.methods.lora import Lora"),
)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter on the package in a folder."""
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its configuration, free to be broken."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "autopeft", folder / "autopeft", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_every_contract_is_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout


def test_every_contract_has_a_breach() -> None:
    assert set(CONTRACTS) == {breach.contract for breach in BREACHES}


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: f"{breach.contract}: {breach.module}")
def test_a_forbidden_import_breaks_its_contract_and_no_other(copy: Path, breach: Breach) -> None:
    path = copy / "autopeft" / breach.module
    before = path.read_text(encoding="utf-8") if path.exists() else None
    try:
        path.write_text(f"{before or ''}\n{breach.line}\n", encoding="utf-8")
        done = lint(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
    assert done.returncode == 1
    states = {
        contract: "BROKEN" if f"{content['name']} BROKEN" in done.stdout else "KEPT"
        for contract, content in CONTRACTS.items()
        if f"{content['name']} " in done.stdout
    }
    assert states == dict.fromkeys(CONTRACTS, "KEPT") | {breach.contract: "BROKEN"}, done.stdout


def test_the_untouched_copy_is_kept_too(copy: Path) -> None:
    assert lint(copy).returncode == 0
