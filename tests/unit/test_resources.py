"""YAML files are found, and what is wrong in one is said with its place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopeft.errors import InvalidInputError
from autopeft.resources import (
    cache_folder,
    plugin_folders,
    read_record,
    read_yaml,
    resource_folder,
    yaml_files,
)


@dataclass(frozen=True)
class Thing:
    name: str
    size: int = 1


def written(folder: Path, text: str) -> Path:
    path = folder / "thing.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("folder", ["search_spaces", "profiles/hardware", "profiles/models"])
def test_every_folder_of_yaml_files_is_found_and_not_empty(folder: str) -> None:
    files = yaml_files(folder)
    assert files
    assert all(path.is_file() and path.stem == name for name, path in files.items())


def test_the_files_hold_what_the_issue_promises_by_name() -> None:
    promised = {"t4", "l4", "l40s", "rtx-3090", "rtx-4090", "a100-40gb", "a100-80gb", "h100-80gb-sxm"}
    assert promised <= set(yaml_files("profiles/hardware"))
    assert len(yaml_files("profiles/hardware")) >= 10
    assert len(yaml_files("profiles/models")) >= 5


def test_a_missing_folder_of_the_installation_is_told_with_what_to_do() -> None:
    with pytest.raises(InvalidInputError, match=r"lacks its folder 'no_such'; reinstall it: pip install"):
        resource_folder("no_such")


def test_a_record_is_read(tmp_path: Path) -> None:
    assert read_record(written(tmp_path, "name: a\nsize: 3\n"), Thing) == Thing(name="a", size=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nsise: 3\ncolour: red\n", r"thing\.yaml: unknown keys colour, sise; known: name, size"),
        ("size: 3\n", r"thing\.yaml: .*missing required field `name`"),
        ("name: a\nsize: big\n", r"thing\.yaml: Expected `int`, got `str` - at `\$\.size`"),
        ("- a\n", r"thing\.yaml must hold a mapping, not list"),
        ("name: a\n  size: 3\n", r"thing\.yaml, line 2 is not valid YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_record(written(tmp_path, text), Thing)


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(InvalidInputError, match=r"binary\.yaml is not UTF-8 text"):
        read_yaml(path)
    with pytest.raises(InvalidInputError, match=r"cannot read .*gone\.yaml: No such file"):
        read_yaml(tmp_path / "gone.yaml")


def test_plugin_folders_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    second.mkdir()
    monkeypatch.setenv("AUTOPEFT_PLUGINS", f"{first}{os.pathsep}{second}")
    assert plugin_folders() == (first, second)
    monkeypatch.delenv("AUTOPEFT_PLUGINS")
    assert plugin_folders() == ()


def test_a_plugin_folder_that_does_not_exist_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_PLUGINS", str(tmp_path / "gone"))
    with pytest.raises(InvalidInputError, match=r"AUTOPEFT_PLUGINS names .*gone, which is no folder"):
        plugin_folders()


def test_the_cache_is_where_the_user_says_else_where_the_system_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("AUTOPEFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "autopeft"
