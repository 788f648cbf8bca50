"""Reads the search spaces: ``search_spaces/<method>.yaml``, and those of plugin folders."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.resources import plugin_folders, read_record, yaml_files
from autopeft.specs import Candidate, Distribution, MethodSpace, SearchSpace

TARGET_CHOICES = ("all-linear", "attention", "mlp")


@functools.cache
def all_spaces() -> dict[str, MethodSpace]:
    """Returns the search space of every method by name, in alphabetical order.

    Raises:
        InvalidInputError: naming the file and all that is wrong in it.
    """
    files = dict(yaml_files("search_spaces"))
    for folder in plugin_folders():
        files |= {path.stem: path for path in sorted((folder / "search_spaces").glob("*.yaml"))}
    return {name: load_space(path) for name, path in sorted(files.items())}


def spaces_for(methods: Iterable[str]) -> SearchSpace:
    """Returns the search spaces of some methods.

    Raises:
        UnknownNameError: for a method without one.
    """
    known = all_spaces()
    for name in methods:
        if name not in known:
            raise UnknownNameError("search space", name, known)
    return SearchSpace(methods={name: known[name] for name in methods})


def suggested_methods() -> tuple[str, ...]:
    """Returns the methods that are ranked where none was asked for, in alphabetical order."""
    return tuple(name for name, space in all_spaces().items() if space.suggested_by_default)


def load_space(path: Path) -> MethodSpace:
    """Returns the search space of one YAML file, checked.

    Raises:
        InvalidInputError: naming the file and all that is wrong in it.
    """
    space = read_record(path, MethodSpace)
    problems = [] if space.method == path.stem else [f"method is {space.method!r}, but the file is {path.name}"]
    for name, distribution in space.parameters.items():
        problems += [f"parameter {name}: {problem}" for problem in _problems(distribution)]
    problems += [f"{name} is both searched and fixed" for name in space.parameters if name in space.fixed]
    if space.searched_by_default and not space.suggested_by_default:
        problems.append("searched_by_default: true needs suggested_by_default: true")
    if problems:
        raise InvalidInputError(f"{path}: " + "; ".join(problems))
    return space


def is_candidate_field(name: str) -> bool:
    """Returns whether a knob sets a field of Candidate; others are options of the method."""
    return name in Candidate.__dataclass_fields__


def _problems(distribution: Distribution) -> list[str]:
    if distribution.type == "categorical":
        return _categorical_problems(distribution)
    low, high, default = distribution.low, distribution.high, distribution.default
    if low is None or high is None or distribution.choices:
        return [f"type {distribution.type} takes low and high, and no choices"]
    problems = [] if low <= high else [f"low {low} is above high {high}"]
    if distribution.log and low <= 0:
        problems.append(f"log needs low above zero, not {low}")
    if not isinstance(default, int | float) or isinstance(default, bool):
        problems.append(f"default {default!r} is no number (YAML reads 1e-4 as text: write 1.0e-4)")
    elif not low <= default <= high:
        problems.append(f"default {default} lies outside {low} to {high}")
    return problems


def _categorical_problems(distribution: Distribution) -> list[str]:
    if not distribution.choices or distribution.low is not None or distribution.high is not None:
        return ["type categorical takes choices, and neither low nor high"]
    if distribution.default not in distribution.choices:
        return [f"default {distribution.default!r} is not among the choices {list(distribution.choices)}"]
    return []
