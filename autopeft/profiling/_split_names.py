"""Tells from names which files of a folder are for training and which are held out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Literal

_HELD_OUT = {"test", "valid", "validation", "val", "dev", "eval"}


def divide_files(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the files to train on and those to leave out, by paths inside one folder.

    Beside files named after a train split, only those are used, if others are named after a held-out one. All are used
    where no name says train, or none says held out.
    """
    kinds = {name: split_of(name) for name in names}
    if not {"train", "held-out"} <= set(kinds.values()):
        return list(names), []
    return [name for name in names if kinds[name] == "train"], [name for name in names if kinds[name] != "train"]


def split_of(name: str) -> Literal["train", "held-out"] | None:
    """Returns what a file is named after: a part of its own name decides, else the nearest of its folders'."""
    path = PurePath(name)
    for part in (path.stem, *reversed(path.parent.parts)):
        words = set(re.split(r"[-_.]", part.lower()))
        if ("train" in words) != bool(words & _HELD_OUT):
            return "train" if "train" in words else "held-out"
    return None
