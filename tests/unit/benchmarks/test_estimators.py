"""The page about other estimators holds what they answered, for every row, and what they cannot express."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from autopeft.units import GIB


def module(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def rows() -> list[Any]:
    return list(module("accuracy.records").load_rows())


@pytest.fixture(scope="module")
def answers() -> list[Any]:
    return list(module("estimators.table").load_answers())


def test_every_tool_answered_every_row_or_says_why_not(rows: list[Any], answers: list[Any]) -> None:
    tools = module("estimators.tools").load_tools()
    asked = {(answer.tool, answer.row) for answer in answers}
    assert asked == {(tool, row.id) for tool in tools.used for row in rows}
    assert len(asked) == len(answers)
    for answer in answers:
        assert (answer.allocated_bytes is None) == bool(answer.reason), answer
        assert bool(answer.command) != bool(answer.reason), answer


def test_every_tool_has_an_adapter_and_exact_versions() -> None:
    tools = module("estimators.tools")
    used = tools.load_tools().used
    assert set(used) == set(tools.ADAPTERS)
    assert all(package.count("==") == 1 for tool in used.values() for package in tool.packages)
    assert all(tool.reason for tool in tools.load_tools().not_used.values())


def test_the_page_is_what_the_kept_answers_give(rows: list[Any], answers: list[Any]) -> None:
    page = module("estimators.run").TABLE.read_text()
    assert page == module("estimators.table").render(answers, rows), "call: make bench-estimators, or with --table-only"
    assert all(f"| {row.id} |" in page for row in rows)


def test_a_figure_is_compared_with_its_own_kind(rows: list[Any]) -> None:
    table = module("estimators.table")
    row = next(row for row in rows if row.id == "fms_accel-053")
    assert table.compared(row) == "max_allocated"
    # 36.0821 GiB were allocated; 30 GiB are 16.9 % less.
    assert table.error(30 * GIB, row) == pytest.approx(-0.1686, abs=1e-4)


def test_our_figures_are_read_by_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any]) -> None:
    table, tools = module("estimators.table"), module("estimators.tools")
    ours = tmp_path / "results.json"
    ours.write_text(json.dumps({"rows": [{"measurement": "fms_accel-053", "predicted_bytes": 36 * GIB}]}))
    monkeypatch.setattr(table, "OURS", ours)
    every = [tools.Answer(tool=name, row="fms_accel-053", command=name, allocated_bytes=GIB) for name in tools.ADAPTERS]
    page = table.render(every, rows)
    assert "36.08 GiB, max allocated | 36.00 (-0.2%) | 1.00 (-97.2%)" in page


def test_a_row_that_no_estimator_can_express_gets_a_reason(rows: list[Any]) -> None:
    inexpressible = module("estimators.tools").inexpressible
    by_id = {row.id: row for row in rows}
    assert inexpressible(by_id["fms_accel-053"]) == ""
    assert "adalora" in inexpressible(by_id["peft_metamath-001"])
    assert "causal" in inexpressible(by_id["c3a_paper-001"])
    assert "beside the adapter" in inexpressible(by_id["qwen_readme-007"])
