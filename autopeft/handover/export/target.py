"""What an export is, and which there are: every module of ``targets`` is one."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import autopeft.handover.export.targets as found_here
from autopeft.errors import InvalidInputError, UnknownNameError
from autopeft.handover.export.recipe import Recipe
from autopeft.handover.folders import new_folder
from autopeft.resources import read_record, resource_folder

DATA_FILE = "data.jsonl"


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What profiles/trainers.yaml says of a trainer.

    Attributes:
        version: whose parser or schema the exports were checked against.
        command: starts the training in the folder of the export.
        checked_by: how it was checked.
    """

    title: str
    package: str
    version: str
    command: str
    checked_by: str


@dataclass(frozen=True, kw_only=True)
class Trainers:
    """profiles/trainers.yaml."""

    trainers: dict[str, Trainer]
    source: str
    checked: Any


@dataclass(frozen=True, kw_only=True)
class Export:
    """A written export.

    Attributes:
        main: the file that the trainer is given.
        files: all of them, with their content; large data is not repeated here after writing.
        notes: what the trainer does otherwise than the plan says, one sentence each.
        command: starts it, in the folder.
    """

    target: str
    version: str
    folder: str
    main: str
    files: dict[str, str]
    notes: tuple[str, ...]
    command: str


class Target(ABC):
    """A trainer.

    Attributes:
        name: as in ``--to`` and profiles/trainers.yaml.
        main: name of the file that it is given.
        methods: that it can train.
    """

    name: ClassVar[str]
    main: ClassVar[str]
    methods: ClassVar[tuple[str, ...]] = ("lora", "rslora", "dora", "full")

    @property
    def trainer(self) -> Trainer:
        """What is known of it."""
        return trainers()[self.name]

    @abstractmethod
    def content(self, recipe: Recipe) -> str:
        """Returns the configuration or the script."""

    @abstractmethod
    def row(self, recipe: Recipe, index: int) -> dict[str, Any]:
        """Returns a row of the data as the trainer takes it."""

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns what this trainer does otherwise than the plan says."""
        del recipe
        return []

    def more_files(self, recipe: Recipe) -> dict[str, str]:
        """Returns other files that it needs, by name."""
        del recipe
        return {}


@functools.cache
def trainers() -> dict[str, Trainer]:
    """Returns what is known of the trainers, by name."""
    return read_record(resource_folder("profiles") / "trainers.yaml", Trainers).trainers


@functools.cache
def targets() -> dict[str, Target]:
    """Returns every target by name, in alphabetical order."""
    modules = [
        importlib.import_module(f"{found_here.__name__}.{module.name}")
        for module in pkgutil.iter_modules(found_here.__path__)
    ]
    classes = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Target) and value.__module__ == module.__name__
    ]
    return {target.name: target() for target in sorted(classes, key=lambda each: each.name)}


def export_recipe(recipe: Recipe, target_name: str, output: Path) -> Export:
    """Writes a recipe for a trainer into a new folder: its file, and the data as it takes them.

    Raises:
        UnknownNameError: if there is no such target.
        InvalidInputError: if it cannot train the candidate's method, or the output exists.
    """
    if target_name not in targets():
        raise UnknownNameError("trainer (--to)", target_name, targets())
    target = targets()[target_name]
    export = _export(recipe, target, output)
    with new_folder(output) as scratch:
        for name, content in export.files.items():
            (scratch / name).write_text(content, encoding="utf-8")
    return replace(export, files={name: content for name, content in export.files.items() if name != DATA_FILE})


def _export(recipe: Recipe, target: Target, output: Path) -> Export:
    method = recipe.candidate.method
    if method not in target.methods:
        raise InvalidInputError(
            f"{target.trainer.title} cannot train {method} as the plan means it; it trains "
            f"{', '.join(target.methods)}. Choose another candidate with --candidate, or --to trl"
        )
    rows = (json.dumps(target.row(recipe, index), ensure_ascii=False) for index in range(len(recipe.rows)))
    files = {
        target.main: target.content(recipe),
        DATA_FILE: "".join(f"{row}\n" for row in rows),
        **target.more_files(recipe),
    }
    return Export(
        target=target.name,
        version=target.trainer.version,
        folder=str(output),
        main=target.main,
        files=files,
        notes=(*_common_notes(recipe), *target.notes(recipe)),
        command=target.trainer.command,
    )


def _common_notes(recipe: Recipe) -> list[str]:
    notes = ["all rows are for training; autopeft run keeps some apart to choose and to test"]
    if recipe.earlier_answers:
        notes.append(f"{recipe.earlier_answers} rows have several answers; which of them count is the trainer's rule")
    return notes


def whole_alpha(recipe: Recipe) -> int:
    """Returns ``lora_alpha`` for a trainer that takes whole numbers; ``alpha_note`` says when that rounds."""
    return max(1, round(recipe.candidate.lora_alpha or 1))


def alpha_note(recipe: Recipe) -> list[str]:
    """Returns a note if the candidate's alpha is not whole."""
    alpha = recipe.candidate.lora_alpha
    if alpha is None or float(alpha).is_integer():
        return []
    return [f"lora_alpha {alpha:g} is rounded to {whole_alpha(recipe)}, which is all that the trainer takes"]
