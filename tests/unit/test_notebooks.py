"""The notebooks run from top to bottom, in a kernel of their own, in the folder they lie in."""

import copy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
TRAINS = "slow"
"""Tag of the cells that train a real model."""


def read(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=4)


def is_slow(cell: Any) -> bool:
    return TRAINS in cell.metadata.get("tags", [])


def executed(notebook: Any, seconds: int) -> Any:
    done = copy.deepcopy(notebook)
    NotebookClient(done, timeout=seconds, resources={"metadata": {"path": str(FOLDER)}}).execute()
    return done


def printed(notebook: Any) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def test_both_walks_have_a_notebook() -> None:
    assert {"01_suggest.ipynb", "02_run.ipynb"} <= set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_the_suggest_notebook_shows_every_method_and_an_error_that_helps() -> None:
    text = printed(executed(read("01_suggest.ipynb"), seconds=60))
    assert all(f"\n{method}" in text for method in ("lora ", "rslora ", "dora ", "loftq ", "adalora ", "full "))
    assert "base_weights" in text


def test_the_run_notebook_simulates_a_search_and_says_so() -> None:
    notebook = read("02_run.ipynb")
    assert any(map(is_slow, notebook.cells))
    notebook.cells = [cell for cell in notebook.cells if not is_slow(cell)]
    text = printed(executed(notebook, seconds=120))
    assert "SIMULATED" in text
    assert "trial-0000" in text


@pytest.mark.slow
def test_the_run_notebook_trains_a_real_model() -> None:
    text = printed(executed(read("02_run.ipynb"), seconds=540))
    assert "trial-0000 complete" in text
    assert "adapter" in text
