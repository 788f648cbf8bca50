"""Where the training stack, optuna and plotly are imported: what import-linter cannot tell, the place in a module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import autopeft

PACKAGE = Path(autopeft.__file__).parent
STACK = {
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "gguf",
    "sklearn",
}
HOOKS = {
    "prepare",
    "snapshot",
    "extra_loss",
    "after_optimizer_step",
    "training_state",
    "load_training_state",
    "details",
    "save",
}
"""Of PeftMethod: they run while training, where the stack is there."""

SHARED_BY_HOOKS = {"start_of", "save_for_untouched_base"}
"""Functions of modules that several methods share, which hooks alone call."""

IMPORTS_THE_STACK_AT_ONCE = {
    "engine.factored_dora",
    "memory.tracing.attention",
    "memory.tracing.building",
    "memory.tracing.costs",
    "memory.tracing.fake_quantization",
    "memory.tracing.fakes",
    "memory.tracing.hollow",
    "memory.tracing.recorder",
    "memory.tracing.shapes",
    "memory.tracing.step",
    "memory.tracing.target_device",
    "memory.tracing.values",
    "training.trainer",
}
"""Modules that only the worker, or a trace, imports, or a function that adapts a model."""


class Import(NamedTuple):
    """One import statement: of what, in which module, and the functions around it, outermost first."""

    package: str
    module: str
    line: int
    functions: tuple[str, ...]


class _Collector(ast.NodeVisitor):
    def __init__(self, module: str) -> None:
        self.found: list[Import] = []
        self._module = module
        self._functions: tuple[str, ...] = ()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outside, self._functions = self._functions, (*self._functions, node.name)
        self.generic_visit(node)
        self._functions = outside

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"{self._module}:{node.lineno} imports relatively"
        self._add(node.module or "", node.lineno)

    def _add(self, name: str, line: int) -> None:
        self.found.append(Import(name.partition(".")[0], self._module, line, self._functions))


def imports_of(source: str, module: str) -> list[Import]:
    collector = _Collector(module)
    collector.visit(ast.parse(source))
    return collector.found


def all_imports() -> Iterator[Import]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        yield from imports_of(path.read_text(encoding="utf-8"), module)


IMPORTS = list(all_imports())


def test_the_collector_sees_imports_in_functions_and_passes_over_those_for_types() -> None:
    source = (
        "import torch\nif TYPE_CHECKING:\n    import peft\n"
        "def outer():\n    def inner():\n        from torch.nn import Linear\n"
    )
    assert imports_of(source, "m") == [Import("torch", "m", 1, ()), Import("torch", "m", 6, ("outer", "inner"))]


def test_only_what_trains_or_traces_imports_the_stack_with_the_module() -> None:
    at_once = {found.module for found in IMPORTS if found.package in STACK and not found.functions}
    assert at_once == IMPORTS_THE_STACK_AT_ONCE


def test_a_method_imports_the_stack_in_its_hooks_only() -> None:
    found = [one for one in IMPORTS if one.module.startswith("methods.") and one.package in STACK]
    assert found
    assert [one for one in found if not set(one.functions) & (HOOKS | SHARED_BY_HOOKS) and not _serves_hooks(one)] == []


def _serves_hooks(one: Import) -> bool:
    """Returns whether the import stands in a function that nothing but hooks of its module calls."""
    tree = ast.parse((PACKAGE / (one.module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    callers: dict[str, set[str]] = {}
    for function in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                callers.setdefault(node.func.id, set()).add(function.name)
    wanted, seen = {one.functions[0]} if one.functions else set(), set()
    while wanted - HOOKS:
        name = (wanted - HOOKS).pop()
        if name in seen or not callers.get(name):
            return False
        seen.add(name)
        wanted = (wanted - {name}) | callers[name]
    return bool(wanted)


@pytest.mark.parametrize("package", ["plotly"])
def test_the_report_draws_only_when_asked(package: str) -> None:
    found = [one for one in IMPORTS if one.package == package]
    assert found
    assert all(one.module.startswith("report.") and one.functions for one in found)


def test_optuna_is_imported_in_search_alone() -> None:
    found = {one.module.partition(".")[0] for one in IMPORTS if one.package == "optuna"}
    assert found == {"search"}


def test_no_module_is_named_for_everything_and_nothing() -> None:
    names = {part for path in PACKAGE.rglob("*.py") for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler", "base_utils"}
